"""The source ``phantom``: rendered cases with a known causal model, so that true counterfactuals exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_prep.cases import Case, Item
from data_prep.structures import CHEST, label_values

__all__ = ["Phantom", "PhantomSource"]


class Phantom(Protocol):
    """A renderer: a pure function of variables and exogenous noise."""

    def sample(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Variables and exogenous noise (plain JSON values) of a new case."""

    def render(self, variables: Mapping[str, Any], exogenous: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W) in [0, 1] and label map (H, W) of uint8."""


class PhantomSource:
    """Chest phantoms.

    The image is stored linearly as rendered: a percentile mapping of its own would make a case and its true
    counterfactual differ in brightness. The areas in the datalist are measured on the rendered label map, like any
    other case's.

    Args:
        phantom: the renderer.
        count: number of cases.
        size: (H, W) of what the renderer draws.
        seed: seed of the cases; case i is the same whatever the count.
        truth: how an evaluation builds the same renderer, ``{"_target_": …}``.
    """

    variables: Sequence[Mapping[str, Any]] = (
        {"name": "age", "kind": "continuous", "unit": "years"},
        {"name": "sex", "kind": "binary", "unit": "", "categories": ["F", "M"]},
    )

    def __init__(
        self, phantom: Phantom, count: int, size: tuple[int, int], seed: int, truth: Mapping[str, Any]
    ) -> None:
        self.labels = label_values(CHEST)
        self.size = size
        self.truth: Mapping[str, Any] | None = truth
        self.items = [Item("phantom", f"phantom-{i:06d}", i) for i in range(count)]
        self._phantom = phantom
        self._seed = seed

    def fingerprint(self, item: Item) -> list[Any]:
        """The seed; the renderer's own options stand in the header's ``truth``."""
        return [self._seed, item.index]

    def load(self, item: Item) -> Case:
        """Draw and render one case."""
        # Case seeds from a seed sequence: neighbouring seeds of a run must not share cases.
        case_seed = int(np.random.SeedSequence([self._seed, item.index]).generate_state(1)[0])
        variables, exogenous = self._phantom.sample(case_seed)
        image, label = self._phantom.render(variables, exogenous)
        further = {"age": float(variables["age"]), "sex": int(variables["sex"])}
        return Case(image=image, label=label, variables=further, exogenous=exogenous)
