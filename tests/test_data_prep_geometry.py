import io

import numpy as np
import pytest
from drawn_chest import draw
from PIL import Image
from scipy.ndimage import gaussian_filter

from data_prep.cases import Rejected
from data_prep.geometry import fit_image, fit_label, fit_spacing, pad_to_aspect
from data_prep.intensity import to_uint16, to_unit_range
from data_prep.structures import check_label_map, combine_masks, label_values, threshold_mask
from segcft_ext.presentation import padded_shape

SIZES = [(16, 16), (24, 16), (64, 64), (100, 90)]


@pytest.mark.parametrize("shape", [(48, 40), (30, 90), (64, 64), (5, 9)])
@pytest.mark.parametrize("size", SIZES)
def test_padding_is_centred_and_keeps_every_pixel(shape, size):
    padded = pad_to_aspect(np.ones(shape), size)
    assert padded.sum() == np.prod(shape)
    assert padded.shape == padded_shape(shape, size)
    assert min(padded.shape[0] - shape[0], padded.shape[1] - shape[1]) == 0
    assert abs(padded.shape[0] * size[1] - padded.shape[1] * size[0]) <= max(size)  # one pixel of rounding
    for axis in (0, 1):
        filled = np.flatnonzero(padded.any(1 - axis))
        assert abs(filled[0] - (padded.shape[axis] - 1 - filled[-1])) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_resize_keeps_range_and_constants(size):
    image = np.random.default_rng(0).random((50, 37))
    fitted = fit_image(image, size)
    assert fitted.shape == size and fitted.min() >= 0 and fitted.max() <= 1
    np.testing.assert_allclose(fit_image(np.ones(size) * 0.3, (size[0] // 2, size[1] // 2)), 0.3, rtol=1e-5)
    np.testing.assert_array_equal(fit_image(image[: size[0], : size[1]], image[: size[0], : size[1]].shape),
                                  image[: size[0], : size[1]].astype(np.float32))  # fmt: skip


def test_resize_is_antialiased():
    stripes = np.tile([0.0, 1.0], (128, 64))
    assert fit_image(stripes, (16, 16)).std() < 0.02


def test_image_and_label_stay_in_register():
    rows, columns = np.mgrid[:96, :96]
    disc = (rows - 40) ** 2 + (columns - 55) ** 2 < 20**2
    for size in ((32, 32), (25, 25), (150, 150)):
        label, image = fit_label(disc.astype(np.uint8), size), fit_image(disc.astype(float), size)
        np.testing.assert_array_equal(label[np.abs(image - 0.5) > 0.4], image[np.abs(image - 0.5) > 0.4] > 0.5)
        centre = np.argwhere(label).mean(0)
        np.testing.assert_allclose((centre + 0.5) * 96 / size[0], (40.5, 55.5), atol=0.3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", [(0, 1, 3), (0, 2)])
def test_no_label_is_invented(size, values):
    label = np.random.default_rng(1).choice(np.array(values, np.uint8), (53, 41))
    fitted = fit_label(label, size)
    assert fitted.shape == size and fitted.dtype == np.uint8
    assert set(np.unique(fitted)) <= set(values)


def test_label_of_the_largest_share_wins():
    label = np.array([[3, 3, 0, 1, 1], [3, 1, 0, 2, 1]], np.uint8)
    np.testing.assert_array_equal(fit_label(label[:, :2], (1, 1)), [[3]])
    np.testing.assert_array_equal(fit_label(label[:, 3:], (1, 1)), [[1]])


def test_ties_do_not_shrink_a_structure():
    label = np.zeros((40, 40), np.uint8)
    label[7:29, 5:25] = 2
    fitted = fit_label(label, (20, 20))
    assert (fitted == 2).mean() == pytest.approx((label == 2).mean(), rel=0.02)


def test_area_survives_the_resize():
    _, masks = draw(shape=(96, 80))
    label = combine_masks({name: threshold_mask(mask) for name, mask in masks.items()})
    fitted = fit_label(label, (48, 40))
    for value in (1, 2, 3):
        assert (fitted == value).mean() == pytest.approx((label == value).mean(), rel=0.03)


def test_spacing_follows_padding_and_resize():
    assert fit_spacing(None, (10, 10), (5, 5)) is None
    assert fit_spacing((0.2, 0.3), (100, 50), (50, 50)) == pytest.approx((0.4, 0.6))


def test_intensity_is_linear_between_its_percentiles_and_free_of_gain_and_offset():
    image = np.random.default_rng(0).normal(size=(60, 60))
    mapped = to_unit_range(image)
    assert mapped.min() == 0 and mapped.max() == 1
    low, high = np.percentile(image, (1, 99))
    inside = (image > low) & (image < high)
    np.testing.assert_allclose(mapped[inside], ((image - low) / (high - low))[inside], atol=1e-6)
    np.testing.assert_allclose(to_unit_range(1000 + 70 * image), mapped, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_whole_numbers_are_mapped_like_others(dtype):
    random = np.random.default_rng(0)
    for high in (2, 9, np.iinfo(dtype).max + 1):
        image = random.integers(0, high, (31, 17)).astype(dtype)
        np.testing.assert_allclose(to_unit_range(image), to_unit_range(image.astype(float)), atol=1e-6)


def test_stored_intensity_is_linear_in_16_bit():
    np.testing.assert_array_equal(to_uint16(np.array([-1, 0, 0.5, 1, 2])), [0, 0, 32768, 65535, 65535])


@pytest.mark.parametrize(("value", "reason"), [(7.0, "constant_image"), (np.nan, "not_finite"), (np.inf, "not_finite")])
def test_images_without_contrast_are_rejected(value, reason):
    image = np.full((20, 20), 7.0)
    image[3, 3] = value
    with pytest.raises(Rejected) as fault:
        to_unit_range(image)
    assert fault.value.reason == reason


def test_heart_wins_over_lungs():
    _, masks = draw()
    masks = {name: mask > 0 for name, mask in masks.items()}
    both = masks["left_lung"] & masks["heart"]
    assert both.any()
    label = combine_masks(masks)
    assert (label[both] == 3).all()
    assert (label == 3).sum() == masks["heart"].sum()


def test_masks_may_be_binary_of_any_value_or_soft():
    soft = np.array([[0, 64, 128, 191, 255]], np.uint8)
    np.testing.assert_array_equal(threshold_mask(soft), [[0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(threshold_mask(np.array([[0.0, 0.4, 0.6, 1.0]])), [[0, 0, 1, 1]])
    for value in (1, 3, 255):
        np.testing.assert_array_equal(threshold_mask(np.array([[0, value]], np.uint8)), [[0, 1]])
    assert not threshold_mask(np.zeros((2, 2), np.uint8)).any()
    for values in ([0, 1, 2, 3], [1, 255], [-1, 1], [0.0, np.nan]):
        with pytest.raises(Rejected) as fault:
            threshold_mask(np.array([values]))
        assert fault.value.reason == "mask_not_binary"


@pytest.mark.parametrize("values", [(1,), (1, 2), (128,), tuple(range(1, 17))])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_label_map_with_255_is_no_soft_mask(values, kind):
    label = np.zeros((60, 60), kind)
    for i, value in enumerate(values):
        label[5:50, 5 + 3 * i : 8 + 3 * i] = value
    label[:, -2:] = 255  # "to be ignored"
    with pytest.raises(Rejected, match="far from 255") as fault:
        threshold_mask(label)
    assert fault.value.reason == "mask_not_binary"


def test_an_edge_of_few_values_a_blurred_one_and_that_of_a_jpeg_are_soft():
    rows, columns = np.mgrid[:240, :240]
    disc = (rows - 110) ** 2 + (columns - 130) ** 2 < 70**2
    antialiased = (disc.reshape(120, 2, 120, 2).mean((1, 3)) * 255).astype(np.uint8)
    assert np.unique(antialiased).size == 5
    stream = io.BytesIO()
    Image.fromarray(255 * disc.astype(np.uint8)).save(stream, "JPEG", quality=40)
    for mask in (antialiased, gaussian_filter(255.0 * disc, 8).round().astype(np.uint8), np.array(Image.open(stream))):
        expected = disc if mask.shape == disc.shape else antialiased > 127
        assert (threshold_mask(mask) == expected).mean() > 0.995


def test_contradictory_masks_are_rejected():
    a, b = np.zeros((2, 10, 10), bool)
    a[:5] = True
    cases = {
        "empty_structure": {"a": a, "b": b},
        "mask_not_binary": {"a": a, "b": np.ones_like(a)},
        "structures_overlap": {"a": a, "b": np.roll(a, 2, axis=0)},
    }
    for reason, masks in cases.items():
        with pytest.raises(Rejected) as fault:
            combine_masks(masks)
        assert fault.value.reason == reason
    assert combine_masks({"a": a, "b": np.roll(a, 3, axis=0)}).max() == 2


def test_sides_are_told_by_the_names():
    label = np.zeros((6, 6), np.uint8)
    label[:, 4], label[:, 1] = 1, 2
    check_label_map(label, label_values(["left_lung", "right_lung"]))
    check_label_map(label[:, ::-1], label_values(["upper", "lower"]))
    with pytest.raises(Rejected, match="swapped_sides"):
        check_label_map(label[:, ::-1], label_values(["left_lung", "right_lung"]))
    with pytest.raises(Rejected, match="empty_structure"):
        check_label_map(label, label_values(["left_lung", "right_lung", "heart"]))
