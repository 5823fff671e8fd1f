"""A grey picture as a file holds it, and the checks that hold for every format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.cases import Rejected

__all__ = ["MAX_SIDE", "Picture", "check_shape", "check_spacing", "single_channel"]

MAX_SIDE = 2**13
"""Largest height and width. Checked before anything is decoded: a file of a few bytes may declare any size."""


@dataclass(frozen=True)
class Picture:
    """A grey picture.

    Attributes:
        pixels: shape (H, W), row 0 at the top.
        spacing: pixel spacing in mm (row, column), None where unknown.
        notes: keys of :data:`data_prep.cases.NOTES`.
        affine: shape (4, 4), from column, row and slice to RAS mm; None where the format states no position.
    """

    pixels: np.ndarray
    spacing: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    affine: np.ndarray | None = None


def check_shape(height: int, width: int) -> None:
    """Refuse what is too small for a picture or too large for a radiograph.

    Raises:
        Rejected: when a side has fewer than 2 or more than :data:`MAX_SIDE` pixels.
    """
    if min(height, width) < 2:
        raise Rejected("unreadable", f"the file holds {height} x {width} pixels, which is no picture")
    if max(height, width) > MAX_SIDE:
        raise Rejected("too_large", f"the picture has {height} x {width} pixels, more than {MAX_SIDE} along a side")


def check_spacing(row: float, column: float) -> tuple[float, float]:
    """Pixel spacing in mm as two numbers.

    Raises:
        Rejected: when they are not positive and finite.
    """
    spacing = float(row), float(column)
    if not all(0 < s < np.inf for s in spacing):
        raise Rejected("unreadable", f"the pixel spacing is {spacing}, not two positive numbers")
    return spacing


def single_channel(colours: np.ndarray) -> np.ndarray:
    """The one channel of (H, W, C) equal channels.

    Raises:
        Rejected: when they differ: which of them is the radiograph, if any, is unknown.
    """
    if (colours != colours[..., :1]).any():
        raise Rejected("colour")
    return colours[..., 0]
