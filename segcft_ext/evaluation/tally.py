"""The judge's results for some of the test cases, which can be added up and saved to a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from segcft_ext.evaluation.place import GainMap

__all__ = ["Tally"]


def _gains_by_method() -> dict[str, dict[str, GainMap]]:
    return defaultdict(lambda: defaultdict(GainMap))


@dataclass
class Tally:
    """Rows, features and sums; added up over all batches, they make the evaluation.

    Attributes:
        pairs: tables with a row for each method, intervened variable, case and draw.
        cases: tables with a row for each case, and one for each method and case.
        structures: Dice and area error of the judge on each real image, by structure.
        features: cases and features of the "real" images, and of the counterfactuals by method.
        changes: sum over counterfactuals of the image's absolute change, (*spatial), by method and intervened variable.
        gains: where the variable's mask grows, by method and intervened variable.
        true_gains: where it truly grows, by intervened variable; empty where that is unknown.
    """

    pairs: list[pd.DataFrame] = field(default_factory=list)
    cases: list[pd.DataFrame] = field(default_factory=list)
    structures: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    features: dict[str, list[tuple[list[str], Tensor]]] = field(default_factory=lambda: defaultdict(list))
    changes: dict[str, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    gains: dict[str, dict[str, GainMap]] = field(default_factory=_gains_by_method)
    true_gains: dict[str, GainMap] = field(default_factory=lambda: defaultdict(GainMap))

    def add(self, other: Tally) -> None:
        """Add the results of another tally."""
        self.pairs += other.pairs
        self.cases += other.cases
        for structure, scores in other.structures.items():
            self.structures[structure] += scores
        for name, parts in other.features.items():
            self.features[name] += parts
        for name, changes in other.changes.items():
            for do, total in changes.items():
                self.changes[name][do] = self.changes[name].get(do, 0) + total
        for name, gains in other.gains.items():
            for do, gain in gains.items():
                self.gains[name][do].merge(gain)
        for do, gain in other.true_gains.items():
            self.true_gains[do].merge(gain)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which ``weights_only`` loading accepts."""
        return {
            "pairs": [_columns(table) for table in self.pairs],
            "cases": [_columns(table) for table in self.cases],
            "structures": dict(self.structures),
            "features": dict(self.features),
            "changes": {name: dict(changes) for name, changes in self.changes.items()},
            "gains": {name: _sums(gains) for name, gains in self.gains.items()},
            "true_gains": _sums(self.true_gains),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Tally:
        """The tally of a :meth:`state_dict`."""
        return cls(
            pairs=[_table(columns) for columns in state["pairs"]],
            cases=[_table(columns) for columns in state["cases"]],
            structures=state["structures"],
            features=state["features"],
            changes=state["changes"],
            gains={name: _gains(sums) for name, sums in state["gains"].items()},
            true_gains=_gains(state["true_gains"]),
        )


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    numeric = pd.api.types.is_numeric_dtype
    return {
        name: torch.from_numpy(np.array(column)) if numeric(column) else column.tolist()
        for name, column in table.items()
    }


def _table(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: v.numpy() if isinstance(v, Tensor) else v for name, v in columns.items()})


def _sums(gains: Mapping[str, GainMap]) -> dict[str, Any]:
    return {do: (gain.products, gain.squares) for do, gain in gains.items()}


def _gains(sums: Mapping[str, Any]) -> dict[str, GainMap]:
    return {do: GainMap(*both) for do, both in sums.items()}
