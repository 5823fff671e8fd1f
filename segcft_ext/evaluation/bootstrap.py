"""Bootstrap intervals over cases.

The interventions of one case are not independent of each other, so cases are resampled, each with everything that
was measured on it (a cluster bootstrap; Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["interval", "mean_interval", "ratio_interval"]

RESAMPLES = 2000


def interval(
    summands: np.ndarray, cases: Sequence, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> list[float]:
    """Percentile bootstrap 95 % interval of a statistic that depends on the data through sums.

    A mean, a ratio of means and a least-squares slope are all functions of a few sums over the rows, so a resample is
    one matrix product: the sums of each case, weighted by how often the case was drawn.

    Args:
        summands: what is summed, shape (N, S), one row for each measurement.
        cases: which case a row belongs to, length N.
        statistic: from sums of shape (R, S) to R values.
        seed: seed of the resampling.

    Returns:
        [low, high]; NaN for fewer than two cases.
    """
    names, index = np.unique(np.asarray(cases), return_inverse=True)
    if len(names) < 2:
        return [float("nan"), float("nan")]
    sums = np.zeros((len(names), summands.shape[1]))
    np.add.at(sums, index, summands)
    values = statistic(_drawn(len(names), seed) @ sums)
    low, high = np.nanpercentile(values, [2.5, 97.5]) if np.isfinite(values).any() else (np.nan, np.nan)
    return [float(low), float(high)]


@lru_cache(maxsize=8)
def _drawn(count: int, seed: int) -> np.ndarray:
    """How often each of the cases is drawn in each resample, shape (R, count)."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn.astype(float)


def mean_interval(values: np.ndarray, cases: Sequence, seed: int = 0) -> list[float]:
    """95 % interval of the mean of ``values``, shape (N,)."""
    return ratio_interval(values, np.ones(len(values)), cases, seed)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, cases: Sequence, seed: int = 0) -> list[float]:
    """95 % interval of ``sum(numerator) / sum(denominator)``, both of shape (N,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(np.stack([numerator, denominator], 1), cases, lambda sums: sums[:, 0] / sums[:, 1], seed)
