"""Coordinates of the pixels as input channels (CoordConv, Liu et al. 2018).

A convolution does not know where it is, and a straightened vessel looks alike along its whole length: without
coordinates, nothing distinguishes its proximal third from its distal one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["coordinates", "positional_encoding", "with_coordinates"]


def coordinates(image: Tensor) -> Tensor:
    """Coordinates of the pixels of an image (B, C, \\*spatial), -1 to 1 along each axis, shape (B, D, \\*spatial)."""
    axes = [torch.linspace(-1, 1, length, device=image.device, dtype=image.dtype) for length in image.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(image), *grid.shape)


def with_coordinates(image: Tensor) -> Tensor:
    """Append one coordinate channel for each axis: (B, C, \\*spatial) -> (B, C + D, \\*spatial)."""
    return torch.cat([image, coordinates(image)], dim=1)


def positional_encoding(image: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines with half a period, one, two, four … over each axis of an image (B, C, \\*spatial).

    Shape (B, 2 * frequencies * D, \\*spatial). A band of the image is nearly a linear function of them; from the
    coordinates alone, a network needs some depth to represent it (Tancik et al. 2020).
    """
    angles = coordinates(image) * (torch.pi / 2)
    waves = [f(2**i * angles) for i in range(frequencies) for f in (torch.sin, torch.cos)]
    return torch.cat([angles[:, :0], *waves], dim=1)
