"""Lesion-wise counting."""

import numpy as np
import pytest

from segcft_ext.evaluation.lesions import LesionCounts, count_lesions


def masks(*blocks: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros((40, 12), bool)
    for block in blocks:
        mask[block] = True
    return mask


FIRST, SECOND = (slice(2, 12), slice(2, 4)), (slice(20, 30), slice(6, 8))


@pytest.mark.parametrize(
    ("label", "prediction", "expected"),
    [
        (masks(), masks(), LesionCounts(0, 0, 0, 0)),
        (masks(FIRST), masks(), LesionCounts(1, 0, 0, 0)),
        (masks(), masks(FIRST), LesionCounts(0, 0, 1, 1)),
        (masks(FIRST, SECOND), masks(SECOND), LesionCounts(2, 1, 1, 0)),
        (masks(FIRST), masks(FIRST, SECOND), LesionCounts(1, 1, 2, 1)),
        # one prediction over both finds both; it is false when most of it is elsewhere
        (masks(FIRST, SECOND), masks((slice(0, 40), slice(0, 12))), LesionCounts(2, 2, 1, 1)),
        # one of twenty pixels is too little of a lesion
        (masks(FIRST), masks((slice(2, 3), slice(2, 3))), LesionCounts(1, 0, 1, 0)),
        (masks(FIRST), masks((slice(2, 3), slice(2, 4))), LesionCounts(1, 1, 1, 0)),
        # a tenth of what is predicted is true
        (masks((slice(2, 3), slice(2, 4))), masks(FIRST), LesionCounts(1, 1, 1, 0)),
    ],
)
def test_counts(label: np.ndarray, prediction: np.ndarray, expected: LesionCounts) -> None:
    assert count_lesions(label, prediction) == expected


def test_what_touches_at_a_corner_is_one_lesion() -> None:
    for dims in (2, 3):
        mask = np.zeros([4] * dims, bool)
        mask[(1,) * dims] = mask[(2,) * dims] = True
        assert count_lesions(mask, mask) == LesionCounts(1, 1, 1, 0)
