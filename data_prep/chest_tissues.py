"""What lies in the beam besides the outlines of lungs and heart: body, bones, vessels, gas. Thickness maps.

All maps are in units of attenuation (dimensionless line integrals of the attenuation coefficient), shape (H, W),
float32, drawn in the body coordinates of :mod:`data_prep.chest_anatomy`. Only what lies within the border of a lung
depends on that lung's area; the rest belongs to the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter

from data_prep.chest_anatomy import LEFT, Frame, Lung

__all__ = ["airways", "body_outline", "bones", "breasts", "gastric_bubble", "ribs", "soft_tissue", "vessels"]


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 … 1 across a border: 0 below -width/2, 1 above width/2, smooth between."""
    share = np.clip(distance / width + 0.5, 0.0, 1.0).astype(np.float32)
    return share * share * (3 - 2 * share)


@lru_cache(maxsize=1)
def _outline() -> PchipInterpolator:
    knots = [
        (-0.8, 0.135), (-0.20, 0.125), (-0.13, 0.135), (-0.08, 0.175), (-0.04, 0.28), (0.00, 0.41), (0.05, 0.50),
        (0.12, 0.55), (0.20, 0.545), (0.30, 0.505), (0.42, 0.475), (0.60, 0.462), (0.80, 0.465), (1.10, 0.48), (1.6, 0.5),
    ]  # fmt: skip
    level, distance = np.array(knots).T
    return PchipInterpolator(level, distance)


def body_outline(y: np.ndarray, shape: Mapping[str, float]) -> np.ndarray:
    """Half width of neck, shoulders and trunk at each level."""
    shoulders = y + 0.025 * shape["shoulders"] * np.clip((0.3 - y) / 0.3, 0.0, 1.0)
    return _outline()(np.clip(shoulders, -0.8, 1.6)) * (1 + 0.045 * shape["girth"])


def soft_tissue(frame: Frame, shape: Mapping[str, float], lungs: Mapping[int, tuple[Lung, float]]) -> np.ndarray:
    """Body without air: an elliptic trunk, about 4.2 at its thickest.

    Args:
        frame: pixels.
        shape: standardised shape coefficients ``shoulders``, ``girth``, ``thickness``.
        lungs: lung and displacement of its diaphragm for each side: where the rib cage has moved out, the skin follows.
    """
    y = frame.y
    outline = np.empty_like(frame.x)
    for side, (lung, t) in lungs.items():
        half = np.maximum(body_outline(y, shape), np.where(y > 0.1, lung.wall(y, t) + 0.03, 0.0))
        outline = np.where(side * frame.x >= 0, half, outline)
    row = np.interp(y, [-0.3, -0.1, 0.05, 0.25, 0.6, 0.9], [0.62, 0.66, 0.80, 0.94, 1.0, 1.05])
    inside = np.clip(1 - np.abs(frame.x / outline) ** 2.4, 0.0, None) ** 0.5
    return (4.2 * (1 + 0.08 * shape["thickness"] + 0.05 * shape["girth"]) * row * inside).astype(np.float32)


def cage_depth(frame: Frame, lung: Lung, t: float) -> np.ndarray:
    """Path through one half of the chest cavity as a share of the trunk's thickness."""
    share = np.clip(lung.side * frame.x / (lung.wall(frame.y, t) + 0.004), 0.0, 1.0)
    front = np.interp(frame.y, [0.0, 0.04, 0.12, 0.30, 1.0], [0.22, 0.36, 0.55, 0.74, 0.74])
    return (front * np.sqrt(1 - share**2.6)).astype(np.float32)


def ribs(frame: Frame, lung: Lung, t: float, shape: Mapping[str, float]) -> np.ndarray:
    """Posterior and anterior arcs of one side's ribs.

    A rib runs around the cage by an angle; seen from the front its posterior half falls a little towards the side, its
    anterior half falls steeply towards the sternum, and they meet where the wall is tangent to the beam. All ribs of a
    half are one periodic function of the level relative to that course.
    """
    x, y = lung.side * frame.x, frame.y
    q = np.clip(x / (lung.wall(y, t) + 0.014), 0.0, 1.0)
    tangent = np.sqrt(1 - q**2)
    fall, drop = 0.125 + 0.015 * shape["rib_fall"], 0.17 + 0.02 * shape["rib_drop"]
    posterior = fall * (1 - tangent) - 0.03 * np.sin(np.pi * q)
    anterior = fall + drop * tangent**1.2 * (1 - 0.25 * tangent)
    total = np.zeros(frame.x.shape, np.float32)
    for course, strength, inner, thickness in ((posterior, 0.19, 0.10, 0.30), (anterior, 0.13, 0.52, 0.34)):
        origin = y - course
        phase = (origin + 0.050) / (0.0625 + 0.004 * shape["rib_space"])
        offset = np.abs(phase - np.floor(phase) - 0.5)
        edge = 1.6 * frame.pixel / 0.0625 + 0.05
        body = ramp(thickness / 2 - offset, edge)
        cortex = body * ramp(offset - thickness * 0.28, edge)
        present = ramp(q - inner, 0.12) * ramp(phase - 0.75, 0.5) * ramp(11.5 - phase, 2.0) * (x > 0)
        total += (strength * present * (0.75 * body + 0.45 * cortex) * (1 + 0.9 * q**8)).astype(np.float32)
    return total * np.where(x < lung.wall(y, t) + 0.016, 1, 0).astype(np.float32)


def _segment(
    frame: Frame, side: int, start: tuple[float, float], end: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Position along (0 … 1) and distance from a straight segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = side * frame.x - start[0], frame.y - start[1]
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return along, np.hypot(x - along * dx, y - along * dy)


def _clavicle(frame: Frame, side: int, shape: Mapping[str, float]) -> np.ndarray:
    x = side * frame.x
    s = (x - 0.032) / 0.43
    lift = 0.10 + 0.03 * shape["clavicles"] + 0.012 * side * shape["asymmetry"]
    course = 0.098 + 0.012 * shape["clavicles"] - lift * s + 0.022 * np.sin(2 * np.pi * s)
    half = 0.0125 + 0.007 * np.exp(-((s / 0.12) ** 2))
    edge = 1.6 * frame.pixel + 0.003
    offset = np.abs(frame.y - course)
    body = ramp(half - offset, edge) * ramp(s, 0.06) * ramp(1.02 - s, 0.06)
    return 0.20 * body + 0.09 * body * ramp(offset - 0.55 * half, edge)


def _shoulder(frame: Frame, side: int, shape: Mapping[str, float]) -> np.ndarray:
    x = side * frame.x - 0.035 * shape["scapula"]
    edge = 1.6 * frame.pixel + 0.006
    corners = [(0.365, 0.045), (0.50, 0.035), (0.52, 0.12), (0.425, 0.43), (0.395, 0.40)]
    blade = np.full(frame.x.shape, np.inf, np.float32)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        length = np.hypot(bx - ax, by - ay)
        blade = np.minimum(blade, ((bx - ax) * (frame.y - ay) - (by - ay) * (x - ax)) / length)
    head = 0.060 - np.hypot(x - 0.555, (frame.y - 0.10) * 0.9)
    along, distance = _segment(frame, side, (0.36, 0.06), (0.52, 0.015))
    spine = ramp(0.010 + 0.004 * along - distance, edge)
    shaft_along, shaft_distance = _segment(frame, side, (0.565, 0.12), (0.63, 0.60))
    shaft = ramp(0.032 - shaft_distance, edge) * (0.5 + 0.5 * ramp(shaft_distance - 0.018, edge))
    return (
        0.10 * ramp(blade, 0.012) * (1 + 1.1 * ramp(0.010 - blade, edge))
        + 0.30 * ramp(head, 0.02)
        + 0.12 * spine
        + 0.3 * shaft
    )


def _spine(frame: Frame, shape: Mapping[str, float]) -> np.ndarray:
    bend = 0.006 * shape["scoliosis"] * np.sin(5 * (frame.y - 0.1))
    x = frame.x - bend
    half = np.interp(frame.y, [-0.3, 0.0, 0.4, 1.0], [0.036, 0.038, 0.044, 0.056])
    phase = (frame.y + 0.4) / (0.052 + 0.012 * np.clip(frame.y, 0, 1))
    offset = np.abs(phase - np.floor(phase) - 0.5)
    waist = half * (0.93 + 0.14 * offset)
    column = ramp(waist - np.abs(x), 0.006 + 1.6 * frame.pixel)
    disc = ramp(offset - 0.41, 0.12)
    pedicles = np.exp(-((np.abs(x) - 0.62 * half) ** 2 / 0.007**2 + (offset / 0.16) ** 2))
    process = np.exp(-((x / 0.006) ** 2) - ((offset - 0.3) / 0.15) ** 2)
    bone = column * (0.30 - 0.13 * disc) + 0.12 * pedicles + 0.12 * process
    transverse = np.exp(-((offset / 0.14) ** 2)) * ramp(0.085 - np.abs(x), 0.02) * ramp(np.abs(x) - half, 0.01)
    return bone + 0.07 * transverse


def bones(frame: Frame, shape: Mapping[str, float]) -> np.ndarray:
    """Spine, sternum, clavicles, scapulae and humeral heads."""
    manubrium = 0.05 * ramp(0.045 - np.abs(frame.x), 0.02) * ramp(frame.y - 0.10, 0.03) * ramp(0.40 - frame.y, 0.08)
    total = _spine(frame, shape) + manubrium
    for side in (-1, 1):
        total = total + _clavicle(frame, side, shape) + _shoulder(frame, side, shape)
    return total.astype(np.float32)


def breasts(frame: Frame, shape: Mapping[str, float], female: bool) -> np.ndarray:
    """Soft shadows over the lower lungs, with a rounded lower edge."""
    size = max(0.0, 0.75 + 0.5 * shape["breast"]) if female else max(0.0, 0.12 * shape["breast"])
    total = np.zeros(frame.x.shape, np.float32)
    for side in (-1, 1):
        x = (side * frame.x - 0.235 - 0.01 * side * shape["asymmetry"]) / 0.165
        y = (frame.y - 0.475 - 0.03 * shape["breast_level"]) / 0.165
        y = np.where(y < 0, y * 0.55, y)
        total += (0.50 * size * np.clip(1 - (x * x + y * y), 0.0, None) ** 0.6).astype(np.float32)
    return total


def airways(frame: Frame, shape: Mapping[str, float]) -> np.ndarray:
    """Air in trachea and main bronchi, to be taken away."""
    shift = -0.008 * ramp(frame.y - 0.1, 0.1) * (1 + 0.5 * shape["knob"])
    tube = np.clip(1 - ((frame.x - shift) / 0.021) ** 2, 0.0, None) ** 0.5 * ramp(0.245 - frame.y, 0.03)
    total = 0.34 * tube
    for side, end in ((-1, (0.085, 0.32)), (1, (0.11, 0.315))):
        _, distance = _segment(frame, side, (0.0, 0.235), end)
        total = total + 0.16 * np.clip(1 - (distance / 0.014) ** 2, 0.0, None) ** 0.5
    return total.astype(np.float32)


def gastric_bubble(frame: Frame, shape: Mapping[str, float], size: float) -> np.ndarray:
    """Gas under the left dome, to be taken away where no lung lies; none when ``size`` is zero."""
    if size <= 0:
        return np.zeros(frame.x.shape, np.float32)
    x = (frame.x - 0.20 - 0.02 * shape["asymmetry"]) / (0.075 * size)
    y = (frame.y - 0.655) / (0.045 * size)
    folds = 0.25 * np.sin(5 * x + 3 * y) * np.sin(4 * y - 2 * x)
    return (0.55 * np.clip(1 - x * x - y * y + folds, 0.0, 1.0) ** 0.8).astype(np.float32)


def vessels(frame: Frame, side: int, rng: np.random.Generator) -> np.ndarray:
    """Branching pulmonary vessels of one side, thick at the hilum and fading to the periphery."""
    total = np.zeros(frame.x.shape, np.float32)
    if side == LEFT:
        hilum, fan = (0.085, 0.285), np.array([-80, -50, -25, 0, 25, 48, 68, 88])
    else:
        hilum, fan = (0.085, 0.32), np.array([-82, -55, -28, -5, 18, 42, 62, 80])
    angle = np.radians(fan + rng.normal(0, 7, fan.size))
    start = np.array(hilum) + rng.normal(0, 0.018, (fan.size, 2)) * [0.5, 1.6]
    calibre = 0.0085 * np.exp(rng.normal(0, 0.15, fan.size))
    steps = 14
    for generation in range(6):
        length = (0.105 * 0.84**generation) * np.exp(rng.normal(0, 0.25, angle.size))
        turn = rng.normal(0, 0.22, angle.size)
        along = np.linspace(0, 1, steps)[:, None]
        heading = angle + turn * along
        step = length / steps
        x = start[:, 0] + np.cumsum(step * np.cos(heading), axis=0)
        y = start[:, 1] + np.cumsum(step * np.sin(heading), axis=0)
        total += _stamp(frame, side, x, y, calibre * (1 - 0.22 * along), step)
        start = np.stack([x[-1], y[-1]], axis=1).repeat(2, axis=0)
        spread = np.abs(rng.normal(0.42, 0.14, (angle.size, 2))) * [-1, 1]
        angle = (heading[-1][:, None] + spread).reshape(-1)
        calibre = (calibre[:, None] * rng.uniform(0.66, 0.86, (calibre.size, 2))).reshape(-1)
    return total


def _stamp(frame: Frame, side: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Lay tubes of these radii along points, as blurred lines of the right attenuation."""
    height, width = frame.x.shape
    # body to pixel coordinates; the frame is an affine map, so two rows and two columns tell it
    per_row = float(frame.y[1, 0] - frame.y[0, 0])
    per_column = float(frame.x[0, 1] - frame.x[0, 0])
    lean = float(frame.x[1, 0] - frame.x[0, 0])
    row = (y - float(frame.y[0, 0])) / per_row
    column = (side * x - float(frame.x[0, 0]) - lean * row) / per_column
    mean_radius = float(radius.mean())
    sigma = max(0.55 * mean_radius / frame.pixel, 0.5)
    weight = np.broadcast_to(radius**2 * 9.0 * step / (frame.pixel**2), x.shape)
    weight = weight * np.exp(-np.clip(x - 0.2, 0, None) * 3.0)
    inside = (row >= 0) & (row < height - 1) & (column >= 0) & (column < width - 1)
    row, column, weight = row[inside], column[inside], weight[inside]
    r0, c0 = row.astype(int), column.astype(int)
    fr, fc = row - r0, column - c0
    flat = np.concatenate([r0 * width + c0, r0 * width + c0 + 1, (r0 + 1) * width + c0, (r0 + 1) * width + c0 + 1])
    share = np.concatenate([(1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc]) * np.tile(weight, 4)
    lines = np.bincount(flat, share, minlength=height * width).reshape(height, width)
    return gaussian_filter(lines.astype(np.float32), sigma, truncate=3)
