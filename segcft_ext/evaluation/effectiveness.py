"""Effectiveness: does the judge measure in the counterfactual what was asked for?

For an intervention do(k) on image x with variables pa, counterfactual x~ and its variables pa~ under the structural
causal model (so ``pa~_k`` is the value asked for, and for j != k it is what the model predicts, which without an edge
from k is the factual value), with J_j the judge's measurement of variable j:

* ``mape``: mean of ``|J_j(x~) - pa~_j| / |pa~_j|`` in percent;
* ``mae``: mean of ``|J_j(x~) - pa~_j|`` in the unit of j;
* ``drift``: mean of ``|J_j(x~) - J_j(x) - (pa~_j - pa_j)| / |pa_j|`` in percent, for j != k. The judge is compared with
  itself, so its own error cancels, and what the model predicts of a descendant is no drift: what is left is what the
  edit should not have moved; ``drift_mae`` is the same in the unit of j;
* ``slope``: least squares of the achieved change ``J_k(x~) - J_k(x)`` on the wanted change ``pa~_k - pa_k``, with an
  intercept. 1 is perfect, 0 is no effect; a constant bias of the judge does not influence it.

The percentages leave out rows in which their reference is zero. For a variable that may be zero (a plaque), the main
figure is the ``mae``, see also :mod:`segcft_ext.evaluation.presence`.

Means run over test cases and interventions; intervals resample cases (:mod:`segcft_ext.evaluation.bootstrap`).
Definitions after Monteiro et al. 2023 (effectiveness) and Xia et al. 2025 (MAPE of areas).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segcft_ext.evaluation.bootstrap import interval, mean_interval

__all__ = ["drift", "error", "mean", "relative", "slope"]


def mean(values: np.ndarray) -> float:
    """The mean of some values, NaN of none."""
    return float(values.mean()) if len(values) else float("nan")


def relative(difference: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Difference in percent of the reference's magnitude; NaN where the reference is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = 100 * np.abs(difference) / np.abs(reference)
    return np.where(reference == 0, np.nan, percent)


def error(measured: np.ndarray, target: np.ndarray, cases: Sequence, seed: int = 0) -> dict[str, Any]:
    """Error of measured against target values, both of shape (N,).

    Returns:
        ``mape`` with its 95 % interval ``ci95``, ``mae`` with ``mae_ci95``, and ``n`` measurements.
        Rows whose target is missing are left out.
    """
    known = np.isfinite(target) & np.isfinite(measured)
    rows = np.asarray(cases)[known]
    absolute = np.abs(measured - target)[known]
    percent = relative(absolute, target[known])
    finite = np.isfinite(percent)
    return {
        "mape": mean(percent[finite]),
        "ci95": mean_interval(percent[finite], rows[finite], seed),
        "mae": mean(absolute),
        "mae_ci95": mean_interval(absolute, rows, seed),
        "n": int(known.sum()),
    }


def drift(
    achieved: np.ndarray, wanted: np.ndarray, factual: np.ndarray, cases: Sequence, seed: int = 0
) -> dict[str, Any]:
    """How far a variable that was not intervened on moved beyond what the model predicts, all of shape (N,).

    Args:
        achieved: its change as the judge sees it, ``J_j(x~) - J_j(x)``.
        wanted: its change under the causal model, ``pa~_j - pa_j``; zero without an edge.
        factual: its factual value.
        cases: which case a row belongs to.
        seed: of the bootstrap.

    Returns:
        ``drift`` in percent of the factual value and its 95 % interval ``drift_ci95``; ``drift_mae`` in the variable's
        unit and ``drift_mae_ci95``.
    """
    absolute = np.abs(achieved - wanted)
    percent = relative(absolute, factual)
    finite = np.isfinite(percent)
    return {
        "drift": mean(percent[finite]),
        "drift_ci95": mean_interval(percent[finite], np.asarray(cases)[finite], seed),
        "drift_mae": mean(absolute),
        "drift_mae_ci95": mean_interval(absolute, cases, seed),
    }


def slope(achieved: np.ndarray, wanted: np.ndarray, cases: Sequence, seed: int = 0) -> dict[str, Any]:
    """Least-squares line of achieved on wanted change, both of shape (N,).

    Returns:
        ``slope`` with its 95 % interval ``ci95`` and ``intercept`` in the variable's unit; NaN where the wanted
        changes are all the same.
    """
    known = np.isfinite(achieved) & np.isfinite(wanted)
    x, y = wanted[known], achieved[known]
    summands = np.stack([np.ones_like(x), x, y, x * x, x * y], 1)

    def fit(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, sxy = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = n * sxx - sx * sx
            return np.where(spread > 1e-9 * n * sxx, (n * sxy - sx * sy) / spread, np.nan)

    value = float(fit(summands.sum(0, keepdims=True))[0])
    return {
        "slope": value,
        "ci95": interval(summands, np.asarray(cases)[known], fit, seed),
        "intercept": float(y.mean() - value * x.mean()) if len(x) else float("nan"),
        "n": len(x),
    }
