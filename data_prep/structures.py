"""Label maps from one mask for each structure, and checks of what contradicts anatomy in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy import ndimage

from data_prep.cases import Rejected

__all__ = ["CHEST", "MAX_OVERLAP", "check_label_map", "combine_masks", "label_values", "threshold_mask"]

CHEST = ("left_lung", "right_lung", "heart")
MAX_OVERLAP = 0.5
"""Largest share of the smaller of two structures that may lie in the other one.

Annotators differ: some let the lung end at the heart's border (overlap of a few pixels), some draw it on behind the
heart (up to 44 % of the heart's area in public data). With the heart on top both give the same label map. A structure
that lies mostly in another one is a wrong file."""

EDGE = 2
"""Width of a soft edge around the full foreground, from antialiasing or lossy compression, in pixels."""
FEW = 16
"""Up to this number of values in between may be other labels; a blurred mask, whose edge is wider, has more."""


def label_values(structures: Sequence[str]) -> dict[str, int]:
    """Background 0, then the structures in order."""
    return {"background": 0, **{name: i for i, name in enumerate(structures, start=1)}}


def threshold_mask(mask: np.ndarray) -> np.ndarray:
    """A mask as booleans: binary with any foreground value, or soft (antialiased) and then cut at one half.

    Up to :data:`FEW` values between the lowest and the highest are taken for a soft edge only if most of their pixels
    lie within :data:`EDGE` pixels of the highest value. Otherwise they may be other labels: of 0, 1 and 255, say, 255
    may well mean "to be ignored".

    Raises:
        Rejected: for any other image, such as a label map with several structures, since it is unknown which value is
            meant.
    """
    low, high = mask.min(), mask.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise Rejected("mask_not_binary", "the mask has negative or non-finite values")
    whole = np.issubdtype(mask.dtype, np.integer)
    top = mask == high
    # zeros are counted without an array of their own
    others = mask.size - np.count_nonzero(mask) if low == 0 else np.count_nonzero(mask == low)
    binary = low == high or np.count_nonzero(top) + others == mask.size
    if not binary and high not in (np.iinfo(mask.dtype).max if whole else 1.0, 255):
        count = np.unique(mask).size
        raise Rejected("mask_not_binary", f"the mask has {count} values up to {high:g}, neither binary nor soft")
    if not binary:
        between = ~top & (mask != low)
        beyond = between & ~ndimage.maximum_filter(top, 2 * EDGE + 1)
        if 2 * np.count_nonzero(beyond) > np.count_nonzero(between) and (some := np.unique(mask[between])).size <= FEW:
            listed = ", ".join(f"{value:g}" for value in some)
            raise Rejected("mask_not_binary", f"the mask has the values {listed} far from {high:g}, expected an edge")
    if binary and high > 0 and low not in (0, high):
        raise Rejected("mask_not_binary", f"the mask has the values {low:g} and {high:g}, and no zero")
    return top if binary and high > 0 else mask > (int(high) // 2 if whole else high / 2)


def combine_masks(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """One label map (uint8) of boolean masks (H, W); where masks overlap, the later structure wins.

    Raises:
        Rejected: when a structure is empty or covers the whole image, a lung or the heart holds all four corners, or
            two structures overlap by more than :data:`MAX_OVERLAP` of the smaller.
    """
    areas = {name: np.count_nonzero(mask) for name, mask in masks.items()}
    label = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for value, (name, mask) in enumerate(masks.items(), start=1):
        if not areas[name]:
            raise Rejected("empty_structure", f"{name} has no pixel")
        if areas[name] == mask.size:
            raise Rejected("mask_not_binary", f"{name} covers the whole image")
        if name in CHEST and mask[[0, 0, -1, -1], [0, -1, 0, -1]].all():
            raise Rejected("inverted_mask", f"{name} holds all four corners of the image")
        np.copyto(label, value, where=mask)
    # No two structures can share more pixels than the sum of all areas exceeds their union.
    spare = sum(areas.values()) - np.count_nonzero(label)
    for first, second in combinations(masks, 2):
        allowed = MAX_OVERLAP * min(areas[first], areas[second])
        if spare > allowed and (shared := np.count_nonzero(masks[first] & masks[second])) > allowed:
            overlap = 100 * shared / min(areas[first], areas[second])
            text = f"{first} and {second} overlap by {overlap:.0f} % of the smaller one"
            raise Rejected("structures_overlap", f"{text} (at most {100 * MAX_OVERLAP:.0f} %)")
    return label


def check_label_map(label: np.ndarray, labels: Mapping[str, int], may_lack: Sequence[str] = ()) -> None:
    """Check that every structure is there and that each ``left_…`` lies on the picture's right of its ``right_…``.

    Args:
        label: shape (H, W) or (D, H, W).
        labels: value of each structure.
        may_lack: the structures that need not be there.

    Raises:
        Rejected: when a structure has no pixel or the sides are swapped.
    """
    for name, value in labels.items():
        if value != 0 and name not in may_lack and not (label == value).any():
            raise Rejected("empty_structure", f"{name} has no pixel left in the resized label map")
    for left in labels:
        right = left.replace("left_", "right_", 1)
        if not left.startswith("left_") or right not in labels:
            continue
        columns = {name: float(np.nonzero(label == labels[name])[1].mean()) for name in (left, right)}
        if columns[left] < columns[right]:
            text = (
                f"{left} lies on the picture's left of {right} (columns {columns[left]:.1f} and {columns[right]:.1f})"
            )
            raise Rejected("swapped_sides", f"{text}: the patient's left belongs on the picture's right")
