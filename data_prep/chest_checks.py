"""Plausibility checks of a frontal chest radiograph with its left lung, right lung and heart.

The limits were set on 404 public radiographs (JSRT, Wingspan) at 64 x 64. In 403 both lungs are darker than the heart,
by at least 0.12 of the image's range, and the heart lies between the lungs' centres by at least a twelfth of the width.
In the remaining one the files of left lung and heart are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from data_prep.cases import Rejected
from data_prep.displacement import LUNGS, find_displacement
from data_prep.structures import CHEST

__all__ = ["check_chest"]

LARGEST_PIECE = 0.7
"""Smallest share of a lung or heart that must be in one piece; 0.92 is the least in the public radiographs."""


def check_chest(image: np.ndarray, label: np.ndarray, labels: Mapping[str, int]) -> None:
    """Check that lungs and heart are of one piece each, that the heart lies between the lungs and is brighter than at
    least one of them, and that the lungs' masks lie on the lungs.

    Other structures are ignored. If ``labels`` lacks lungs or heart, the checks that need them are left out.

    Args:
        image: shape (H, W), in any unit.
        label: label map of shape (H, W), in which every structure of ``labels`` has a pixel.
        labels: value of each structure.

    Raises:
        Rejected: ``fragmented_structure``, ``exchanged_masks``, ``shifted_masks``, or ``inverted_greyscale`` when both
            lungs are brighter than the heart. A single bright lung is taken for a disease.
    """
    masks = {name: label == labels[name] for name in CHEST if name in labels}
    for name, mask in masks.items():
        pieces = np.bincount(ndimage.label(mask, np.ones((3, 3)))[0][mask])
        if pieces.max() < LARGEST_PIECE * pieces.sum():
            text = f"{name} lies in pieces, the largest being {100 * pieces.max() / pieces.sum():.0f} % of it"
            raise Rejected("fragmented_structure", text)
    if len(masks) == len(CHEST):
        _check_together(image, masks)
    displacement = find_displacement(image, label, labels) if set(LUNGS) <= set(labels) else None
    if displacement and displacement.is_certain:
        raise Rejected("shifted_masks", f"both lungs would fit the picture better if moved: {displacement}")


def _check_together(image: np.ndarray, masks: Mapping[str, np.ndarray]) -> None:
    columns = {name: float(np.nonzero(mask)[1].mean()) for name, mask in masks.items()}
    if not columns["right_lung"] < columns["heart"] < columns["left_lung"]:
        found = ", ".join(f"{name} {column:.1f}" for name, column in columns.items())
        raise Rejected("exchanged_masks", f"the heart does not lie between the lungs (mean columns: {found})")
    grey = {name: float(image[mask].mean()) for name, mask in masks.items()}
    if min(grey["left_lung"], grey["right_lung"]) > grey["heart"]:
        raise Rejected("inverted_greyscale", "both lungs are brighter than the heart")
