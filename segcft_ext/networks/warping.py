"""MONAI's warp and its exponential of velocities, with the grid of pixels made where the image is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor

__all__ = ["LocalWarp", "exponential"]


class LocalWarp(Warp):
    """x(p + displacement(p)), beyond the image its nearest pixel.

    MONAI's layer makes the grid of the pixels on the CPU in every call, because it compares the sizes of its last grid
    with one axis too few. On a GPU each of the seven calls of an edit would wait for the copy.

    Args:
        mode: how images are sampled, ``bilinear`` or, in 2-D only, ``bicubic``.
    """

    def __init__(self, mode: str) -> None:
        with _silence():
            super().__init__(mode, padding_mode="border")

    def get_reference_grid(self, ddf: Tensor, jitter: bool = False, seed: int = 0) -> Tensor:
        """Coordinates of the pixels, shape (D, \\*spatial); nothing is kept, and nothing jitters."""
        axes = [torch.arange(length, dtype=ddf.dtype, device=ddf.device) for length in ddf.shape[2:]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def exponential(steps: int) -> DVF2DDF:
    """The layer exp(v) - id of stationary velocity fields in pixels (B, D, \\*spatial), by scaling and squaring."""
    with _silence():
        layer = DVF2DDF(steps, padding_mode="border")
    layer.warp_layer = LocalWarp("bilinear")
    return layer


@contextmanager
def _silence() -> Iterator[None]:
    """Without MONAI's notice that it samples with PyTorch, as is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample")
        yield
