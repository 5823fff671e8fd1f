"""Augmentation moves image and label map together and invents nothing."""

import math

import pytest
import torch

from segcft_ext.augmentation import AugmentationParameters, BatchAugmentation


def discs(batch: int = 4, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    label = torch.zeros(batch, 1, size, size)
    label[:, 0][:, (y - 16) ** 2 + (x - 16) ** 2 < 64] = 1
    label[:, 0][:, (y - 30) ** 2 + (x - 32) ** 2 < 80] = 3
    return label / 3 * 1.6 - 0.8, label


def test_image_and_label_stay_together() -> None:
    torch.manual_seed(0)
    image, label = discs()
    moved, moved_label = BatchAugmentation(gamma=0, contrast=0, brightness=0)(image, label)
    expected = moved_label / 3 * 1.6 - 0.8
    edge = torch.nn.functional.max_pool2d(expected, 3, 1, 1) + torch.nn.functional.max_pool2d(-expected, 3, 1, 1) > 0
    assert (moved_label != label).any()
    assert (moved - expected)[~edge].abs().max() < 0.25


def test_no_label_is_invented() -> None:
    image, label = discs()
    assert set(BatchAugmentation()(image, label)[1].unique().tolist()) <= {0.0, 1.0, 3.0}


def test_nothing_drawn_changes_nothing() -> None:
    image, label = discs()
    still = BatchAugmentation(gamma=0, contrast=0, brightness=0, probability=0)
    moved, moved_label = still(image, label)
    torch.testing.assert_close(moved, image, atol=1e-5, rtol=0)
    assert torch.equal(moved_label, label)


def test_drawing_is_seeded_and_applying_is_pure() -> None:
    image, label = discs()
    augmentation = BatchAugmentation()
    torch.manual_seed(3)
    parameters = augmentation.draw(image)
    torch.manual_seed(3)
    again = augmentation.draw(image)
    assert torch.equal(parameters.affine, again.affine)
    first, second = (augmentation.apply(parameters, image, label)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_drawing_does_not_wait_for_the_device() -> None:
    image = torch.empty(4, 1, 16, 12, device="meta")  # no value can be read from there
    assert BatchAugmentation(flip=[0, 1]).draw(image).affine.shape == (4, 2, 3)


def test_volumes() -> None:
    image = torch.rand(2, 1, 12, 10, 8) * 2 - 1
    moved, label = BatchAugmentation()(image, (image > 0).float())
    assert moved.shape == label.shape == image.shape
    assert moved.abs().max() <= 1


@pytest.mark.parametrize("size", [(40, 56), (33, 20)])
def test_images_that_are_not_square(size: tuple[int, int]) -> None:
    image = torch.rand(2, 1, *size) * 2 - 1
    assert BatchAugmentation()(image, (image > 0).float())[0].shape == image.shape


@pytest.mark.parametrize("size", [(64, 64), (256, 64), (40, 20, 80)])
def test_a_rotation_keeps_right_angles_and_lengths(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rotated = BatchAugmentation(rotation=20, scaling=0, translation=0, probability=1).draw(torch.zeros(8, 1, *size))
    pixels = torch.tensor(size[::-1]) / 2.0  # in one unit of the sampling grid, whose last axis comes first
    linear = pixels[:, None] * rotated.affine[:, :, :-1] / pixels
    torch.testing.assert_close(linear @ linear.mT, torch.eye(len(size)).expand_as(linear), atol=1e-5, rtol=0)
    assert (linear - torch.eye(len(size))).abs().amax((1, 2)).max() > 0.1


def test_what_is_drawn_reaches_its_limits_and_not_further() -> None:
    torch.manual_seed(0)
    image = torch.zeros(2000, 1, 8, 8)
    turned = BatchAugmentation(rotation=10, scaling=0, translation=0.1, elastic=0.02, probability=1).draw(image)
    linear, shift = turned.affine.split([2, 1], dim=2)
    angle = torch.atan2(linear[:, 0, 1], linear[:, 0, 0]).rad2deg()
    scaled = BatchAugmentation(rotation=0, scaling=0.25, probability=1).draw(image).affine[:, :, :2]
    sizes = scaled.diagonal(dim1=1, dim2=2).log() / math.log(1.25)
    intensities = turned.gamma.log2() / 0.3, (turned.gain - 1) / 0.15, turned.bias / 0.1
    # The sampling grid is 2 wide.
    for share in (angle / 10, shift / 2 / 0.1, sizes, *intensities):
        assert 0.99 < share.abs().max() < 1.0001
        assert share.mean().abs() < 0.05 and share.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)
    assert (turned.elastic / 2).std() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("how", ["affine", "elastic"])
def test_parameters_say_where_each_pixel_comes_from(how: str) -> None:
    torch.manual_seed(0)
    image, label = torch.rand(1, 1, 16, 24) * 2 - 1, torch.ones(1, 1, 16, 24)
    label[..., 20:] = 2
    shift = torch.tensor([2 * 3 / 24, -2 * 2 / 16])  # three columns further, two rows back
    affine, elastic = torch.eye(2, 3)[None], torch.zeros(1, 2, 5, 5)
    if how == "affine":
        affine[0, :, 2] = shift
    else:
        elastic += shift.view(1, 2, 1, 1)
    ones = torch.ones(1)
    moved, moved_label = BatchAugmentation.apply(
        AugmentationParameters(affine, elastic, ones, ones, 0 * ones), image, label
    )
    torch.testing.assert_close(moved[..., 2:, :-3], image[..., :-2, 3:], atol=1e-4, rtol=0)
    assert (moved_label[..., :17] == 1).all() and (moved_label[..., 17:] == 2).all()  # beyond the image, its last pixel


def test_intensities_change_as_the_parameters_say() -> None:
    image = torch.linspace(-0.8, 0.8, 64).view(1, 1, 8, 8)
    affine, elastic = torch.eye(2, 3)[None], torch.zeros(1, 2, 5, 5)
    gamma, gain, bias = (torch.tensor([value]) for value in (1.5, 1.1, 0.05))
    changed, _ = BatchAugmentation.apply(AugmentationParameters(affine, elastic, gamma, gain, bias), image, 0 * image)
    torch.testing.assert_close(changed, (2 * ((image + 1) / 2) ** 1.5 - 1) * 1.1 + 0.05, atol=1e-4, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrors_along_the_asked_axis_only(axis: int) -> None:
    torch.manual_seed(0)
    image, label = discs(batch=8)
    augmentation = BatchAugmentation(gamma=0, contrast=0, brightness=0, probability=0, flip=[axis])
    moved, moved_label = augmentation(image, label)
    mirrored = [torch.equal(seen, true.flip(1 + axis)) for seen, true in zip(moved_label, label)]
    assert 0 < sum(mirrored) < 8
    for seen, true, flipped in zip(moved, image, mirrored):
        torch.testing.assert_close(seen, true.flip(1 + axis) if flipped else true, atol=1e-5, rtol=0)
