"""Outlines of lungs and heart in a chest seen from the front, solved for the areas that are asked for.

Everything is drawn in *body coordinates*: ``x`` grows from the midline to the patient's left (the right side of the
picture), ``y`` downwards from the lung apices; one unit is the picture's side for a body of scale one. Where borders
lie was set by hand to resemble frontal radiographs. A structure's outline is a one-parameter family that grows with
its parameter, so that any area can be met by solving for that parameter alone while all else stays where it is:

* the heart scales about its atria,
* a lung keeps its apex, its mediastinal border and its rib cage, and its half of the diaphragm moves; only when the
  diaphragm nears the lower edge of the picture does the side of the rib cage move outwards.

The heart lies in front: what it covers is not lung, in the label map and in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

__all__ = ["LEFT", "RIGHT", "Frame", "Heart", "Lung", "body_frame", "solve_heart", "solve_lung"]

LEFT, RIGHT = 1, -1
APEX_X = 0.145  # where the apex of a lung lies beside the midline
CAGE_HALF_WIDTH = 0.39


@dataclass(frozen=True)
class Frame:
    """Pixel centres in body coordinates.

    Attributes:
        x: lateral coordinate, shape (H, W), positive to the patient's left.
        y: vertical coordinate of each row, shape (H, 1).
        bottom: ``y`` of the lower edge of the picture.
        pixel: size of a pixel in body units.
    """

    x: np.ndarray
    y: np.ndarray
    bottom: float
    pixel: float

    @property
    def pixels(self) -> int:
        return self.x.size


def body_frame(size: int, scale: float, width: float, centre: float, top: float, tilt: float) -> Frame:
    """Body coordinates of a picture of ``size`` x ``size`` pixels.

    Args:
        size: number of pixels along each side.
        scale: size of the body in the picture, one on average.
        width: lateral stretch of the body.
        centre: where the midline crosses the level of the apices, as a share of the picture's width.
        top: where the apices lie, as a share of the picture's height.
        tilt: lateral lean of the midline for one unit downwards.
    """
    centres = (np.arange(size, dtype=np.float64) + 0.5) / size
    y = ((centres - top) / scale)[:, None]
    x = ((centres - centre) / (scale * width))[None, :] - tilt * (y - 0.4)
    return Frame(x.astype(np.float32), y.astype(np.float32), (1.0 - top) / scale, 1.0 / (size * scale))


@lru_cache(maxsize=1)
def _heart_spline() -> CubicSpline:
    # (angle in degrees, clockwise from the patient's left; distance of the border from the atria)
    knots = [
        (-30, 0.168), (0, 0.185), (14, 0.218), (27, 0.255), (40, 0.226), (60, 0.160), (90, 0.132),
        (130, 0.138), (155, 0.128), (180, 0.118), (225, 0.133), (250, 0.160), (275, 0.182), (305, 0.180), (330, 0.168),
    ]  # fmt: skip
    angles, radii = np.array(knots).T
    return CubicSpline(np.radians(angles), radii, bc_type="periodic")


@dataclass(frozen=True)
class Heart:
    """The heart's outline: a closed curve around the atria, told by its distance in each direction.

    Args:
        shape: standardised shape coefficients ``heart_axis``, ``heart_apex``, ``heart_height``, ``heart_x``.
    """

    shape: Mapping[str, float]
    anchor: tuple[float, float] = field(init=False)
    reach: tuple[float, float] = (0.365, 0.30)  # the rib cage stops growth to the left and to the right

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "anchor", (0.004 + 0.008 * self.shape["heart_x"], 0.494 + 0.012 * self.shape["heart_height"])
        )

    def _radius(self, angle: np.ndarray) -> np.ndarray:
        table_angle = np.linspace(-np.pi, np.pi, 721)
        turned = table_angle - 0.07 * self.shape["heart_axis"]
        radius = _heart_spline()(np.mod(turned + np.pi / 6, 2 * np.pi) - np.pi / 6)
        radius = radius * (1 + 0.05 * self.shape["heart_apex"] * np.cos(2 * (table_angle - 0.45)))
        return np.interp(angle, table_angle, radius)

    def level(self, frame: Frame) -> np.ndarray:
        """Scale at which the growing heart reaches each pixel, shape (H, W); infinite beyond the rib cage."""
        dx, dy = frame.x - self.anchor[0], frame.y - self.anchor[1]
        limit = np.where(dx > 0, self.reach[0], self.reach[1])
        crowding = 1 - (np.abs(dx) / limit) ** 6
        dx = np.where(crowding > 1e-6, dx / np.maximum(crowding, 1e-6) ** (1 / 6), np.inf)
        near = np.isfinite(dx)
        finite = np.where(near, dx, 1.0)
        rho = np.hypot(finite, dy) / self._radius(np.arctan2(dy, finite))
        return np.where(near, rho, np.inf)

    def widest(self, scale: float, side: int) -> tuple[float, float]:
        """Lateral distance from the midline and level of the heart's outermost point on a side."""
        angle = np.linspace(-np.pi, np.pi, 721)
        radius = scale * self._radius(angle)
        limit = self.reach[0] if side == LEFT else self.reach[1]
        dx = side * radius * np.cos(angle)
        dx = np.where(dx > 0, dx / (1 + (np.abs(dx) / limit) ** 6) ** (1 / 6), dx)
        outermost = int(np.argmax(dx))
        return float(dx[outermost]) + side * self.anchor[0], float(
            self.anchor[1] + radius[outermost] * np.sin(angle[outermost])
        )


def solve_heart(heart: Heart, frame: Frame, area: float) -> float:
    """Scale at which the heart covers ``area`` percent of the picture: exact to half a pixel.

    Raises:
        ValueError: when the rib cage cannot hold so large a heart.
    """
    wanted = max(1, round(area / 100 * frame.pixels))
    level = np.sort(heart.level(frame), axis=None)
    reachable = int(np.searchsorted(level, 6.0))
    if wanted >= reachable:
        raise ValueError(
            f"heart_area: {area:g} percent asked for, expected less than {100 * reachable / frame.pixels:.1f}"
        )
    return float((level[wanted - 1] + level[wanted]) / 2)


@lru_cache(maxsize=2)
def _mediastinum(side: int) -> PchipInterpolator:
    right = [
        (-0.5, 0.145), (0.0, 0.145), (0.008, 0.118), (0.025, 0.098), (0.06, 0.083), (0.10, 0.073), (0.16, 0.066),
        (0.22, 0.067), (0.28, 0.062), (0.34, 0.056), (0.40, 0.053), (0.60, 0.056), (1.5, 0.07),
    ]  # fmt: skip
    left = [
        (-0.5, 0.145), (0.0, 0.145), (0.008, 0.118), (0.025, 0.098), (0.06, 0.082), (0.10, 0.070), (0.14, 0.064),
        (0.22, 0.062), (0.30, 0.062), (0.40, 0.060), (0.60, 0.058), (1.5, 0.07),
    ]  # fmt: skip
    level, distance = np.array(left if side == LEFT else right).T
    return PchipInterpolator(level, distance)


@dataclass(frozen=True)
class Lung:
    """One lung: between mediastinum, rib cage and its half of the diaphragm.

    Args:
        side: ``LEFT`` or ``RIGHT``.
        shape: standardised shape coefficients (``dome_left`` or ``dome_right``, ``cage``, ``knob``, ``trunk``).
        heart: the heart, whose border is the lung's where they meet.
        heart_scale: its solved scale.
        bottom: ``y`` of the lower edge of the picture.
    """

    side: int
    shape: Mapping[str, float]
    heart: Heart
    heart_scale: float
    bottom: float

    @property
    def dome(self) -> float:
        """Depth of the costophrenic angle below the dome of the diaphragm."""
        return 0.105 + 0.018 * self.shape["dome_left" if self.side == LEFT else "dome_right"]

    @property
    def rest(self) -> float:
        """Level of the dome in a body of average proportions."""
        return 0.572 if self.side == LEFT else 0.556

    def medial(self, y: np.ndarray) -> np.ndarray:
        """Distance of the mediastinal border from the midline at each level; below the heart the heart's shadow."""
        border = _mediastinum(self.side)(np.clip(y, -0.5, 1.5))
        if self.side == LEFT:
            border = border + (0.030 + 0.007 * self.shape["knob"]) * np.exp(-(((y - 0.175) / 0.036) ** 2))
            border = border + (0.022 + 0.006 * self.shape["trunk"]) * np.exp(-(((y - 0.315) / 0.05) ** 2))
        widest, level = self.heart.widest(self.heart_scale, self.side)
        slope = 0.45 if self.side == LEFT else 0.25
        shadow = np.where(y > level, widest - slope * (y - level), 0.0)
        return np.maximum(border, shadow)

    def stretch(self, t: float) -> float:
        """How far the side of the rib cage has moved out: one until the diaphragm nears the picture's edge."""
        excess = max(0.0, t - 0.35 * self._room)
        return 1.0 + 1.6 * excess**2 / (excess + 0.12)

    @property
    def _room(self) -> float:
        return max(0.04, self.bottom - 0.035 - self.rest - 0.6 * self.dome)

    def wall(self, y: np.ndarray, t: float = 0.0) -> np.ndarray:
        """Distance of the inner chest wall from the midline at each level (APEX_X above the apex)."""
        fullness = 2.6 + 0.25 * self.shape["cage"]
        rise = (1 - (1 - np.clip(y / 0.5, 0.0, 1.0)) ** fullness) ** 0.62
        flare = 0.012 * np.clip((y - 0.35) / 0.3, 0.0, 1.0) - 0.05 * np.clip(y - 0.8, 0.0, None)
        return APEX_X + self.stretch(t) * ((CAGE_HALF_WIDTH - APEX_X) * rise + flare)

    def floor(self, x: np.ndarray, t: float) -> np.ndarray:
        """Level of the diaphragm at each distance from the midline: a dome that falls to the costophrenic angle."""
        crest = 0.40 if self.side == LEFT else 0.34
        outer = APEX_X + self.stretch(t) * (CAGE_HALF_WIDTH - APEX_X)
        q = (x - 0.06) / (outer - 0.06)
        lateral, medial = np.clip((q - crest) / (1 - crest), 0.0, 1.2), np.clip((crest - q) / crest, 0.0, 1.2)
        room = self._room
        shift = t if t < 0 else room * (1 - np.exp(-t / room))
        return self.rest + shift + self.dome * lateral**2.3 + 0.022 * medial**2

    def depth_inside(self, frame: Frame, t: float) -> np.ndarray:
        """Distance to the nearest border (body units, measured along an axis), negative outside; shape (H, W)."""
        x = self.side * frame.x
        across = np.minimum(x - self.medial(frame.y), self.wall(frame.y, t) - x)
        return np.minimum(np.minimum(across, self.floor(x, t) - frame.y), np.broadcast_to(frame.y, x.shape))


def solve_lung(lung: Lung, frame: Frame, heart_level: np.ndarray, area: float) -> float:
    """Displacement of the diaphragm at which the lung covers ``area`` percent of the picture.

    Args:
        lung: the lung.
        frame: pixels of the label map.
        heart_level: :meth:`Heart.level` of these pixels; what the heart covers is not lung.
        area: percent of the picture.

    Raises:
        ValueError: when the picture has no room for so large a lung.
    """
    wanted = max(1, round(area / 100 * frame.pixels))
    free = heart_level >= lung.heart_scale

    def covered(t: float) -> int:
        return int(np.count_nonzero((lung.depth_inside(frame, t) > 0) & free))

    low, high = -lung.rest - lung.dome, 1.0
    while covered(high) < wanted:
        high *= 2
        if high > 16:
            side = "left" if lung.side == LEFT else "right"
            raise ValueError(
                f"{side}_lung_area: {area:g} percent asked for, expected less than {100 * covered(high) / frame.pixels:.1f}"
            )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) >= wanted else (middle, high)
    return high
