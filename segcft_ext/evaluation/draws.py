"""Drawing the interventions of an evaluation: once, seeded, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segcft_ext.command_line import read_names
from segcft_ext.datalist import Datalist
from segcft_ext.datalist_format import DatalistError

__all__ = ["draw_targets", "intervened_variables", "reference_cases"]


def intervened_variables(datalist: Datalist, names: str | Sequence[str] | None = None) -> list[str]:
    """The variables that are intervened on: all continuous measured ones, or those of them that are named.

    Args:
        datalist: the data.
        names: names of the variables, also as "a,b"; None for all.

    Raises:
        DatalistError: when a named variable is unknown, not continuous or not measured, or there is no such variable.
        ValueError: when ``names`` cannot be read.
    """
    possible = [v.name for v in datalist.variables if v.kind == "continuous" and v.measurement is not None]
    chosen = read_names("interventions", names) if names else possible
    wrong = [name for name in chosen if name not in possible]
    if wrong or not possible:
        raise DatalistError(f"{datalist.path}: variables to intervene on: found {wrong}, expected some of {possible}")
    return chosen


def draw_targets(datalist: Datalist, name: str, cases: int, draws: int, seed: int) -> np.ndarray:
    """Target values for interventions on one variable, from its marginal over the training split.

    The training values are shuffled and dealt out one after the other, and shuffled again when they are used up, so
    that the targets cover the marginal evenly.

    Returns:
        Targets in the variable's unit, shape (cases, draws).
    """
    values = np.array([entry["variables"][name] for entry in datalist.entries["training"]], dtype=float)
    # the variable's place in the header keeps the draws of different variables apart
    rng = np.random.default_rng([seed, datalist.variable_names.index(name)])
    rounds = -(-cases * draws // len(values))
    return np.concatenate([rng.permutation(values) for _ in range(rounds)])[: cases * draws].reshape(cases, draws)


def reference_cases(datalist: Datalist, seed: int) -> list[dict[str, Any]]:
    """Real images to compare with: a random draw of as many of the guide's cases as there are test cases, at most all.

    The judge's training cases are left out: in its features, they would differ from images that it has not seen.

    Raises:
        DatalistError: when no training case is the guide's.
    """
    items = datalist.items("training", "guide")
    count = min(len(items), len(datalist.entries["test"]))
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))[:count]]
