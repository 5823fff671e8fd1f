"""Maximum and mean over the neighbours of each pixel, in two dimensions or three."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["max_near", "mean_near", "scaled_radius"]


def scaled_radius(pixels: float, maps: Tensor) -> int:
    """A radius given in pixels of an image of 256, in those of maps (B, C, \\*spatial): at least one."""
    return max(1, round(pixels * max(maps.shape[2:]) / 256))


def max_near(maps: Tensor, radius: int = 1) -> Tensor:
    """Largest value within a radius in pixels along each axis, (B, C, \\*spatial); for masks, a dilation."""
    return _over_windows(maps, radius, torch.maximum, -torch.inf)


def mean_near(maps: Tensor, radius: int = 1, beyond: bool = True) -> Tensor:
    """Mean within a radius in pixels along each axis, (B, C, \\*spatial).

    Args:
        maps: the maps to average.
        radius: radius in pixels.
        beyond: whether pixels beyond the image count as zeros; otherwise they are left out.
    """
    count: float | Tensor = (2 * radius + 1) ** (maps.ndim - 2)
    if not beyond:
        count = _over_windows(torch.ones_like(maps[:1, :1]), radius, torch.add, 0)
    return _over_windows(maps, radius, torch.add, 0) / count


def _over_windows(maps: Tensor, radius: int, combine: Callable[[Tensor, Tensor], Tensor], beyond: float) -> Tensor:
    """The values of each window combined, with ``beyond`` for pixels beyond the image."""
    # Shift by shift along one axis after the other: on a CPU many times as fast as PyTorch's pooling.
    for axis in range(2, maps.ndim):
        border = [0, 0] * (maps.ndim - 1 - axis) + [radius, radius]
        padded, length = F.pad(maps, border, value=beyond), maps.shape[axis]
        maps = padded.narrow(axis, 0, length)
        for shift in range(1, 2 * radius + 1):
            maps = combine(maps, padded.narrow(axis, shift, length))
    return maps
