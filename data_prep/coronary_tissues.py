"""Hounsfield units of a coronary artery and of what lies around it on a straightened CT image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.coronary_vessel import WALL, Grid, Points, Vessel, smooth_step
from data_prep.ct import smooth_field

__all__ = ["draw_scan", "draw_surroundings", "plain", "surroundings", "vessel_hu"]

FAT = -95.0


def plain(value: float, digits: int = 5) -> float:
    """A drawn number as it stands in a datalist: rounded, and no longer numpy's."""
    return round(float(value), digits)


def draw_scan(rng: np.random.Generator) -> dict[str, float]:
    """Noise of the scan, of the contrast in the lumen and of the plaques' tissue (``fibrous`` and ``lipid``, HU)."""
    return {
        "lumen": plain(rng.uniform(320, 450), 3),  # HU at the ostium
        "fall": plain(rng.uniform(0.08, 0.24)),  # share lost by the end
        "psf": plain(rng.uniform(0.36, 0.52)),  # mm
        "noise": plain(rng.uniform(19, 30), 4),  # HU
        "grain": plain(rng.uniform(0.26, 0.36)),  # mm
        "fibrous": plain(rng.uniform(80, 125), 3),
        "lipid": plain(rng.uniform(25, 60), 3),
        "core": plain(rng.uniform(0.0, 0.75), 4),  # share of a plaque's size that is lipid core
    }


def draw_surroundings(rng: np.random.Generator) -> dict[str, Any]:
    """Noise of what lies around the vessel: muscle and a chamber, pericardium, veins, branches and the aorta."""
    side = int(rng.integers(2))

    def number(low: float, high: float) -> float:
        return plain(rng.uniform(low, high))

    def border(near: float, far: float) -> list[float]:
        return [number(near, far) for _ in range(7)]

    def tubes(count: int, low: tuple[float, ...], high: tuple[float, ...]) -> list[list[float]]:
        return [[number(a, b) for a, b in zip(low, high)] for _ in range(count)]

    return {
        "muscle_angle": plain(np.pi * side + rng.normal(0, 0.3)),
        "muscle": [value - (i == 0) for i, value in enumerate(border(1.6, 6.5))],
        "muscle_hu": number(80, 125),
        "muscle_from": number(-0.25, 0.45),
        "muscle_to": number(0.65, 1.4),
        "chamber": number(2.0, 9.0),  # mm of muscle before the blood
        "chamber_hu": number(150, 380),
        "pericardium_angle": plain(np.pi * (1 - side) + rng.normal(0, 0.3)),
        "pericardium": border(3.8, 9.5),
        "beyond": number(0, 1),
        "aorta": [number(-1.5, 2.5), number(-0.25, 0.25), number(-0.03, 0.08)],
        # at, direction, slope, radius, length
        "branches": tubes(int(rng.integers(1, 5)), (0.05, 0, 0.4, 0.45, 3.0), (0.9, 6.28, 1.6, 0.95, 9.0)),
        # from, to, angle at either end, distance, radius, HU
        "veins": tubes(
            int(rng.integers(0, 3)), (-0.2, 0.3, 0, -0.9, 3.0, 0.7, 90), (0.7, 1.2, 6.28, 0.9, 6.0, 1.4, 260)
        ),
        # at, angle, distance, radius, half length, HU
        "spots": tubes(int(rng.integers(6, 18)), (0.0, 0, 2.6, 0.35, 0.5, -20), (1.0, 6.28, 8.0, 0.9, 4.5, 220)),
    }


def vessel_hu(vessel: Vessel, at: Points, margins: Mapping[str, np.ndarray], scan: Mapping[str, float]) -> np.ndarray:
    """HU of lumen, plaques and wall before the scanner blurs them; NaN outside the wall."""
    x = at.s / vessel.length
    soft, hard = margins["noncalcified_plaque"], margins["calcified_plaque"]
    hu = np.full(at.outside.shape, np.nan)
    wall = np.minimum(np.minimum(soft, hard), at.outside)
    hu[wall < WALL] = 55.0
    depth = np.clip(-soft / 0.8, 0, 1)  # 0 at the border of a plaque, 1 deep inside
    core = smooth_step((depth - (1 - scan["core"])) / 0.3)
    tissue = scan["fibrous"] + (scan["lipid"] - scan["fibrous"]) * core
    np.copyto(hu, tissue, where=soft < 0)
    peak = np.array([max(n["peak"] for n in lesion["calcified_plaque"]) for lesion in vessel.lesions])
    ends = np.array([high for _, high in vessel.thirds[:-1]])
    here = peak[np.searchsorted(ends, np.clip(x, 0, 1))]
    np.copyto(hu, 560 + (here - 560) * np.sqrt(np.clip(-hard / 0.5, 0, 1)), where=hard < 0)
    blood = scan["lumen"] * (1 - scan["fall"] * x) * np.ones_like(hu)
    np.copyto(hu, blood, where=at.outside < 0)
    return hu


def surroundings(
    vessel: Vessel, grid: Grid, noise: Mapping[str, Any], scan: Mapping[str, float], texture_seed: int
) -> np.ndarray:
    """HU of everything but the vessel, on a grid."""
    rng = np.random.default_rng([texture_seed, 1])
    cu, cv = vessel.axis(grid.s)
    u, v = grid.u - 0.7 * cu, grid.v - 0.7 * cv
    x = grid.s / vessel.length
    # structures that run beside the vessel look drawn out along it
    long = smooth_field(rng, grid.shape, grid.spacing, [4.0, *[0.9] * (len(grid.shape) - 1)])
    fine = smooth_field(rng, grid.shape, grid.spacing, 0.7)
    hu = FAT + 11 * long + 7 * fine
    # strands of tissue in the fat
    hu = hu + 95 * smooth_step((long + 0.35 * fine - 1.75) / 0.9)

    for at, angle, distance, radius, half, value in noise["spots"]:
        du, dv = u - distance * np.cos(angle), v - 0.35 * distance * np.sin(angle)
        ds = (grid.s - at * vessel.length) / half
        inside = (du**2 + dv**2) / radius**2 + ds**2
        hu = _over(hu, value, (1.2 - inside) / 0.5)
    for begin, end, angle, turn, distance, radius, value in noise["veins"]:
        t = (x - begin) / (end - begin)
        a = angle + turn * t
        reach = distance * (1 + 0.25 * np.sin(5 * t + angle))
        r = np.hypot(u - reach * np.cos(a), v - 0.4 * reach * np.sin(a))
        hu = _over(hu, value, np.minimum((radius - r) / 0.3 + 0.5, np.minimum(t, 1 - t) * 40))

    away = u * np.cos(noise["pericardium_angle"]) + v * np.sin(noise["pericardium_angle"])
    beyond = away - _border(noise["pericardium"], x) + 0.25 * long
    outer = -820.0 if noise["beyond"] < 0.45 else FAT - 6 if noise["beyond"] < 0.85 else 60.0
    hu = _over(hu, outer, beyond / 0.4 - 2)
    hu = _over(hu, 15.0, 1.25 - np.abs(beyond - 0.2) / 0.45)

    toward = u * np.cos(noise["muscle_angle"]) + v * np.sin(noise["muscle_angle"])
    begin, end = noise["muscle_from"], noise["muscle_to"]
    ends = 5 * (1 - smooth_step((x - begin) / 0.18) * smooth_step((end - x) / 0.18))
    depth = toward - _border(noise["muscle"], x) - ends + 0.22 * long
    muscle = noise["muscle_hu"] + 8 * long + 5 * fine
    hu = _over(hu, muscle, depth / 0.5 + 0.5)
    hu = _over(hu, noise["chamber_hu"] + 6 * long, (depth - noise["chamber"] + 0.5 * long) / 0.8)

    for at, direction, slope, radius, length in noise["branches"]:
        ahead = grid.s - at * vessel.length
        gone = np.clip(ahead, 0, None) * slope
        r = np.hypot(grid.u - cu - gone * np.cos(direction), grid.v - cv - 0.5 * gone * np.sin(direction))
        size = radius * (1 - 0.35 * np.clip(ahead / length, 0, 1)) * (1 + 0.25 * slope)
        inside = np.minimum((size - r) / 0.2 + 0.5, np.minimum(ahead + 0.5, (length - ahead) / 1.5))
        hu = _over(hu, 0.9 * scan["lumen"], inside)
    a, tilt, bend = noise["aorta"]
    return _over(hu, scan["lumen"], (a + tilt * u + bend * (u * u + v * v) - grid.s) / 0.5)


def _over(hu: np.ndarray, value: Any, cover: np.ndarray) -> np.ndarray:
    """Lay a tissue over others: where ``cover`` is above one it hides them, below zero it is not there."""
    return hu + (value - hu) * np.clip(cover, 0, 1)


def _border(knots: list[float], x: np.ndarray) -> np.ndarray:
    """A smooth border along the vessel through evenly spaced knots."""
    t = np.clip(x, 0, 1) * (len(knots) - 1)
    i = np.minimum(t.astype(int), len(knots) - 2)
    w = smooth_step(t - i)
    k = np.asarray(knots)
    return k[i] * (1 - w) + k[i + 1] * w
