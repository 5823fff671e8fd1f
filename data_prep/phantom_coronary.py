"""Straightened coronary arteries with a known causal model: phantoms whose true counterfactuals can be rendered.

    >>> phantom = CoronaryPhantom(size=(256, 64))
    >>> variables, exogenous = phantom.sample(seed=0)
    >>> image, label = phantom.render(variables, exogenous)
    >>> do = {"calcified_plaque_area_proximal": 6.0}
    >>> variables, image, label = phantom.counterfactual(variables, exogenous, do)

The causal model is that of :mod:`data_prep.coronary_model`, the anatomy that of :mod:`data_prep.coronary_vessel`. Both
are defined on thirds; the variables may be those of any regions or of the whole vessel, as the datalist defines them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from data_prep.coronary_model import draw, factual, lumen_loss
from data_prep.coronary_tissues import surroundings, vessel_hu
from data_prep.coronary_vessel import LABELS, STRUCTURES, Band, Grid, Vessel
from data_prep.ct import WINDOW, blur, correlated_noise, to_window

__all__ = ["CoronaryPhantom"]

WIDTH = 16.0  # mm across


class CoronaryPhantom:
    """Straightened coronary arteries, cut lengthwise (N, W) or as volumes (N, W, W).

    Args:
        size: samples along the vessel and across it.
        regions: as a datalist's header has them; None for variables of the whole vessel.
        descendants: whether the lumen follows an action on a plaque, as in the causal model. Otherwise an action
            changes only the variables that it names, which is the reference for methods that treat the variables as
            independent.

    Raises:
        ValueError: when the size is too small or the regions are not those of the vessel's axis.
    """

    labels: Mapping[str, int] = LABELS

    def __init__(
        self, size: Sequence[int] = (256, 64), regions: Mapping[str, Any] | None = None, descendants: bool = True
    ) -> None:
        if len(size) not in (2, 3) or size[0] < 64 or min(size[1:]) < 24 or len({*size[1:]}) != 1:
            raise ValueError(
                f"CoronaryPhantom: size is {list(size)}, expected 64 or more along and 24 or more across, "
                "two numbers or three of which the last two are equal"
            )
        if regions is not None and (regions["axis"], regions["of"]) != (0, "image"):
            raise ValueError(f"CoronaryPhantom: regions: found {dict(regions)}, expected axis 0 of the image")
        self.size = tuple(int(n) for n in size)
        self.regions = regions
        self.descendants = descendants
        self.quantity = "area" if len(size) == 2 else "volume"

    def sample(self, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Draw a case: variables in mm² (mm³), and the exogenous noise, a dict of plain values that JSON can carry."""
        exogenous = draw(np.random.default_rng([seed, 1]))
        vessel, grid = self._factual(exogenous)
        measured = self._measure(vessel.fitted_label(), grid, self._names(None))
        return {name: round(value, 6) for name, value in measured.items()}, exogenous

    def spacing(self, exogenous: Mapping[str, Any]) -> tuple[float, ...]:
        """Spacing of a case in mm, along and across."""
        return self._grid(exogenous).spacing

    def vessel(self, variables: Mapping[str, float], exogenous: Mapping[str, Any]) -> Vessel:
        """The artery of a case as functions of vessel coordinates.

        Raises:
            ValueError: when a variable is missing, or there is no room for an area.
        """
        vessel, grid = self._factual(exogenous)
        names = self._names(variables)
        for name in names:
            if not (name in variables and math.isfinite(variables[name]) and variables[name] >= 0):
                found = variables.get(name, "nothing")
                raise ValueError(f"CoronaryPhantom: {name}: found {found}, expected a number, zero or more")
        wanted: dict[str, dict[Band, float]] = {structure: {} for structure in STRUCTURES}
        for name, (structure, band) in names.items():
            wanted[structure][band] = float(variables[name])
        vessel.fit(grid, wanted)
        return vessel

    def render(self, variables: Mapping[str, float], exogenous: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The image, float32 in [0, 1] for -150 … 750 HU, and its label map, uint8.

        Raises:
            ValueError: as :meth:`vessel`.
        """
        vessel, scan = self.vessel(variables, exogenous), exogenous["scan"]
        grid = self._grid(exogenous)
        fine, times = self._fine(exogenous)
        hu = surroundings(vessel, fine, exogenous["surroundings"], scan, exogenous["texture_seed"])
        at = vessel.points(fine.s, fine.u, fine.v)
        inside = vessel_hu(vessel, at, vessel.margins(at), scan)
        np.copyto(hu, inside, where=~np.isnan(inside))
        hu = blur(hu, fine.spacing, scan["psf"])
        hu = hu.reshape([part for n, t in zip(self.size, times) for part in (n, t)]).mean(
            axis=tuple(range(1, 2 * len(times), 2))
        )
        rng = np.random.default_rng([exogenous["texture_seed"], 2])
        hu = hu + correlated_noise(rng, self.size, grid.spacing, scan["noise"], scan["grain"])
        return to_window(hu, WINDOW), vessel.fitted_label()

    def counterfactual(
        self, variables: Mapping[str, float], exogenous: Mapping[str, Any], do: Mapping[str, float]
    ) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """The true counterfactual: variables after the action, image, label map.

        Raises:
            ValueError: when an unknown variable is acted upon, or there is no room for an area.
        """
        names = self._names(variables)
        unknown = set(do) - set(names)
        if unknown:
            raise ValueError(f"CoronaryPhantom: do() names {sorted(unknown)}, expected some of {sorted(names)}")
        after = {name: float(variables[name]) for name in names} | {name: float(value) for name, value in do.items()}
        if self.descendants:
            for name, (structure, band) in names.items():
                if structure == "lumen" and name not in do:
                    before, now = (self._plaque(values, names, band) for values in (variables, after))
                    change = lumen_loss(exogenous, len(self.size), band, now - before)
                    after[name] *= math.exp(-change)
        return after, *self.render(after, exogenous)

    @staticmethod
    def _plaque(values: Mapping[str, float], names: Mapping[str, tuple[str, Band]], band: Band) -> float:
        """Plaque in a band, calcified or not; a region that crosses the band's border counts by its share inside."""
        total = 0.0
        for name, (structure, (low, high)) in names.items():
            if structure != "lumen":
                total += values[name] * max(0.0, min(high, band[1]) - max(low, band[0])) / (high - low)
        return total

    def _names(self, variables: Mapping[str, float] | None) -> dict[str, tuple[str, Band]]:
        """Structure and band of each variable; the whole vessel for a structure that has a variable as a whole."""
        found: dict[str, tuple[str, Band]] = {}
        for structure in STRUCTURES:
            whole = f"{structure}_{self.quantity}"
            if self.regions is None or (variables is not None and whole in variables):
                found[whole] = (structure, (0.0, 1.0))
            else:
                for region, band in zip(self.regions["names"], pairwise(self.regions["boundaries"])):
                    found[f"{whole}_{region}"] = (structure, band)
        return found

    def _grid(self, exogenous: Mapping[str, Any]) -> Grid:
        return Grid.of(self.size, exogenous["vessel"]["length"], WIDTH)

    def _fine(self, exogenous: Mapping[str, Any]) -> tuple[Grid, list[int]]:
        """The grid on which tissue is drawn, and how many of its samples make one of the image's along each axis."""
        across = max(1, (128 if len(self.size) == 2 else 64) // self.size[1])
        times = [max(1, 256 // self.size[0]), *[across] * (len(self.size) - 1)]
        size = [n * t for n, t in zip(self.size, times)]
        return Grid.of(size, exogenous["vessel"]["length"], WIDTH), times

    def _factual(self, exogenous: Mapping[str, Any]) -> tuple[Vessel, Grid]:
        vessel, grid = Vessel(exogenous), self._grid(exogenous)
        vessel.fit(grid, factual(exogenous, len(self.size)))
        return vessel, grid

    @staticmethod
    def _measure(label: np.ndarray, grid: Grid, names: Mapping[str, tuple[str, Band]]) -> dict[str, float]:
        edges = np.arange(len(label) + 1) / len(label)
        found = {}
        for name, (structure, (low, high)) in names.items():
            share = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * len(label)
            count = (label == LABELS[structure]).reshape(len(label), -1).sum(1)
            found[name] = float((share * count).sum() * np.prod(grid.spacing))
        return found
