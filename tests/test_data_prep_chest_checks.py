import numpy as np
import pytest
from drawn_chest import draw

from data_prep.cases import Rejected
from data_prep.chest_checks import check_chest
from data_prep.structures import CHEST, combine_masks, label_values


@pytest.fixture
def chest():
    image, masks = draw()
    return image.astype(float), {name: mask > 0 for name, mask in masks.items()}


def test_a_chest_passes_and_an_inverted_one_does_not(chest):
    image, masks = chest
    label, labels = combine_masks(masks), label_values(CHEST)
    check_chest(image, label, labels)
    with pytest.raises(Rejected, match="inverted_greyscale"):
        check_chest(-image, label, labels)


def test_one_white_lung_is_a_disease(chest):
    image, masks = chest
    image[masks["left_lung"] & ~masks["heart"]] = image.max()
    check_chest(image, combine_masks(masks), label_values(CHEST))


@pytest.mark.parametrize("lung", ["left_lung", "right_lung"])
def test_a_lung_exchanged_with_the_heart_is_found(chest, lung):
    image, masks = chest
    exchanged = {**masks, lung: masks["heart"], "heart": masks[lung] & ~masks["heart"]}
    with pytest.raises(Rejected, match="exchanged_masks"):
        check_chest(image, combine_masks(exchanged), label_values(CHEST))


def test_other_structures_are_not_looked_at(chest):
    image, masks = chest
    label = combine_masks({"heart": masks["heart"]})
    check_chest(-image, label, label_values(["heart"]))
    check_chest(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), int), {"background": 0, "lumen": 1})


def test_a_lung_in_pieces_is_found_and_a_speck_is_not(chest):
    image, masks = chest
    labels = label_values(CHEST)
    speck = masks["right_lung"].copy()
    speck[0, 0] = True
    check_chest(image, combine_masks({**masks, "right_lung": speck}), labels)
    cut = masks["right_lung"].copy()
    cut[20:24] = False
    with pytest.raises(Rejected, match="fragmented_structure"):
        check_chest(image, combine_masks({**masks, "right_lung": cut}), labels)
    with pytest.raises(Rejected, match="fragmented_structure"):
        check_chest(image, combine_masks({"right_lung": cut}), label_values(["right_lung"]))
