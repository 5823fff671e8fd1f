"""Positional leakage: does an edit of one region leave the same structure's other regions alone?

For do(structure, region r), with J the judge's measurement and pa~ what the causal model predicts,

    leakage = mean over regions r' != r of |J_r'(x~) - J_r'(x) - (pa~_r' - pa_r')|   over   |J_r(x~) - J_r(x)|

both averaged over cases and interventions first. 0: the other regions changed as predicted (without an edge, not at
all); 1: each changed by as much as the region intervened on. Where nothing changed at all, it is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segcft_ext.evaluation.bootstrap import ratio_interval
from segcft_ext.evaluation.effectiveness import mean

__all__ = ["positional_leakage"]


def positional_leakage(own: np.ndarray, others: np.ndarray, cases: Sequence, seed: int = 0) -> dict[str, Any]:
    """Positional leakage of one variable.

    Args:
        own: change of the intervened variable, shape (N,).
        others: change of its structure's other regions beyond what is predicted, shape (N, R - 1).
        cases: which case a row belongs to, length N.
        seed: of the bootstrap.

    Returns:
        ``leakage`` with its 95 % interval ``ci95``, the mean absolute changes ``others`` and ``own``, and ``n``.
    """
    elsewhere, here = np.abs(others).mean(1), np.abs(own)
    moved = bool(len(here)) and here.any()
    return {
        "leakage": float(elsewhere.mean() / here.mean()) if moved else float("nan"),
        "ci95": ratio_interval(elsewhere, here, cases, seed) if moved else [float("nan")] * 2,
        "others": mean(elsewhere),
        "own": mean(here),
        "n": len(here),
    }
