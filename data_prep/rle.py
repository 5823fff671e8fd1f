"""Run-length encoded masks as CheXmask and others write them: ``start length start length …``.

Starts are counted from 1 along the rows of the image (row-major): pixel 1 is the top left one, pixel 2 the one to its
right. Runs may touch and need not be sorted; they must not overlap.

References:
    Gaggion et al., CheXmask: a large-scale dataset of anatomical segmentation masks for multi-center chest x-ray
    images, Scientific Data 2024.
"""

from __future__ import annotations

import re

import numpy as np

from data_prep.cases import Rejected

__all__ = ["decode_rle"]

_NUMBERS = re.compile(r"[0-9]{1,15}(\s+[0-9]{1,15})*")


def decode_rle(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of booleans that a text encodes.

    Args:
        text: the runs; white space around them does not matter.
        shape: (H, W) of the mask.

    Raises:
        Rejected: ``bad_rle``, when the text is empty, is no list of pairs of whole numbers, or has runs that are empty,
            overlap or lie outside the mask. A missing cell, which pandas reads as NaN, is empty.
    """
    size = shape[0] * shape[1]
    if not isinstance(text, str) or not text.strip():
        raise Rejected("bad_rle", "the mask has no runs")
    text = text.strip()
    if not _NUMBERS.fullmatch(text):
        raise Rejected("bad_rle", "the mask's runs are not whole numbers")
    numbers = np.array(text.split(), dtype=np.int64)
    if numbers.size % 2:
        raise Rejected("bad_rle", f"the mask has {numbers.size} numbers, not pairs of start and length")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    if starts.min() < 0 or lengths.min() < 1 or ends.max() > size:
        raise Rejected("bad_rle", f"the mask has runs that are empty or outside its {shape[0]} x {shape[1]} pixels")
    order = np.argsort(starts)
    if (starts[order][1:] < ends[order][:-1]).any():
        raise Rejected("bad_rle", "the mask has runs that overlap")
    # Runs do not overlap, so starts differ from each other, and ends too: one assignment each is enough.
    steps = np.zeros(size + 1, np.int8)
    steps[starts] += 1
    steps[ends] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape(shape)
