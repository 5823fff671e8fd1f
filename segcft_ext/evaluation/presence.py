"""Does a structure that may be absent appear and vanish when asked to?

For a variable with a point mass at zero, a percentage of the target says nothing. The figure is the mean absolute error
in the variable's unit, for each of the four ways in which the structure can be present or absent before and after the
intervention. ``seen`` is the share of counterfactuals in which the judge finds any of it: it ought to be 1 where the
structure appears or stays, 0 where it vanishes or stays absent. Its floor is the same share on real images that show
the structure, or do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segcft_ext.evaluation.bootstrap import mean_interval
from segcft_ext.evaluation.effectiveness import error, mean

__all__ = ["GROUPS", "groups", "presence", "presence_floor"]

# is it there before, and ought it to be after?
GROUPS = {
    "absent_absent": (False, False),
    "absent_present": (False, True),
    "present_absent": (True, False),
    "present_present": (True, True),
}


def groups(target: np.ndarray, factual: np.ndarray) -> dict[str, np.ndarray]:
    """Which of N interventions belong to each of :data:`GROUPS`, boolean masks of shape (N,)."""
    return {name: ((factual > 0) == before) & ((target > 0) == after) for name, (before, after) in GROUPS.items()}


def presence(
    measured: np.ndarray, target: np.ndarray, factual: np.ndarray, cases: Sequence, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Errors by presence before and after, all arrays of shape (N,).

    Returns:
        For each of :data:`GROUPS` the result of :func:`~segcft_ext.evaluation.effectiveness.error`, with ``seen`` and
        its interval ``seen_ci95``; NaN for a group without counterfactuals.
    """
    return {name: _seen(measured, target, cases, rows, seed) for name, rows in groups(target, factual).items()}


def presence_floor(
    measured: np.ndarray, factual: np.ndarray, cases: Sequence, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The judge's own errors and ``seen`` on real images in which the structure is ``absent`` or ``present``."""
    return {
        name: _seen(measured, factual, cases, (factual > 0) == there, seed)
        for name, there in (("absent", False), ("present", True))
    }


def _seen(measured: np.ndarray, target: np.ndarray, cases: Sequence, rows: np.ndarray, seed: int) -> dict[str, Any]:
    found, its_cases = (measured[rows] > 0).astype(float), np.asarray(cases)[rows]
    return {
        **error(measured[rows], target[rows], its_cases, seed),
        "seen": mean(found),
        "seen_ci95": mean_interval(found, its_cases, seed),
    }
