"""How well the judge, a segmentor that took no part in the training, does on real images.

Its own error there is the *floor* of every figure: errors near it are indistinguishable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segcft_ext.evaluation.effectiveness import error, mean, slope

__all__ = ["floor", "structure_scores", "summarise_structures"]


def structure_scores(judged: Tensor, label: Tensor, labels: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Dice and relative area error of the judge on real images.

    Args:
        judged: the judge's label maps, shape (B, 1, *spatial).
        label: the true label maps, same shape.
        labels: value of each structure.

    Returns:
        For each structure its Dice and its absolute area error in percent of the true area, two tensors of shape (B,),
        NaN where the structure is absent from the true label map.
    """
    found = {}
    for name, value in labels.items():
        true, seen = ((maps == value).flatten(1) for maps in (label, judged))
        area, overlap = true.sum(1).double(), (true & seen).sum(1).double()
        dice = 2 * overlap / (area + seen.sum(1))
        percent = 100 * (seen.sum(1) - area).abs() / area
        present = area > 0
        found[name] = (torch.where(present, dice, torch.nan), torch.where(present, percent, torch.nan))
    return found


def summarise_structures(scores: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """``{structure: {"dice", "area_mape"}}``, means over the cases that show the structure; NaN if none does."""
    means = {}
    for name, rows in scores.items():
        known = np.array([row for row in rows if np.isfinite(row).all()]).reshape(-1, 2)
        means[name] = {"dice": mean(known[:, 0]), "area_mape": mean(known[:, 1])}
    return means


def floor(
    measured: np.ndarray, factual: np.ndarray, cases: Sequence, names: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The judge's own error on real images, in the same figures as the effectiveness; both arrays of shape (N, J).

    ``slope`` is the slope of the measured on the true values of the cases: a judge that shrinks every heart towards the
    mean sees less change than there is.
    """
    floors = {}
    for j, name in enumerate(names):
        line = slope(measured[:, j], factual[:, j], cases, seed)
        floors[name] = error(measured[:, j], factual[:, j], cases, seed)
        floors[name] |= {"slope": line["slope"], "slope_ci95": line["ci95"]}
    return floors
