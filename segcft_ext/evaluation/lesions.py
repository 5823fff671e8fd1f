"""Lesion-wise detection: a lesion is a connected component of one structure.

A true lesion is *found* when enough of it is predicted; a predicted one is *false* when too little of it is true. The
two are counted separately, as for multiple-sclerosis lesions (Commowick et al., Scientific Reports 2018, the source of
the threshold of 10 %), so that one prediction over two lesions finds both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["LesionCounts", "count_lesions"]

OVERLAP = 0.1
"""Share of a lesion's pixels that the other mask has to cover."""


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one structure in one image.

    Attributes:
        true: lesions of the label map.
        found: true lesions of which at least a tenth of the pixels is predicted.
        seen: lesions of the prediction.
        false: predicted lesions of which less than a tenth is true.
    """

    true: int
    found: int
    seen: int
    false: int


def count_lesions(label: np.ndarray, prediction: np.ndarray) -> LesionCounts:
    """Count the lesions of a true and a predicted mask (\\*spatial); what touches at a corner is one lesion."""
    covered_label, covered_prediction = _covered(label, prediction), _covered(prediction, label)
    return LesionCounts(
        true=covered_label.size,
        found=int((covered_label >= OVERLAP).sum()),
        seen=covered_prediction.size,
        false=int((covered_prediction < OVERLAP).sum()),
    )


def _covered(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of each connected component of ``mask`` that lies in ``other``."""
    components, count = ndimage.label(mask, np.ones([3] * mask.ndim))
    return np.asarray(ndimage.mean(np.asarray(other, float), components, range(1, count + 1)))
