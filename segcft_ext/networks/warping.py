"""MONAI's warp and its exponential of velocity fields, with the grid of pixels made on the image's device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor

__all__ = ["LocalWarp", "exponential"]


class LocalWarp(Warp):
    """x(p + displacement(p)); beyond the image, the value of its nearest pixel.

    MONAI's layer makes the grid of the pixels on the CPU in every call: the check whether it can reuse its last grid
    compares one axis too few. On a GPU, each of the seven calls of an edit would wait for the copy.

    Args:
        mode: how images are sampled, ``bilinear`` or, in 2-D only, ``bicubic``.
    """

    def __init__(self, mode: str) -> None:
        with _silence():
            super().__init__(mode, padding_mode="border")

    def get_reference_grid(self, ddf: Tensor, jitter: bool = False, seed: int = 0) -> Tensor:
        """Coordinates of the pixels, shape (D, \\*spatial); ``jitter`` and ``seed`` are ignored, nothing is cached."""
        axes = [torch.arange(length, dtype=ddf.dtype, device=ddf.device) for length in ddf.shape[2:]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def exponential(steps: int) -> DVF2DDF:
    """A layer that maps stationary velocity fields v in pixels (B, D, \\*spatial) to exp(v) - id.

    It uses scaling and squaring, with ``steps`` squarings.
    """
    with _silence():
        layer = DVF2DDF(steps, padding_mode="border")
    layer.warp_layer = LocalWarp("bilinear")
    return layer


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress MONAI's notice that it samples with PyTorch, which is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample")
        yield
