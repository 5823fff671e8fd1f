"""Soft tissue and air of the chest as attenuation maps: trunk, breasts, lungs with their vessels, airways, stomach gas.

All maps are dimensionless line integrals of the attenuation coefficient, float32 (H, W), in the body coordinates of
:mod:`data_prep.chest_anatomy`. The maps of air hold what it takes away from the trunk's attenuation. Only
:func:`lung_air` depends on the area of a lung (and :func:`trunk`, where the rib cage has moved out) and only
:func:`air_behind_heart` on that of the heart; the rest belongs to the body.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from data_prep.chest_anatomy import LEFT, RIGHT, Frame, Heart, Lung, curve, ramp, segment

__all__ = ["air_behind_heart", "airways", "breasts", "gastric_bubble", "lung_air", "trunk", "vessels"]

TRUNK = 4.2  # attenuation of an average trunk where it is thickest

_OUTLINE = curve([
    (-0.8, 0.150), (-0.30, 0.140), (-0.20, 0.165), (-0.15, 0.24), (-0.11, 0.35), (-0.06, 0.47), (0.0, 0.56),
    (0.10, 0.61), (0.20, 0.60), (0.30, 0.555), (0.42, 0.525), (0.60, 0.51), (0.80, 0.51), (1.10, 0.52), (1.6, 0.54),
])  # fmt: skip
_THICKNESS = curve([(-0.3, 0.60), (-0.1, 0.66), (0.05, 0.80), (0.25, 0.93), (0.6, 1.0), (0.9, 1.06)])
_LUNG_DEPTH = curve([(0.0, 0.24), (0.05, 0.36), (0.14, 0.56), (0.32, 0.73), (0.48, 0.69), (0.70, 0.61), (1.0, 0.56)])


def trunk(frame: Frame, shape: Mapping[str, float], lungs: Mapping[int, tuple[Lung, float]]) -> np.ndarray:
    """Neck, shoulders and trunk without any air in them.

    Args:
        frame: pixels.
        shape: standardised shape coefficients ``shoulders``, ``girth``, ``thickness``.
        lungs: lung and displacement of its diaphragm for each side: where the rib cage has moved out, the skin follows.
    """
    y = frame.y
    skin = _OUTLINE(y + 0.04 * shape["shoulders"] * np.clip((0.3 - y) / 0.3, 0, 1)) * (1.02 + 0.06 * shape["girth"])
    thickest = TRUNK * (1 + 0.08 * shape["thickness"] + 0.05 * shape["girth"])
    share = np.abs(frame.x) / skin.astype(np.float32)
    total = np.float32(thickest) * _THICKNESS(y) * np.sqrt(np.clip(1 - share**2.2, 0, None))
    for side, (lung, t) in lungs.items():
        if lung.stretch(t) > 1:
            shell = (
                2.0 * ramp(lung.wall(y, t) + 0.02 - side * frame.x, 0.02) * ramp(side * frame.x - lung.cage(y), 0.04)
            )
            total = np.maximum(total, shell * ramp(y - 0.04, 0.08))
    return total


def breasts(frame: Frame, shape: Mapping[str, float], female: bool) -> np.ndarray:
    """Soft shadows over the lower lungs with a rounded lower edge; shape coefficients ``breast``, ``breast_level``."""
    size = max(0.0, 0.65 + 0.45 * shape["breast"]) if female else max(0.0, 0.12 * shape["breast"])
    total = np.zeros_like(frame.x)
    for side in (LEFT, RIGHT):
        x = (side * frame.x - np.float32(0.235 + 0.01 * side * shape["asymmetry"])) / np.float32(0.165)
        y = (frame.y - np.float32(0.525 + 0.03 * shape["breast_level"])) / np.float32(0.165)
        y = np.where(y < 0, 0.55 * y, y)
        total += 0.70 * size * np.clip(1 - (x * x + y * y), 0, None) ** 0.55
    return total


def lung_air(
    frame: Frame, lung: Lung, t: float, hidden: np.ndarray, vessel: np.ndarray, mottle: np.ndarray
) -> np.ndarray:
    """Air of one lung.

    A border is sharp where it is tangent to the beam over a long way (diaphragm), soft where vessels and fat lie
    against it (mediastinum) or where it curves away (apex, side).

    Args:
        frame: pixels.
        lung: the lung.
        t: displacement of its diaphragm.
        hidden: share of the lung's depth that the heart leaves free.
        vessel: attenuation of the vessels of this side.
        mottle: texture of the lung, a factor around one.
    """
    x, y = lung.side * frame.x, frame.y
    wall = lung.wall(y, t)
    depth = _LUNG_DEPTH(y) * np.sqrt(1 - np.clip(x / (wall + 0.004), 0, 1) ** 2.6)
    medial = ramp(x - lung.medial(y), 0.022 + frame.pixel) * (0.70 + 0.30 * ramp(x - lung.mediastinum(y) - 0.04, 0.08))
    side = ramp(wall - x, 0.008 + frame.pixel)
    floor = ramp(lung.floor(x, t) - y, 0.006 + frame.pixel)
    share = depth * medial * side * floor * ramp(y, 0.016 + frame.pixel) * hidden
    return np.maximum(0.80 * TRUNK * share * mottle - vessel * np.minimum(4 * share, 1), 0)


def air_behind_heart(frame: Frame, heart: Heart, heart_level: np.ndarray, scale: float) -> np.ndarray:
    """Air of the lung behind the heart: more towards its border, none beside the spine and near the diaphragm."""
    rho = np.clip(heart_level / scale, 0, 1)
    low = heart.anchor[1] + 0.10 * scale
    present = ramp(low - frame.y, 0.16) * ramp(np.abs(frame.x) - 0.07, 0.05)
    return present * (0.30 * (1 - np.sqrt(1 - rho**3)) + 0.22 + 0.10 * ramp(frame.x, 0.02))


def airways(frame: Frame, shape: Mapping[str, float]) -> np.ndarray:
    """Air of trachea and main bronchi; the aortic knob pushes the trachea to the right."""
    y = frame.y
    shift = -0.008 * ramp(y - 0.1, 0.1) * (1 + 0.5 * shape["knob"])
    total = 0.34 * np.sqrt(np.clip(1 - ((frame.x - shift) / 0.021) ** 2, 0, None)) * ramp(0.245 - y, 0.03)
    for end in ((-0.085, 0.32), (0.11, 0.315)):
        _, distance = segment(frame.x, y, (0.0, 0.235), end)
        total += 0.16 * np.sqrt(np.clip(1 - (distance / 0.014) ** 2, 0, None))
    return total


def gastric_bubble(frame: Frame, shape: Mapping[str, float], level: float, size: float) -> np.ndarray:
    """Gas under the left dome of the diaphragm, whose level is ``level``; none when ``size`` is zero."""
    if size <= 0:
        return np.zeros_like(frame.x)
    x = (frame.x - np.float32(0.20 + 0.02 * shape["asymmetry"])) / np.float32(0.075 * size)
    y = (frame.y - np.float32(level + 0.03 + 0.045 * size)) / np.float32(0.045 * size)
    folds = 0.25 * np.sin(5 * x + 3 * y) * np.sin(4 * y - 2 * x)
    # the patient stands: fluid lies level below the gas
    return 0.9 * np.clip(1 - x * x - y * y + folds, 0, 1) ** 0.7 * ramp(0.45 - y, 0.5)


def mottle(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Texture of what is too small to be drawn, a factor around one, on a lattice of 1/96 of the picture."""
    lattice = rng.standard_normal((97, 97), np.float32)
    lattice = 2 * gaussian_filter(lattice, 0.6) + gaussian_filter(lattice, 2.0)
    height, width = frame.x.shape
    return 1 + np.float32(0.018) * zoom(lattice, (height / 97, width / 97), order=1, grid_mode=True, mode="nearest")


def vessels(frame: Frame, side: int, descent: float, rng: np.random.Generator) -> np.ndarray:
    """Pulmonary vessels of one side: a hilum, and branches that divide, thin out and fade to the periphery."""
    hilum = (0.095, 0.270 + 0.5 * descent) if side == LEFT else (0.085, 0.305 + 0.5 * descent)
    x, y = side * frame.x - np.float32(hilum[0]), frame.y - np.float32(hilum[1])
    total = 0.28 * np.exp(-((x / 0.035) ** 2)) * np.exp(-(np.where(y < 0, y / 0.055, y / 0.085) ** 2))
    fan = np.array([-84, -66, -45, -20, 5, 25, 42, 56, 68, 80, 94])
    angle = np.radians(fan + rng.normal(0, 7, fan.size))
    start = np.array(hilum) + rng.normal(0, 0.016, (fan.size, 2)) * [0.6, 1.6]
    calibre = 0.0115 * np.exp(rng.normal(0, 0.15, fan.size)) * np.interp(fan, [-84, 0, 60, 92], [0.75, 0.9, 1.2, 1.0])
    steps = 14
    along = np.linspace(0, 1, steps)[:, None]
    for generation in range(7):
        length = (0.084 * 0.90**generation) * np.exp(rng.normal(0, 0.3, angle.size))
        heading = angle + rng.normal(0, 0.25, angle.size) * along
        px = start[:, 0] + np.cumsum(length / steps * np.cos(heading), axis=0)
        py = start[:, 1] + np.cumsum(length / steps * np.sin(heading), axis=0)
        total += _tubes(frame, side, px, py, calibre * (1 - 0.25 * along), length / steps)
        start = np.stack([px[-1], py[-1]], axis=1).repeat(2, axis=0)
        spread = np.abs(rng.normal(0.40, 0.14, (angle.size, 2))) * [-1, 1]
        angle = (heading[-1][:, None] + spread).reshape(-1)
        calibre = (0.78 * calibre[:, None] * rng.uniform(0.82, 1.05, (calibre.size, 2))).reshape(-1)
    return np.minimum(total, np.float32(1.2))


def _tubes(frame: Frame, side: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Tubes along points, given their radius and the step between points; drawn as lines blurred to the mean width.

    The integral across a tube is proportional to its radius squared; the blur preserves it on every grid.
    """
    height, width = frame.x.shape
    # the frame is an affine map of rows and columns
    lean = float(frame.x[1, 0] - frame.x[0, 0])
    row = (y - float(frame.y[0, 0])) / float(frame.y[1, 0] - frame.y[0, 0])
    column = (side * x - float(frame.x[0, 0]) - lean * row) / float(frame.x[0, 1] - frame.x[0, 0])
    weight = np.broadcast_to(30.0 * radius**2 * step / frame.pixel**2, x.shape)
    inside = (row >= 0) & (row < height - 1) & (column >= 0) & (column < width - 1)
    row, column, weight = row[inside], column[inside], weight[inside]
    upper, left = row.astype(int), column.astype(int)
    below, right = row - upper, column - left
    corner = upper * width + left
    pixels = np.concatenate([corner, corner + 1, corner + width, corner + width + 1])
    shares = np.concatenate([(1 - below) * (1 - right), (1 - below) * right, below * (1 - right), below * right])
    lines = np.bincount(pixels, shares * np.tile(weight, 4), minlength=height * width).reshape(height, width)
    sigma = max(0.55 * float(radius.mean()) / frame.pixel, 0.5)
    return gaussian_filter(lines.astype(np.float32), sigma, truncate=3)
