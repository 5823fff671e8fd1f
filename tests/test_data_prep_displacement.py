"""Masks that lie beside the lungs, on chest phantoms."""

import numpy as np
import pytest
from scipy import ndimage

from data_prep.cases import Rejected
from data_prep.chest_checks import check_chest
from data_prep.displacement import GRID, find_displacement
from data_prep.geometry import fit_image, fit_label
from data_prep.phantom_chest import ChestPhantom
from data_prep.structures import CHEST, label_values

LABELS = label_values(CHEST)


@pytest.fixture(scope="module")
def chests():
    phantom = ChestPhantom(size=64)
    return [phantom.render(*phantom.sample(seed)) for seed in range(8)]


def moved(label, rows, columns):
    """The label map moved by shares of its longer side."""
    return ndimage.shift(label, [rows * max(label.shape), columns * max(label.shape)], order=0)


def test_masks_where_they_belong_are_left_alone(chests):
    for image, label in chests:
        assert not find_displacement(image, label, LABELS).is_likely
        check_chest(image, label, LABELS)


@pytest.mark.parametrize(("rows", "columns"), [(0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1), (0.07, -0.07), (-0.13, 0.03)])
def test_shifted_masks_are_found_and_the_way_back_is_told(chests, rows, columns):
    for image, label in chests:
        found = find_displacement(image, moved(label, rows, columns), LABELS)
        assert found.is_certain and found.is_likely
        np.testing.assert_allclose((found.rows, found.columns), (-rows, -columns), atol=2 / GRID)
        with pytest.raises(Rejected, match="shifted_masks"):
            check_chest(image, moved(label, rows, columns), LABELS)


def test_the_heart_is_not_needed(chests):
    lungs = label_values(CHEST[:2])
    for image, label in chests:
        without = np.where(label == LABELS["heart"], 0, label)
        check_chest(image, without, lungs)
        with pytest.raises(Rejected, match="shifted_masks"):
            check_chest(image, moved(without, 0.1, 0), lungs)


def test_a_small_shift_is_likely_and_not_certain(chests):
    found = [find_displacement(image, moved(label, 0, 2 / 64), LABELS) for image, label in chests]
    assert any(one.is_likely for one in found) and not any(one.is_certain for one in found)


@pytest.mark.parametrize("size", [(224, 224), (40, 40), (96, 64), (64, 96)])
def test_size_aspect_and_unit_do_not_matter(chests, size):
    image, label = chests[0]
    image, label = fit_image(image, size), fit_label(label, size)
    for masks, shifted in ((label, False), (moved(label, -0.1, 0.02), True)):
        found = find_displacement(1000 + 70 * image.astype(float), masks, LABELS)
        assert found.is_certain == found.is_likely == shifted
        assert not shifted or (str(found).startswith(("9 %", "10 %", "11 %")) and "down" in str(found))


@pytest.mark.parametrize("ill", [["left_lung"], ["right_lung"], ["left_lung", "right_lung"]])
def test_white_lungs_are_a_disease(chests, ill):
    for image, label in chests:
        white = image.copy()
        white[np.isin(label, [LABELS[name] for name in ill])] = np.quantile(image[label == LABELS["heart"]], 0.2)
        assert not find_displacement(white, label, LABELS).is_certain


def test_there_is_nothing_to_find_without_lungs_or_without_a_picture(chests):
    image, label = chests[0]
    assert find_displacement(image, np.where(label == LABELS["left_lung"], 0, label), LABELS) is None
    assert find_displacement(np.ones_like(image), label, LABELS) is None
