"""Locality: does an edit stay where its structure is?

The *region of change* of a counterfactual is the union of the masks of the structures whose variables ought to change
(the intervened one and, where the causal graph has edges, its descendants) before and after: in the factual image by
its label map, in the counterfactual by the judge's segmentation of it; for a variable of a region only the mask there.
It is widened by 5 pixels at 256 pixels, i.e. by ``5 * size / 256`` pixels in Euclidean distance: a neighbour that has
to give way, such as the lumen beside a plaque, does so within that margin.

    outside = mean |x~ - x| outside of the region        inside = mean |x~ - x| inside of it
    leakage = outside / inside                           (both averaged over cases and interventions first)

The ratio of averages is used because a single edit may ask for nearly no change, which makes its own ratio noise. The
averages are over the interventions that ask for a change. If an absent structure is to appear, but the judge sees none
afterwards, there is no region: the whole image then counts as ``outside`` and nothing as ``inside``, so that a failure
is not left out. Where nothing changed at all, the leakage is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segcft_ext.evaluation.bootstrap import interval

__all__ = ["change", "dilate", "leakage", "margin", "region_of_change"]

MARGIN_AT_256 = 5.0


def margin(size: Sequence[int]) -> float:
    """Width of the margin in pixels: 5 for images of 256 pixels, in proportion for others (longest side)."""
    return MARGIN_AT_256 * max(size) / 256


def dilate(mask: Tensor, radius: float) -> Tensor:
    """Widen masks to all pixels whose centre is within ``radius`` pixels of a mask pixel's centre.

    This is the Euclidean distance transform, thresholded; for the few pixels asked for here it is quicker as a
    convolution with the ball of offsets, on any device.

    Args:
        mask: boolean, shape (B, 1, *spatial), two or three spatial dimensions.
        radius: in pixels, need not be whole.
    """
    reach, dims = math.floor(radius), mask.ndim - 2
    offsets = torch.arange(-reach, reach + 1, device=mask.device, dtype=torch.float32)
    squared = sum(o**2 for o in torch.meshgrid(*[offsets] * dims, indexing="ij"))
    ball = (torch.as_tensor(squared, device=mask.device) <= radius**2).float()[None, None]
    convolve = F.conv2d if dims == 2 else F.conv3d
    return convolve(mask.float(), ball, padding=reach) > 0.5


def region_of_change(before: Tensor, after: Tensor, changed: Tensor) -> Tensor:
    """Where the counterfactual may differ from the factual image.

    Args:
        before: where each variable lives in the factual images' label maps, boolean, shape (B, J, *spatial).
        after: the same in the judge's label maps of the counterfactuals.
        changed: which variables ought to change, boolean, shape (B, J).

    Returns:
        Boolean masks, shape (B, 1, *spatial), the margin included.
    """
    wanted = changed.view(*changed.shape, *[1] * (before.ndim - 2))
    return dilate((wanted & (before | after)).any(1, keepdim=True), margin(before.shape[2:]))


def change(factual: Tensor, counterfactual: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute intensity change outside and inside of the region for each image, two tensors of shape (B,).

    Intensities are in [-1, 1]. A side without any pixel gives NaN.
    """
    difference = (counterfactual - factual).abs().flatten(1).double()
    inside = region.flatten(1).double()
    outside = 1 - inside
    return (difference * outside).sum(1) / outside.sum(1), (difference * inside).sum(1) / inside.sum(1)


def leakage(outside: np.ndarray, inside: np.ndarray, cases: Sequence, seed: int = 0) -> dict[str, Any]:
    """Leakage from the changes of N counterfactuals, both of shape (N,), NaN where there is no such side.

    Returns:
        ``leakage`` with its 95 % interval ``ci95``, the mean changes ``outside`` and ``inside``, and over how many
        counterfactuals these are taken, ``n`` and ``n_inside``.
    """
    sides = np.stack([outside, inside], 1)
    known = np.isfinite(sides)
    sums, counts = np.where(known, sides, 0).sum(0), known.sum(0)
    means = [float(total / count) if count else float("nan") for total, count in zip(sums, counts)]
    result: dict[str, Any] = {
        "leakage": float("nan"),
        "ci95": interval(np.hstack([np.where(known, sides, 0), known]), cases, _ratio_of_means, seed),
        "outside": means[0],
        "inside": means[1],
        "n": int(counts[0]),
        "n_inside": int(counts[1]),
    }
    if counts[0] and not sums[0]:
        result |= {"leakage": 0.0, "ci95": [0.0, 0.0]}
    elif counts[0] and sums[1]:
        result["leakage"] = result["outside"] / result["inside"]
    return result


def _ratio_of_means(sums: np.ndarray) -> np.ndarray:
    """Mean outside over mean inside, shape (R,), from sums and counts of both, shape (R, 4)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (sums[:, 0] / sums[:, 2]) / (sums[:, 1] / sums[:, 3])
