"""Folds of a sampled deformation: finding them, and removing them from displacements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft_ext.networks.pooling import max_near, mean_near

__all__ = ["folding", "jacobian_determinant", "unfolded"]

UNFOLDING_STEPS = 100
SMALLEST_DETERMINANT = 0.02


def unfolded(displacement: Tensor) -> Tensor:
    """Displacements in pixels (B, D, \\*spatial), smoothed where they fold until they fold nowhere.

    The exponential of a field cannot fold; its samples on a grid can, where it varies strongly from one to the next.
    The corners of every folded cell and their neighbours are replaced by local means, at most 100 times, which is
    enough for velocities of white noise of eight pixels. Everything else is unchanged. The gradient passes straight
    through to the given displacements.
    """
    dims = displacement.shape[1]
    smoothed = displacement.detach()
    for _ in range(UNFOLDING_STEPS):
        folded = jacobian_determinant(smoothed) < SMALLEST_DETERMINANT
        if not folded.any():
            break
        corners = F.pad(folded[:, None].float(), [0, 1] * dims)
        near = max_near(corners, 2).bool()
        smoothed = torch.where(near, mean_near(smoothed, beyond=False), smoothed)
    return displacement + (smoothed - displacement.detach())


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Smallest det(I + grad u) in each cell between the pixels, for displacements in pixels (B, D, \\*spatial).

    It is the minimum over the cell's corners, each with the differences along its own edges. Inside a two-dimensional
    cell the map is bilinear and its determinant linear, so it is smallest at a corner.

    Returns:
        Shape (B, \\*(spatial - 1)); a value of zero or less is a fold.
    """
    dims = displacement.shape[1]
    unit = torch.eye(dims, device=displacement.device).view(dims, dims, *[1] * dims)
    edges = [displacement.diff(dim=2 + axis) + unit[axis] for axis in range(dims)]
    corners = []
    for corner in itertools.product((0, 1), repeat=dims):
        columns = []
        for axis, edge in enumerate(edges):
            for other in (other for other in range(dims) if other != axis):
                edge = edge.narrow(2 + other, corner[other], edge.shape[2 + other] - 1)
            columns.append(edge)
        corners.append(_determinant(columns))
    return torch.stack(corners).amin(0)


def folding(determinant: Tensor) -> tuple[Tensor, Tensor]:
    """Share of cells in which a deformation folds (determinant <= 0) and the smallest determinant, two tensors (B,).

    Args:
        determinant: of the cells between pixels, shape (B, \\*(spatial - 1)), see :func:`jacobian_determinant`.
    """
    determinant = determinant.flatten(1)
    return (determinant <= 0).double().mean(1), determinant.amin(1).double()


def _determinant(columns: Sequence[Tensor]) -> Tensor:
    """Determinant (B, \\*spatial) of two columns (B, 2, \\*spatial) or three (B, 3, \\*spatial)."""
    if len(columns) == 2:
        first, second = columns
        return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return (columns[0] * torch.linalg.cross(columns[1], columns[2], dim=1)).sum(1)
