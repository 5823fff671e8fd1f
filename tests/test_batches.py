"""What a trainer's iteration gets: variables that are measured on the augmented image."""

import pytest
import torch
from discs import NAMES, disc_datalist, render

from segcft_ext.augmentation import BatchAugmentation
from segcft_ext.batches import PrepareRegression, PrepareVariables

VALUES = torch.tensor([[8.0, 10.0, 50.0], [6.0, 5.0, torch.nan]])


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return disc_datalist(tmp_path_factory.mktemp("discs"))


def batch(values):
    image, label = render(VALUES)
    return {"image": image, "label": label.float(), "variables": values, "spacing": torch.full((2, 2), torch.nan)}


def without_left(image, label):
    return image, torch.where(label == 1, 0, label)


def test_measured_variables_are_measured_after_the_augmentation_and_others_taken_as_they_are(datalist):
    image, values, spacing, reference = PrepareVariables(datalist, NAMES, without_left)(batch(VALUES))
    expected = torch.cat([torch.zeros(2, 1), VALUES[:, 1:]], 1)
    torch.testing.assert_close(values, expected, atol=0.05, rtol=0, equal_nan=True)  # half a pixel is 0.05 %
    assert image.shape == (2, 1, 32, 32) and spacing is None and not reference[:, 1].any()


def test_preparing_does_not_wait_for_the_device(datalist):
    on_disk = batch(VALUES)
    for spacing, known in ((torch.full((2, 2), 0.5), True), (torch.tensor([[0.5, 0.5], [torch.nan, 0.5]]), False)):
        _, values, found, _ = PrepareVariables(datalist, NAMES)({**on_disk, "spacing": spacing}, "meta")
        assert values.is_meta and (found is not None) == known  # no value can be read from the meta device
        assert found is None or found.is_meta


def test_the_order_is_that_of_the_names_asked_for(datalist):
    names = ["age", "right_area"]
    _, values = PrepareRegression(datalist, names, without_left)(batch(VALUES[:, [2, 1]]))
    torch.testing.assert_close(values, VALUES[:, [2, 1]], atol=0.05, rtol=0, equal_nan=True)


def test_a_drawn_augmentation_is_measured_on_what_it_leaves(datalist):
    torch.manual_seed(0)
    _, values, _, reference = PrepareVariables(datalist, NAMES, BatchAugmentation(probability=1.0))(batch(VALUES))
    torch.testing.assert_close(values[:, :2], 100 * reference[:, 1:].mean((2, 3)))
    assert ((values - VALUES)[:, :2].abs() > 0.05).any()
