"""Where a pixel is: coordinates as channels (Liu et al. 2018, CoordConv).

A convolution does not know where it is, and a straightened vessel looks alike all along: without coordinates nothing
tells its proximal third from its distal one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["with_coordinates"]


def with_coordinates(image: Tensor) -> Tensor:
    """Append one channel for each axis, rising from -1 to 1 along it: (B, C, \\*spatial) -> (B, C + D, \\*spatial)."""
    axes = [torch.linspace(-1, 1, length, device=image.device, dtype=image.dtype) for length in image.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.cat([image, grid.expand(len(image), *grid.shape)], dim=1)
