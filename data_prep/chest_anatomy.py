"""Outlines of lungs and heart in a chest seen from the front, solved for given areas.

Everything is drawn in *body coordinates*: ``x`` grows from the midline to the patient's left (the right side of the
picture), ``y`` downwards from the lung apices; one unit is the picture's side for a body of scale one. The borders were
set by hand, guided by their distances from the midline, level by level, in frontal radiographs. A structure's outline
is a one-parameter family that grows with its parameter, so that any area can be met by solving for that parameter alone
while all else stays in place:

* the heart scales about its atria,
* a lung keeps its apex, its mediastinal border and its rib cage, and its half of the diaphragm moves; only when the
  diaphragm nears the lower edge of the picture does that side of the rib cage move outwards.

The heart lies in front: what it covers is not lung, in the label map and in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

__all__ = [
    "LEFT",
    "RIGHT",
    "Frame",
    "Heart",
    "Lung",
    "body_frame",
    "curve",
    "ramp",
    "segment",
    "solve_heart",
    "solve_lung",
]

LEFT, RIGHT = 1, -1
APEX = 0.145  # distance of a lung's apex from the midline
CAGE = 0.39  # half width of the rib cage at its base
ATRIA = 0.476  # level of the atria in a body of average proportions


def curve(knots: Sequence[tuple[float, float]]) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth curve through (level, distance) that does not overshoot, constant beyond its ends; gives float32."""
    level, distance = np.array(knots).T
    interpolator = PchipInterpolator(level, distance)
    return lambda y: interpolator(np.clip(y, level[0], level[-1])).astype(np.float32)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 … 1 across a border, smoothly: 0 where the distance is below -width/2, 1 where it is above width/2."""
    share = np.clip(distance * (1 / width) + 0.5, 0, 1).astype(np.float32)
    return share * share * (3 - 2 * share)


def segment(
    x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Position along a straight segment (0 … 1) and distance from it."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return along, np.hypot(x - along * dx, y - along * dy)


_CAGE = curve([
    (0.0, 0.145), (0.004, 0.164), (0.016, 0.192), (0.04, 0.223), (0.078, 0.264), (0.117, 0.294), (0.156, 0.314),
    (0.234, 0.338), (0.312, 0.351), (0.39, 0.360), (0.47, 0.368), (0.55, 0.376), (0.63, 0.386), (0.75, 0.392),
    (1.5, 0.37),
])  # fmt: skip
_MEDIASTINUM = {
    RIGHT: curve([
        (0.0, 0.145), (0.006, 0.114), (0.016, 0.088), (0.04, 0.066), (0.078, 0.055), (0.117, 0.052), (0.156, 0.053),
        (0.20, 0.060), (0.26, 0.072), (0.32, 0.082), (0.40, 0.080), (0.60, 0.060), (1.5, 0.07),
    ]),
    LEFT: curve([
        (0.0, 0.145), (0.006, 0.114), (0.016, 0.090), (0.04, 0.067), (0.078, 0.055), (0.117, 0.052), (0.156, 0.056),
        (0.20, 0.066), (0.25, 0.083), (0.31, 0.099), (0.37, 0.115), (0.45, 0.115), (0.60, 0.10), (1.5, 0.07),
    ]),
}  # fmt: skip
# direction in degrees, clockwise from the patient's left, and distance of the heart's border from the atria
_HEART = np.array([
    (-30, 0.172), (0, 0.208), (13, 0.247), (25, 0.277), (38, 0.238), (60, 0.156), (90, 0.123), (130, 0.132),
    (155, 0.126), (180, 0.121), (225, 0.131), (250, 0.152), (275, 0.168), (305, 0.166), (330, 0.172),
])  # fmt: skip
_HEART_SPLINE = CubicSpline(np.radians(_HEART[:, 0]), _HEART[:, 1], bc_type="periodic")
_ANGLES = np.linspace(-np.pi, np.pi, 721)


@dataclass(frozen=True)
class Frame:
    """Pixel centres in body coordinates.

    Attributes:
        x: lateral coordinate, float32 (H, W), positive to the patient's left.
        y: vertical coordinate of each row, float32 (H, 1).
        bottom: ``y`` of the lower edge of the picture.
        pixel: size of a pixel in body units.
    """

    x: np.ndarray
    y: np.ndarray
    bottom: float
    pixel: float

    def half(self, side: int) -> tuple[slice, Frame]:
        """The columns that reach into one side of the body, and the frame of these columns."""
        columns = np.flatnonzero((side * self.x > 0).any(0))
        part = slice(int(columns[0]), int(columns[-1]) + 1) if columns.size else slice(0, 0)
        return part, Frame(self.x[:, part], self.y, self.bottom, self.pixel)


def body_frame(size: int, scale: float, width: float, centre: float, top: float, tilt: float) -> Frame:
    """Body coordinates of a picture of ``size`` x ``size`` pixels.

    Args:
        size: number of pixels along each side.
        scale: size of the body in the picture, one on average.
        width: lateral stretch of the body.
        centre: where the midline crosses the level ``y`` = 0.4, as a share of the picture's width.
        top: where the apices lie, as a share of the picture's height.
        tilt: lateral lean of the midline for one unit downwards.
    """
    centres = (np.arange(size) + 0.5) / size
    y = ((centres - top) / scale)[:, None]
    x = ((centres - centre) / (scale * width))[None, :] - tilt * (y - 0.4)
    return Frame(x.astype(np.float32), y.astype(np.float32), (1.0 - top) / scale, 1.0 / (size * scale))


@dataclass(frozen=True)
class Heart:
    """The heart's outline: a closed curve around the atria, given by its distance from them in each direction.

    Args:
        shape: standardised shape coefficients ``heart_axis``, ``heart_apex``, ``heart_height``, ``heart_x``.
        descent: how far breath has lowered diaphragm and heart, in body units.
        reach: how far from the atria the rib cage lets the heart grow to the left and to the right.
    """

    shape: Mapping[str, float]
    descent: float
    reach: tuple[float, float] = (0.36, 0.29)

    @property
    def anchor(self) -> tuple[float, float]:
        """Where the atria lie."""
        return 0.004 + 0.008 * self.shape["heart_x"], ATRIA + 0.012 * self.shape["heart_height"] + 0.65 * self.descent

    @cached_property
    def _radii(self) -> np.ndarray:
        """Distance of the border from the atria in each of ``_ANGLES``."""
        turned = np.mod(_ANGLES - 0.07 * self.shape["heart_axis"] + np.pi / 6, 2 * np.pi) - np.pi / 6
        return _HEART_SPLINE(turned) * (1 + 0.05 * self.shape["heart_apex"] * np.cos(2 * (_ANGLES - 0.45)))

    def level(self, frame: Frame) -> np.ndarray:
        """Scale at which the growing heart reaches each pixel, float32 (H, W); infinite beyond the rib cage."""
        dx, dy = frame.x - np.float32(self.anchor[0]), frame.y - np.float32(self.anchor[1])
        limit = np.where(dx > 0, np.float32(self.reach[0]), np.float32(self.reach[1]))
        share = (dx / limit) ** 2
        crowding = 1 - share * share * share
        free = crowding > 1e-6
        dx = dx / np.cbrt(np.sqrt(np.where(free, crowding, 1)))
        radius = np.interp(np.arctan2(dy, dx), _ANGLES, self._radii).astype(np.float32)
        return np.where(free, np.hypot(dx, dy) / radius, np.float32(np.inf))

    def widest(self, scale: float, side: int) -> tuple[float, float]:
        """Distance from the midline and level of the heart's outermost point on a side."""
        limit = self.reach[0] if side == LEFT else self.reach[1]
        dx = np.maximum(side * scale * self._radii * np.cos(_ANGLES), 0)
        dx = dx / (1 + (dx / limit) ** 6) ** (1 / 6)
        at = int(np.argmax(dx))
        return float(dx[at]) + side * self.anchor[0], float(
            self.anchor[1] + scale * self._radii[at] * np.sin(_ANGLES[at])
        )


def solve_heart(heart: Heart, frame: Frame, area: float) -> float:
    """Scale at which the heart covers ``area`` percent of the picture: exact to half a pixel.

    Raises:
        ValueError: when the picture has no room for so large a heart.
    """
    wanted = max(1, round(area / 100 * frame.x.size))
    level = np.sort(heart.level(frame), axis=None)
    reachable = int(np.searchsorted(level, 4.0))
    if wanted >= reachable:
        raise ValueError(f"heart_area: found {area:g} percent, expected less than {100 * reachable / frame.x.size:.1f}")
    return float((level[wanted - 1] + level[wanted]) / 2)


@dataclass(frozen=True)
class Lung:
    """One lung: between mediastinum, rib cage and its half of the diaphragm.

    A lung's parameter ``t`` is the displacement of the diaphragm in body units, downwards.

    Args:
        side: ``LEFT`` or ``RIGHT``.
        shape: standardised shape coefficients (``dome_left``, ``dome_right``, ``cage``, ``knob``, ``trunk``).
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
    def _dome(self) -> float:
        """Depth of the costophrenic angle below the dome of the diaphragm."""
        return (
            0.135 + 0.018 * self.shape["dome_left"] if self.side == LEFT else 0.115 + 0.018 * self.shape["dome_right"]
        )

    @property
    def rest(self) -> float:
        """Level of the diaphragm's dome at ``t`` = 0, set by the depth of breath alone."""
        return (0.560 if self.side == LEFT else 0.580) + self.heart.descent

    @property
    def _room(self) -> float:
        """How far the diaphragm can go down in the picture."""
        return max(0.04, self.bottom - 0.02 - self.rest)

    @cached_property
    def _widest(self) -> tuple[float, float]:
        return self.heart.widest(self.heart_scale, self.side)

    def mediastinum(self, y: np.ndarray) -> np.ndarray:
        """Distance of mediastinum and hilum from the midline at each level."""
        border = _MEDIASTINUM[self.side](y * (ATRIA / self.heart.anchor[1]))
        if self.side == LEFT:
            border = border + (0.013 + 0.006 * self.shape["knob"]) * np.exp(-(((y - 0.168) / 0.035) ** 2))
            border = border + (0.007 + 0.004 * self.shape["trunk"]) * np.exp(-(((y - 0.30) / 0.05) ** 2))
        return border

    def medial(self, y: np.ndarray) -> np.ndarray:
        """Distance of the medial border from the midline at each level: mediastinum, and below the heart its shadow."""
        widest, level = self._widest
        below = np.maximum(y - level, 0)
        shadow = widest - (0.40 if self.side == LEFT else 0.25) * below * below / (below + 0.04)
        return np.maximum(self.mediastinum(y), np.where(y > level, shadow, 0)).astype(np.float32)

    def cage(self, y: np.ndarray) -> np.ndarray:
        """Distance of the inner chest wall from the midline at each level."""
        return _CAGE(y * (1 + 0.06 * self.shape["cage"]))

    def stretch(self, t: float) -> float:
        """Factor by which the side of the rib cage has moved out: one until the diaphragm nears the picture's edge."""
        excess = max(0.0, t - 0.75 * self._room)
        return 1.0 + 1.6 * excess**2 / (excess + 0.12)

    def wall(self, y: np.ndarray, t: float) -> np.ndarray:
        """Distance of the inner chest wall from the midline, moved outwards where the lung needs it."""
        return APEX + self.stretch(t) * (self.cage(y) - APEX)

    def floor(self, x: np.ndarray, t: float) -> np.ndarray:
        """Level of the diaphragm at each distance from the midline: a dome that falls to the costophrenic angle."""
        crest = 0.40 if self.side == LEFT else 0.34
        q = (x - 0.06) / (APEX - 0.06 + self.stretch(t) * (CAGE - APEX))
        lateral, medial = np.clip((q - crest) / (1 - crest), 0.0, 1.2), np.clip((crest - q) / crest, 0.0, 1.2)
        free, last = 0.75 * self._room, 0.25 * self._room
        shift = t if t < free else free + last * (1 - np.exp((free - t) / last))
        return (self.rest + shift) + self._dome * lateral**2.2 + 0.022 * medial * medial

    def covers(self, frame: Frame, t: float) -> np.ndarray:
        """Pixels inside the lung's outline, bool (H, W), including those that the heart hides."""
        x, y = self.side * frame.x, frame.y
        return (x > self.medial(y)) & (x < self.wall(y, t)) & (y < self.floor(x, t)) & (y > 0)


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
    wanted = max(1, round(area / 100 * frame.x.size))
    y = np.broadcast_to(frame.y, frame.x.shape)
    x = lung.side * frame.x
    candidates = (x > lung.medial(frame.y)) & (y > 0) & (heart_level >= lung.heart_scale)
    cage = np.broadcast_to(lung.cage(frame.y), x.shape)[candidates]
    x, y = x[candidates], y[candidates]

    def covered(t: float) -> int:
        return int(np.count_nonzero((x < APEX + lung.stretch(t) * (cage - APEX)) & (y < lung.floor(x, t))))

    low, high = -lung.rest - 0.2, 0.5
    while covered(high) < wanted:
        low, high = high, 2 * high
        if high > 8:
            name, most = "left_lung" if lung.side == LEFT else "right_lung", 100 * covered(high) / frame.x.size
            raise ValueError(f"{name}_area: found {area:g} percent, expected less than {most:.1f}")
    for _ in range(26):
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) >= wanted else (middle, high)
    return high
