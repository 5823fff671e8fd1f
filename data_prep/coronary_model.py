"""The causal model of the coronary phantom: who has which plaque, and what it does to the lumen.

.. code-block:: text

    burden ──> calcified plaque, non-calcified plaque (in each third)
    size of the vessel, taper ──> healthy lumen ──> lumen (in each third)
    calcified plaque, non-calcified plaque, remodelling index ──> lumen of the same third

For the third r, with standard normal noise e and the patient's burden b, which is not measured:

    plaque_r = 0                               where  a b + sqrt(1 - a²) e1 < threshold_r
             = scale exp(0.35 b + 0.5 e2)      else
    lumen_r  = healthy_r exp(0.06 e3 - (1 - m_r) (calcified_r + noncalcified_r) / healthy_r)

so a square millimetre of plaque takes ``1 - m`` square millimetres of lumen, ``m`` being the remodelling index: at
``m`` = 1 the vessel has widened by all that the plaque takes. Plaques do not cause each other; they correlate through
the burden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

from data_prep.coronary_tissues import draw_scan, draw_surroundings, plain
from data_prep.coronary_vessel import Band, Vessel

__all__ = ["THIRDS", "draw", "factual", "lumen_loss"]

THIRDS = ("proximal", "mid", "distal")
PRESENT = {"calcified_plaque": (0.60, 0.50, 0.34), "noncalcified_plaque": (0.64, 0.52, 0.38)}  # share of cases by third
SCALE = {  # median where present, by dimensions of the image: mm² and mm³
    2: {"calcified_plaque": 3.2, "noncalcified_plaque": 7.0},
    3: {"calcified_plaque": 7.0, "noncalcified_plaque": 26.0},
}
SHARED = 0.7  # correlation of a plaque's liability with the burden


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """All exogenous noise of a case: plain numbers."""

    def normal() -> float:
        return plain(np.clip(rng.normal(), -2.3, 2.3))

    def waves(rows: int, amplitude: float, shortest: float, longest: float, count: int) -> list[list[list[float]]]:
        return [
            [
                [
                    round(amplitude * abs(normal()) / count**0.5, 5),
                    plain(np.exp(rng.uniform(np.log(shortest), np.log(longest))), 4),
                    plain(rng.uniform(0, 2 * np.pi)),
                ]
                for _ in range(count)
            ]
            for _ in range(rows)
        ]

    steps = int(rng.integers(0, 3))
    vessel = {
        "length": plain(rng.uniform(80, 160), 3),
        "radius": plain(np.clip(1.72 * np.exp(0.13 * normal()), 1.25, 2.2)),
        "taper": plain(rng.uniform(0.46, 0.68)),
        "branch": plain(rng.uniform(0.15, 0.6)),
        "wiggle": waves(1, 0.045, 7, 40, 5),
        "outline": waves(4, 0.05, 9, 35, 4),
        "wobble": waves(2, 0.30, 18, 90, 3),
        "rough": waves(1, 0.12, 3, 9, 3),
        "steps": [[plain(x) for x in rng.uniform(0.08, 0.92, steps)], [plain(x) for x in rng.normal(0, 0.22, steps)]],
    }
    lesions = []
    for _ in THIRDS:
        site = float(rng.uniform(0.25, 0.75))
        angle = float(np.pi * rng.integers(2) + rng.normal(0, 0.3))
        lesions.append(
            {
                "site": round(site, 5),
                "angle": round(angle, 5),
                "eccentricity": plain(rng.uniform(0.35, 0.8)),
                "reach": plain(rng.uniform(2.0, 5.0)),
                "calcified_plaque": [_calcium(rng, angle, i) for i in range(int(rng.integers(2, 6)))],
                "noncalcified_plaque": [_soft(rng, angle, i) for i in range(int(rng.integers(1, 4)))],
            }
        )
    noise = {
        "burden": normal(),
        **{f"{structure}_{name}": [normal(), normal()] for structure in PRESENT for name in THIRDS},
        **{f"lumen_{name}": normal() for name in THIRDS},
        "remodelling": [plain(np.clip(rng.normal(0.40, 0.28), -0.2, 1.1)) for _ in THIRDS],
    }
    exogenous = {
        "vessel": vessel,
        "lesions": lesions,
        "noise": noise,
        "surroundings": draw_surroundings(rng),
        "scan": draw_scan(rng),
        "texture_seed": int(rng.integers(2**31)),
    }
    vessel["diffuse"] = plain(rng.uniform(0.2, 0.35))  # share of a narrowing that is not at the lesions
    return exogenous


def _calcium(rng: np.random.Generator, angle: float, i: int) -> dict[str, float]:
    spread = 1.0 if i == 0 else 5.0
    return {
        "shift": plain(rng.normal(0, spread)),
        "angle": round(angle + float(rng.normal(0, 0.3) + np.pi * (i > 0 and rng.uniform() < 0.25)), 5),
        "length": plain(rng.uniform(1.6, 4.2)),
        "width": plain(rng.uniform(0.9, 1.6)),
        "thickness": plain(rng.uniform(0.55, 0.95)),
        "depth": plain(rng.uniform(0.0, 0.35)),
        "delay": plain(i * rng.uniform(0.1, 0.4)),
        "peak": plain(rng.uniform(680, 1300), 2),
    }


def _soft(rng: np.random.Generator, angle: float, i: int) -> dict[str, float]:
    return {
        "shift": plain(rng.normal(0, 1.5 if i == 0 else 6.0)),
        "angle": round(angle + float(rng.normal(0, 0.35)), 5),
        "length": plain(rng.uniform(3.0, 7.5)),
        "width": plain(rng.uniform(1.5, 2.6)),
        "thickness": plain(rng.uniform(0.8, 1.3)),
        "depth": 0.0,
        "delay": plain(i * rng.uniform(0.15, 0.5)),
    }


def factual(exogenous: Mapping[str, Any], dims: int) -> dict[str, dict[Band, float]]:
    """The causal model applied to the noise: area in mm² (volume in mm³) of each structure in each third."""
    vessel, noise = Vessel(exogenous), exogenous["noise"]
    found: dict[str, dict[Band, float]] = {}
    for structure, shares in PRESENT.items():
        found[structure] = {}
        for name, share, third in zip(THIRDS, shares, vessel.thirds):
            own, amount = noise[f"{structure}_{name}"]
            liability = SHARED * noise["burden"] + (1 - SHARED**2) ** 0.5 * own
            size = SCALE[dims][structure] * np.exp(0.35 * noise["burden"] + 0.5 * amount)
            found[structure][third] = float(size) if liability > norm.ppf(1 - share) else 0.0
    found["lumen"] = {}
    for name, third in zip(THIRDS, vessel.thirds):
        loss = lumen_loss(exogenous, dims, third, sum(found[structure][third] for structure in PRESENT))
        healthy = _healthy(vessel, dims, third)
        found["lumen"][third] = float(healthy * np.exp(0.06 * noise[f"lumen_{name}"] - loss))
    return found


def lumen_loss(exogenous: Mapping[str, Any], dims: int, band: Band, plaque: float) -> float:
    """Decrease of the logarithm of a band's lumen through plaque of this area (volume), positive when it narrows."""
    vessel = Vessel(exogenous)
    shares = [max(0.0, min(band[1], high) - max(band[0], low)) for low, high in vessel.thirds]
    index = float(np.average(exogenous["noise"]["remodelling"], weights=shares))
    return (1 - index) * plaque / _healthy(vessel, dims, band)


def _healthy(vessel: Vessel, dims: int, band: Band) -> float:
    s = (np.arange(200) + 0.5) / 200 * (band[1] - band[0]) * vessel.length + band[0] * vessel.length
    radius = vessel.healthy_radius(s)
    section = 2 * radius if dims == 2 else np.pi * radius**2
    return float(section.mean() * (band[1] - band[0]) * vessel.length)
