"""The source ``phantom``: rendered cases with a known causal model, so that true counterfactuals exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_prep.cases import Case, Item, Source
from data_prep.ct import WINDOW
from data_prep.phantom_coronary import CoronaryPhantom
from data_prep.structures import CHEST, label_values

__all__ = ["CoronarySource", "Phantom", "PhantomSource"]


class Phantom(Protocol):
    """A renderer: a pure function of variables and exogenous noise."""

    def sample(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Variables and exogenous noise (plain JSON values) of a new case."""

    def render(self, variables: Mapping[str, Any], exogenous: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W) or (D, H, W) in [0, 1] and label map of the same shape, uint8."""


class PhantomSource(Source):
    """Chest phantoms.

    An image is stored linearly as rendered: a percentile mapping for each image would make a case and its true
    counterfactual differ in brightness. The areas in the datalist are measured on the rendered label map, as for any
    other source.

    Args:
        phantom: the renderer.
        count: number of cases.
        size: size of the rendered images.
        seed: seed of the cases; case i is the same whatever the count.
        truth: how an evaluation builds the same renderer, ``{"_target_": …}``.
    """

    labels: Mapping[str, int] = label_values(CHEST)
    variables: Sequence[Mapping[str, Any]] = (
        {"name": "age", "kind": "continuous", "unit": "years"},
        {"name": "sex", "kind": "binary", "unit": "", "categories": ["F", "M"]},
    )

    def __init__(
        self, phantom: Phantom, count: int, size: tuple[int, ...], seed: int, truth: Mapping[str, Any]
    ) -> None:
        self.size = size
        self.truth = truth
        self.items = [Item("phantom", f"phantom-{i:06d}", i) for i in range(count)]
        self._phantom = phantom
        self._seed = seed

    def fingerprint(self, item: Item) -> list[Any]:
        """Seed and index of the case; the renderer's own options are in the header's ``truth``."""
        return [self._seed, item.index]

    def load(self, item: Item) -> Case:
        """Draw and render one case."""
        # Case seeds from a seed sequence: neighbouring seeds of a run must not share cases.
        seed = int(np.random.SeedSequence([self._seed, item.index]).generate_state(1)[0])
        variables, exogenous = self._phantom.sample(seed)
        image, label = self._phantom.render(variables, exogenous)
        return Case(image=image, label=label, exogenous=exogenous, **self._further(variables, exogenous))

    def _further(self, variables: Mapping[str, Any], exogenous: Mapping[str, Any]) -> dict[str, Any]:
        """What else is known of a case."""
        return {"variables": {"age": float(variables["age"]), "sex": int(variables["sex"])}}


class CoronarySource(PhantomSource):
    """Straightened coronary phantoms; every variable is measured, in mm² or mm³.

    Args:
        phantom: the renderer; its regions are those in which the variables are measured.
        count, seed: as for :class:`PhantomSource`.
    """

    labels = CoronaryPhantom.labels
    may_lack = ("calcified_plaque", "noncalcified_plaque")
    variables = ()
    window = (*WINDOW, "HU")

    def __init__(self, phantom: CoronaryPhantom, count: int, seed: int) -> None:
        regions = None if phantom.regions is None else dict(phantom.regions)
        truth = {
            "_target_": "data_prep.phantom_coronary.CoronaryPhantom",
            "size": list(phantom.size),
            "regions": regions,
            "descendants": phantom.descendants,
        }
        super().__init__(phantom, count, phantom.size, seed, truth)
        self.regions = regions
        self._coronary = phantom

    def _further(self, variables: Mapping[str, Any], exogenous: Mapping[str, Any]) -> dict[str, Any]:
        return {"spacing": self._coronary.spacing(exogenous), "arc_length": (0.0, exogenous["vessel"]["length"])}
