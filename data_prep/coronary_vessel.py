"""The anatomy of one coronary artery as functions of vessel coordinates, solved for given areas.

Vessel coordinates are millimetres: ``s`` along the centreline from the ostium, ``u`` and ``v`` across it. A
straightened volume samples them on a grid, a longitudinal cut is its plane ``v = 0``, and a CT volume with curved
vessels maps its voxels back to them. Every function takes ``s`` of shape (N, 1, …), with ``u`` and ``v`` that broadcast
with it, or all three of shape (N,).

Each structure is a one-parameter family of growing shapes. The *level* of a point is the parameter at which the growing
structure reaches it, so any area is met by sorting levels, without a search:

* the lumen is a disc of radius ``b(s) exp(x w(s))``; ``b`` is the healthy radius, ``w`` widens or narrows one band of
  the vessel and is zero at its borders. A narrowing is deepest at the sites of the lesions, and leaves the wall
  opposite the plaque where it is;
* plaques are nodules that sit on the lumen's border and grow outwards and along the vessel, each within its third.
  Calcium wins over other plaque.

The factual artery is solved first, third by third. A change of a variable adds one parameter for the variable's own
band, whatever the bands: thirds, other regions or the whole vessel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["LABELS", "STRUCTURES", "Band", "Grid", "Points", "Vessel", "smooth_step"]

LABELS = {"background": 0, "lumen": 1, "calcified_plaque": 2, "noncalcified_plaque": 3}
STRUCTURES = ("lumen", "calcified_plaque", "noncalcified_plaque")  # in the order in which they are solved
WALL = 0.32  # mm, of a healthy wall and of what covers a plaque
ABSENT = 4.0  # an absent plaque begins to appear when the present ones of its band have grown by this factor
THIN = 0.8  # mm, thickness of a nodule of size one, on average
THICK = 3.6  # mm beyond the lumen's border, the limit of every plaque's growth

Band = tuple[float, float]  # from, to: fractions of the vessel's length


def smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


@dataclass(frozen=True)
class Grid:
    """Sample points of a straightened image.

    Attributes:
        s, u, v: vessel coordinates in mm; ``v`` is zero for a longitudinal cut.
        spacing: mm along each axis.
    """

    s: np.ndarray
    u: np.ndarray
    v: np.ndarray
    spacing: tuple[float, ...]

    @classmethod
    def of(cls, size: Sequence[int], length: float, width: float) -> Grid:
        """Pixel centres of an image of ``size`` (N, W) or (N, W, W) that covers ``length`` x ``width`` mm."""
        spacing = (length / size[0], *(width / n for n in size[1:]))
        s, u, *v = (
            (np.arange(n) + 0.5) * step - (width / 2 if axis else 0)
            for axis, (n, step) in enumerate(zip(size, spacing))
        )
        if not v:
            return cls(s[:, None], u[None, :], np.zeros((1, 1)), spacing)
        return cls(s[:, None, None], u[None, :, None], v[0][None, None, :], spacing)

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.s.shape, self.u.shape, self.v.shape)


@dataclass
class State:
    """The numbers that are solved for: log factors of the lumen's radius, and sizes of the plaques."""

    lumen: list[tuple[Band, float]] = field(default_factory=list)
    plaque: dict[str, list[float]] = field(default_factory=dict)  # factual size in each third, 0 where absent
    growth: dict[str, dict[Band, float]] = field(default_factory=dict)  # factor on the sizes in each band


@dataclass(frozen=True)
class Points:
    """Points relative to the lumen as it is.

    Attributes:
        s: mm from the ostium.
        radius: of the lumen, in mm.
        outside: distance beyond the lumen's border in mm, negative inside.
        found: for each plaque the size at which its nodules reach a point, infinity where none does.
    """

    s: np.ndarray
    radius: np.ndarray
    outside: np.ndarray
    found: dict[str, np.ndarray]


class Vessel:
    """One artery.

    Args:
        exogenous: ``vessel`` and ``lesions`` of a case's noise, see :mod:`data_prep.coronary_model`.
    """

    def __init__(self, exogenous: Mapping[str, Any]) -> None:
        self.shape: Mapping[str, Any] = exogenous["vessel"]
        self.lesions: Sequence[Mapping[str, Any]] = exogenous["lesions"]
        self.length = float(self.shape["length"])
        count = len(self.lesions)
        self.thirds: list[Band] = [(k / count, (k + 1) / count) for k in range(count)]
        self.state = State()
        self._fitted: tuple[Grid, Points] | None = None

    # --- the healthy vessel -------------------------------------------------------------------------------------------

    def axis(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vessel's axis in ``u`` and ``v``: error of the centreline, and steps where the heart moved."""
        waves = self._waves("wobble", s)
        step = sum(size * smooth_step((s - at * self.length) / 0.8 + 0.5) for at, size in zip(*self.shape["steps"]))
        return waves[0] + step, waves[1]

    def healthy_radius(self, s: np.ndarray) -> np.ndarray:
        """Radius of the lumen without disease in mm."""
        x = np.clip(s / self.length, 0, 1)
        taper = np.exp(np.log(self.shape["taper"]) * x)
        drop = 1 - 0.10 * smooth_step((x - self.shape["branch"]) / 0.03)
        (waves,) = self._waves("wiggle", s)
        return self.shape["radius"] * taper * drop * (1 + waves)

    def _waves(self, name: str, s: np.ndarray) -> list[np.ndarray]:
        """Sums of sines of ``s``, one for each row of (amplitude, wavelength in mm, phase)."""
        return [
            sum((a * np.sin(2 * np.pi * s / wavelength + phase) for a, wavelength, phase in row), np.zeros_like(s))
            for row in self.shape[name]
        ]

    # --- lumen --------------------------------------------------------------------------------------------------------

    def _profile(self, s: np.ndarray, band: Band, narrows: bool) -> np.ndarray:
        """Share of a band's change at each ``s``: 0 outside the band, smooth inside."""
        low, high = (b * self.length for b in band)
        ramp = 0.15 * (high - low)
        window = np.ones_like(s)
        if band[0] > 0:
            window = window * smooth_step((s - low) / ramp)
        if band[1] < 1:
            window = window * smooth_step((high - s) / ramp)
        if not narrows:
            return np.where((s >= low) & (s <= high), window, 0)
        focal = sum(
            np.exp(-0.5 * ((s - self._site(k)) / lesion["reach"]) ** 2) for k, lesion in enumerate(self.lesions)
        )
        diffuse = self.shape["diffuse"]
        return np.where((s >= low) & (s <= high), window * (diffuse + (1 - diffuse) * np.minimum(focal, 1)), 0)

    def _site(self, k: int) -> float:
        low, high = self.thirds[k]
        return (low + (high - low) * float(self.lesions[k]["site"])) * self.length

    def radius(self, s: np.ndarray) -> np.ndarray:
        """Radius of the lumen in mm."""
        change = sum(x * self._profile(s, band, x < 0) for band, x in self.state.lumen)
        return self.healthy_radius(s) * np.exp(change)

    def _eccentricity(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vector from the lumen's middle towards the plaque; its length is the share of a narrowing on that side."""
        parts = [
            (self._profile(s, band, False) * lesion["eccentricity"], lesion["angle"])
            for band, lesion in zip(self.thirds, self.lesions)
        ]
        first, last = self.thirds[0], self.thirds[-1]
        ends = smooth_step(s / (0.1 * first[1] * self.length)) * smooth_step(
            (self.length - s) / (0.1 * (1 - last[0]) * self.length)
        )
        eu, ev = (ends * sum(e * f(angle) for e, angle in parts) for f in (np.cos, np.sin))
        return eu, ev

    def _from_axis(self, s: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position from the vessel's axis, with the irregularity of its outline taken out."""
        cu, cv = self.axis(s)
        p, q = u - cu, v - cv
        r = np.sqrt(p * p + q * q) + 1e-9
        x, y = p / r, q / r
        a, b, c, d = self._waves("outline", s)
        scale = 1 / (1 + a * x + b * y + c * (x * x - y * y) + d * 2 * x * y)
        return p * scale, q * scale

    def _required(self, s: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Radius at which the lumen, whose middle moves away from the plaque as it narrows, reaches each point."""
        eu, ev = self._eccentricity(s)
        b = self.healthy_radius(s)
        p, q = p + b * eu, q + b * ev
        along, free = eu * p + ev * q, 1 - eu * eu - ev * ev
        return (np.sqrt(along * along + free * (p * p + q * q)) - along) / free

    def points(self, s: np.ndarray, u: np.ndarray, v: np.ndarray) -> Points:
        """Points relative to the lumen as it is now."""
        p, q = self._from_axis(s, u, v)
        radius, healthy = self.radius(s), self.healthy_radius(s)
        eu, ev = self._eccentricity(s)
        du, dv = p + (healthy - radius) * eu, q + (healthy - radius) * ev
        r = np.sqrt(du * du + dv * dv) + 1e-9
        outside = r - radius
        # plaques lie near the lumen: the other points need not be looked at
        near = np.flatnonzero((outside > 0) & (outside < THICK))
        index = np.unravel_index(near, outside.shape)
        (rough,) = self._waves("rough", s)
        level, beyond, narrow, rough = (np.broadcast_to(x, outside.shape)[index] for x in (s, outside, radius, rough))
        direction = (du[index] / r[index], dv[index] / r[index])
        found = {}
        for structure in STRUCTURES[1:]:
            sizes = np.full(outside.size, np.inf)
            sizes[near] = self._nodules(structure, level, beyond, narrow, rough, direction)
            found[structure] = sizes.reshape(outside.shape)
        return Points(s, radius, outside, found)

    # --- plaques ------------------------------------------------------------------------------------------------------

    def _nodules(
        self,
        structure: str,
        s: np.ndarray,
        outside: np.ndarray,
        radius: np.ndarray,
        rough: np.ndarray,
        direction: tuple[np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """Size at which a plaque reaches points beyond the lumen's border; all arrays have the same length."""
        size = np.full(s.shape, np.inf)
        crowded = outside / np.sqrt(1 - (outside / THICK) ** 4)
        for k, lesion in enumerate(self.lesions):
            low, high = (b * self.length for b in self.thirds[k])
            here = np.flatnonzero((s > low) & (s < high))
            if here.size == 0:
                continue
            site = self._site(k)
            du, dv = direction[0][here], direction[1][here]
            found = np.full(here.shape, np.inf)
            for nodule in lesion[structure]:
                middle = np.clip(site + nodule["shift"], low + 1, high - 1)
                along = s[here] - middle
                # no nodule can grow beyond its third
                reach = np.where(along < 0, middle - low, high - middle)
                along = along / np.sqrt(np.maximum(1 - (along / reach) ** 4, 1e-9))
                cosine = np.clip(du * np.cos(nodule["angle"]) + dv * np.sin(nodule["angle"]), -1, 1)
                around = (radius[here] + 0.4) * np.arccos(cosine)
                squared = (
                    (along / nodule["length"]) ** 2
                    + (around / nodule["width"]) ** 2
                    + ((crowded[here] - nodule["depth"]) / nodule["thickness"]) ** 2
                )
                found = np.minimum(found, np.sqrt(squared) * (1 + rough[here]) + nodule["delay"])
            size[here] = found
        return size

    def _sizes(self, structure: str, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factual size of a plaque at each ``s``, and the growth at which it begins to appear."""
        size, begin = np.ones_like(s), np.zeros_like(s)
        for k, ((low, high), factual) in enumerate(zip(self.thirds, self.state.plaque[structure])):
            here = (s >= low * self.length) & (s <= high * self.length)
            # a plaque that is absent waits until those that are there have grown
            size, begin = (
                np.where(here, x, old) for x, old in zip((factual, 0) if factual else (1, ABSENT + k), (size, begin))
            )
        return size, begin

    def growth_at(self, structure: str, at: Points) -> np.ndarray:
        """Growth at which a plaque reaches each point; one is the factual plaque, infinity is out of reach."""
        size, begin = self._sizes(structure, at.s)
        return begin + at.found[structure] / size

    def _growth(self, structure: str, s: np.ndarray) -> np.ndarray:
        """Growth of a plaque at each ``s``."""
        growth = np.ones_like(s)
        for (low, high), factor in self.state.growth[structure].items():
            growth = np.where((s >= low * self.length) & (s <= high * self.length), factor, growth)
        return growth

    # --- structures ---------------------------------------------------------------------------------------------------

    def margins(self, at: Points) -> dict[str, np.ndarray]:
        """Approximate distance of each point from each plaque's border in mm, negative inside."""
        margins = {}
        for structure in STRUCTURES[1:]:
            size, begin = self._sizes(structure, at.s)
            now = (self._growth(structure, at.s) - begin) * size
            margins[structure] = np.where(now > 0, (at.found[structure] - now) * THIN, np.inf)
        return margins

    def label(self, s: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Label of each point, uint8."""
        at = self.points(s, u, v)
        return self.label_at(at, self.margins(at))

    def label_at(self, at: Points, margins: Mapping[str, np.ndarray]) -> np.ndarray:
        """Label of points whose margins are known."""
        label = np.zeros(at.outside.shape, np.uint8)
        for structure in reversed(STRUCTURES[1:]):
            label[margins[structure] < 0] = LABELS[structure]
        label[at.outside < 0] = LABELS["lumen"]
        return label

    # --- solving ------------------------------------------------------------------------------------------------------

    def fit(self, grid: Grid, wanted: Mapping[str, Mapping[Band, float]]) -> None:
        """Give every structure its wanted areas (volumes) on the label map of a grid.

        Args:
            grid: the grid on which the areas are measured.
            wanted: for each structure the area in mm² (mm³) in each band. The first call, with the thirds, makes the
                factual artery; each later one starts from there.

        Raises:
            ValueError: when there is no room for an area.
        """
        factual = not self.state.plaque
        if factual:
            self.state.plaque = {structure: [1.0] * len(self.thirds) for structure in STRUCTURES[1:]}
        self.state.growth = {structure: {} for structure in STRUCTURES[1:]}
        if self._fit_lumen(grid, wanted["lumen"]) or self._fitted is None or self._fitted[0] is not grid:
            self._fitted = grid, self.points(grid.s, grid.u, grid.v)
        at = self._fitted[1]
        taken = at.outside < 0
        for structure in STRUCTURES[1:]:
            level = np.where(taken, np.inf, self.growth_at(structure, at))
            growth = {
                band: self._solve(structure, grid, band, level, area, 1.0, factual)
                for band, area in wanted[structure].items()
            }
            if factual:
                self.state.plaque[structure] = [
                    growth[third] if wanted[structure][third] > 0 else 0.0 for third in self.thirds
                ]
                level = np.where(taken, np.inf, self.growth_at(structure, at))
            else:
                self.state.growth[structure] = growth
            taken = taken | (level < self._growth(structure, at.s))

    def fitted_label(self) -> np.ndarray:
        """Label map of the grid of the last fit."""
        if self._fitted is None:
            raise ValueError("Vessel: fit() comes first")
        return self.label_at(self._fitted[1], self.margins(self._fitted[1]))

    def _fit_lumen(self, grid: Grid, wanted: Mapping[Band, float]) -> bool:
        """Solve for the lumen's radius and return whether it has changed."""
        p, q = self._from_axis(grid.s, grid.u, grid.v)
        with np.errstate(divide="ignore"):
            change = np.log(self._required(grid.s, p, q) / self.radius(grid.s))
        solved = {}
        for band, area in wanted.items():
            if not area > 0:
                raise ValueError(f"lumen: found {area:g}, expected a positive number")
            with np.errstate(divide="ignore", invalid="ignore"):
                narrow, wide = (change / self._profile(grid.s, band, narrows) for narrows in (True, False))
            level = np.where(change < 0, narrow, wide)
            level = np.where(np.isnan(level), 0, level)
            solved[band] = self._solve("lumen", grid, band, level, area, 0.0)
        changes = [(band, x) for band, x in solved.items() if x != 0]
        self.state.lumen += changes
        return bool(changes)

    def _solve(
        self,
        structure: str,
        grid: Grid,
        band: Band,
        level: np.ndarray,
        wanted: float,
        current: float,
        factual: bool = False,
    ) -> float:
        """The threshold of ``level`` below which the band holds the area; ``current`` if it holds it already."""
        edges = np.arange(len(grid.s) + 1) / len(grid.s)
        share = np.clip(np.minimum(edges[1:], band[1]) - np.maximum(edges[:-1], band[0]), 0, None) * len(grid.s)
        pixel = float(np.prod(grid.spacing))
        if not factual and structure != "lumen":
            # a row that a boundary cuts is measured in both bands, but changes only with the band of its middle
            middle = grid.s.reshape(-1) / self.length
            beyond = (middle < band[0]) | (middle >= band[1])
            held = (level < current).reshape(len(share), -1).sum(1) * share * pixel
            wanted = max(0.0, wanted - float(held[beyond].sum()))
            share[beyond] = 0
        rows = np.flatnonzero(share > 1e-9)
        values = level[rows]
        weights = np.broadcast_to((share[rows] * pixel).reshape(-1, *[1] * (values.ndim - 1)), values.shape)
        usable = values < np.inf
        values, weights = values[usable], weights[usable]
        if abs(float(weights[values < current].sum()) - wanted) <= 0.5 * pixel:
            return current
        order = np.argsort(values)
        values, reached = values[order], np.concatenate([[0.0], np.cumsum(weights[order])])
        if wanted > reached[-1] + 0.5 * pixel:
            raise ValueError(f"{structure}: found {wanted:g}, expected at most {reached[-1]:.4g} in the band {band}")
        n = int(np.argmin(np.abs(reached - wanted)))
        if n == 0:
            return float(values[0] - 1e-6) if values.size else current
        return float(values[n - 1] + 1e-6 if n == values.size else 0.5 * (values[n - 1] + values[n]))
