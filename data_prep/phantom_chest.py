"""A procedural chest radiograph with a known causal model: a phantom whose true counterfactuals can be rendered.

.. code-block:: text

    sex, age ──> body size ──> left_lung_area, right_lung_area, heart_area
         age ──> depth of breath (lungs up, heart down), heart_area

Body size and depth of breath are not variables of the datalist: each is the effect of its causes plus exogenous noise.
The areas share them as causes, and the left lung shares a part of the heart's noise, so the areas correlate; but no
area causes another, and an action on one leaves the others as they are. A case whose areas lie outside of ``AREAS`` is
drawn anew.

``sample`` draws a case's variables and all its exogenous noise; ``render`` is a pure function of the two. So the
*true counterfactual* of a case is the picture rendered from other variables and the same exogenous noise:

    >>> phantom = ChestPhantom(size=64)
    >>> variables, exogenous = phantom.sample(seed=0)
    >>> image, label = phantom.render(variables, exogenous)
    >>> variables, image, label = phantom.counterfactual(variables, exogenous, {"left_lung_area": 9.0})
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep import chest_tissues as tissues
from data_prep.chest_anatomy import LEFT, RIGHT, Frame, Heart, Lung, body_frame, ramp, solve_heart, solve_lung
from data_prep.chest_bones import ribs, skeleton
from data_prep.xray import expose, lead_letter, shutter

__all__ = ["ChestPhantom"]

# percent of the picture; within these, any case's area fits into any other case's body
AREAS = {"left_lung_area": (5.0, 20.5), "right_lung_area": (6.5, 24.5), "heart_area": (5.0, 16.5)}
SHAPE = (
    "heart_axis", "heart_apex", "heart_height", "heart_x", "dome_left", "dome_right", "cage", "knob", "trunk",
    "shoulders", "girth", "thickness", "rib_fall", "rib_drop", "rib_space", "clavicles", "scapula", "scoliosis",
    "breast", "breast_level", "asymmetry",
)  # fmt: skip


class ChestPhantom:
    """Chest radiographs of ``size`` x ``size`` pixels.

    Args:
        size: pixels along each side, 32 or more.
    """

    labels: Mapping[str, int] = {"background": 0, "left_lung": 1, "right_lung": 2, "heart": 3}

    def __init__(self, size: int = 64) -> None:
        if size < 32:
            raise ValueError(f"ChestPhantom: size is {size}, expected 32 or more")
        self.size = int(size)
        self.supersampling = max(1, min(3, 512 // self.size))

    def sample(self, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Draw a case.

        Returns:
            The variables (areas in percent of the picture, age in years, sex 0 = F or 1 = M) and the exogenous noise, a
            dict of plain numbers that JSON can carry.
        """
        rng = np.random.default_rng([seed, 0])

        def normal() -> float:
            return round(float(np.clip(rng.normal(), -2.3, 2.3)), 6)

        exogenous: dict[str, Any] = {
            "texture_seed": int(rng.integers(2**31)),
            "shape": {name: normal() for name in SHAPE},
            "view": {"x": normal(), "y": normal(), "width": normal(), "tilt": normal()},
            "exposure": {name: normal() for name in ("level", "width", "gamma", "scatter", "noise", "bone", "white")},
            "film": round(float(rng.uniform()), 6),
            "bubble": round(float(max(0.0, rng.uniform(-0.8, 1.3))), 6),
        }
        exogenous["shutter"] = [round(float(m), 6) for m in np.clip(rng.normal(-0.03, 0.03, 4), 0, 0.04)]
        exogenous["marker"] = None
        if rng.uniform() < 0.4:
            letter, inset = ("R", 0.03) if rng.uniform() < 0.7 else ("L", 0.87)
            x, y, height = inset + rng.uniform(0, 0.08), rng.uniform(0.03, 0.09), rng.uniform(0.035, 0.055)
            exogenous["marker"] = {"letter": letter, "x": round(x, 6), "y": round(y, 6), "height": round(height, 6)}
        sex = int(rng.integers(2))
        age = round(float(np.clip(57 + 16 * rng.normal(), 20, 90)), 1)
        while True:
            exogenous["noise"] = {name: normal() for name in ("body", "inspiration", *AREAS)}
            areas = self._areas(age, sex, exogenous)
            if all(low <= areas[name] <= high for name, (low, high) in AREAS.items()):
                return {**areas, "age": age, "sex": float(sex)}, exogenous

    def render(self, variables: Mapping[str, float], exogenous: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The radiograph, float32 (H, W) in [0, 1], and its label map, uint8 (H, W), of a case.

        Raises:
            ValueError: when a variable is missing, or the picture has no room for an area that is asked for.
        """
        _check(variables)
        shape = exogenous["shape"]
        pixels = self._frame(variables, exogenous, self.size)
        heart = Heart(shape, 0.42 * self._breath(variables["age"], exogenous))
        level = heart.level(pixels)
        scale = solve_heart(heart, pixels, variables["heart_area"])
        label = np.zeros((self.size, self.size), np.uint8)
        lungs: dict[int, tuple[Lung, float]] = {}
        for side, name in ((LEFT, "left_lung"), (RIGHT, "right_lung")):
            lung = Lung(side, shape, heart, scale, pixels.bottom)
            t = solve_lung(lung, pixels, level, variables[f"{name}_area"])
            lungs[side] = (lung, t)
            label[lung.covers(pixels, t)] = self.labels[name]
        label[level < scale] = self.labels["heart"]

        fine = self._frame(variables, exogenous, self.size * self.supersampling)
        attenuation, scatter = self._attenuation(variables, exogenous, fine, heart, scale, lungs)
        noise = np.random.default_rng([exogenous["texture_seed"], 9]).standard_normal(label.shape, np.float32)
        image = expose(attenuation, scatter, noise, self._exposure(exogenous), self.supersampling)
        return shutter(image, exogenous["shutter"]), label

    def counterfactual(
        self, variables: Mapping[str, float], exogenous: Mapping[str, Any], do: Mapping[str, float]
    ) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """The true counterfactual: variables after the action with their descendants recomputed, picture, label map.

        Raises:
            ValueError: when an unknown variable is acted upon, or the picture has no room for an area.
        """
        unknown = set(do) - set(variables)
        if unknown:
            raise ValueError(f"ChestPhantom: do() names {sorted(unknown)}, expected some of {sorted(variables)}")
        after = {**variables, **do}
        before_areas = self._areas(variables["age"], variables["sex"], exogenous)
        after_areas = self._areas(after["age"], after["sex"], exogenous)
        for name in AREAS:
            # the noise is multiplicative, so the factual value carries it; if the causes do not change, nothing does
            if name not in do and before_areas[name] != after_areas[name]:
                after[name] = variables[name] * after_areas[name] / before_areas[name]
        return after, *self.render(after, exogenous)

    @staticmethod
    def _body(age: float, sex: float, exogenous: Mapping[str, Any]) -> float:
        """Logarithm of the body's size in the picture."""
        return 0.082 * exogenous["noise"]["body"] + 0.03 * (sex - 0.5) - 0.0004 * (age - 57)

    @staticmethod
    def _breath(age: float, exogenous: Mapping[str, Any]) -> float:
        """Depth of breath: logarithm of the lungs' size relative to the body."""
        return 0.20 * exogenous["noise"]["inspiration"] - 0.0010 * (age - 57)

    def _areas(self, age: float, sex: float, exogenous: Mapping[str, Any]) -> dict[str, float]:
        noise = exogenous["noise"]
        frame = 2 * self._body(age, sex, exogenous) + 0.03 * exogenous["view"]["width"]
        breath = self._breath(age, exogenous)
        left = 0.085 * noise["left_lung_area"] - 0.03 * noise["heart_area"]
        logs = {
            "left_lung_area": math.log(11.9) + frame + breath + left,
            "right_lung_area": math.log(14.7) + frame + breath + 0.06 * noise["right_lung_area"],
            "heart_area": math.log(9.2) + frame - 0.5 * breath + 0.08 * noise["heart_area"] + 0.0025 * (age - 57),
        }
        return {name: round(math.exp(value), 6) for name, value in logs.items()}

    def _frame(self, variables: Mapping[str, float], exogenous: Mapping[str, Any], size: int) -> Frame:
        view = exogenous["view"]
        return body_frame(
            size,
            scale=math.exp(self._body(variables["age"], variables["sex"], exogenous)),
            width=math.exp(0.03 * view["width"]),
            centre=0.505 + 0.016 * view["x"],
            top=0.106 + 0.022 * view["y"],
            tilt=0.018 * view["tilt"],
        )

    @staticmethod
    def _exposure(exogenous: Mapping[str, Any]) -> dict[str, float]:
        """Physical parameters of the exposure: between a digital detector (film 0) and a film's flat curve and fog."""
        e, film = exogenous["exposure"], exogenous["film"]
        return {
            "level": 2.40 + 0.20 * e["level"] - 0.55 * film,
            "width": (2.1 + 0.5 * film) * math.exp(0.10 * e["width"]),
            "gamma": math.exp(0.15 * e["gamma"]),
            "noise": 0.005 * math.exp(0.35 * e["noise"]),
            "blur": 0.0012,
            "black": 0.02 + 0.22 * film,
            "white": min(1.0, 0.93 + 0.04 * e["white"]),
            "scatter": 0.020 * math.exp(0.3 * e["scatter"]),
            "bone": (1.25 - 0.35 * film) * math.exp(0.15 * e["bone"]),
        }

    def _attenuation(
        self,
        variables: Mapping[str, float],
        exogenous: Mapping[str, Any],
        frame: Frame,
        heart: Heart,
        scale: float,
        lungs: Mapping[int, tuple[Lung, float]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Line integrals and scattered intensity, each of the frame's shape."""
        shape, exposure = exogenous["shape"], self._exposure(exogenous)
        texture = exogenous["texture_seed"]
        level = heart.level(frame)
        beside_heart = ramp(level / scale - 1, 0.06)
        mottle = tissues.mottle(frame, np.random.default_rng([texture, 3]))
        air = tissues.airways(frame, shape)
        air += tissues.air_behind_heart(frame, heart, level, scale) * (1 - beside_heart)
        bone = skeleton(frame, shape)
        bubble = tissues.gastric_bubble(frame, shape, lungs[LEFT][0].rest, exogenous["bubble"]) * beside_heart
        for side, (lung, t) in lungs.items():
            columns, half = frame.half(side)
            vessel = tissues.vessels(
                half, side, heart.descent, np.random.default_rng([texture, 1 if side == LEFT else 2])
            )
            filled = tissues.lung_air(half, lung, t, beside_heart[:, columns], vessel, mottle[:, columns])
            air[:, columns] += filled
            bubble[:, columns] *= np.clip(1 - 2 * filled, 0, 1)
            bone[:, columns] += ribs(half, lung, t, level[:, columns] < scale, shape)
        density = exposure["bone"] * math.exp(-0.003 * (variables["age"] - 57))
        soft = tissues.trunk(frame, shape, lungs) + tissues.breasts(frame, shape, variables["sex"] < 0.5)
        attenuation = np.maximum(soft - air - bubble, 0) + np.float32(density) * bone
        scatter = np.float32(exposure["scatter"]) * ramp(soft - 0.4, 0.8)
        if exogenous["marker"] is not None:
            attenuation += lead_letter(attenuation.shape[0], **exogenous["marker"])
        return attenuation, scatter


def _check(variables: Mapping[str, float]) -> None:
    lacking = [name for name in (*AREAS, "age", "sex") if name not in variables]
    if lacking:
        raise ValueError(f"ChestPhantom: variables lack {lacking}, found {sorted(variables)}")
    for name in (*AREAS, "age", "sex"):
        kind = "positive" if name in AREAS else "finite"
        if not (math.isfinite(variables[name]) and (kind == "finite" or variables[name] > 0)):
            raise ValueError(f"ChestPhantom: {name}: found {variables[name]}, expected a {kind} number")
