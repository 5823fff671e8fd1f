"""Transforms of radiographs and of straightened vessels."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

from data_prep.geometry import pad_to_aspect
from segcft_ext.transforms import (
    AlongVesselFirstd,
    PadToAspectd,
    RadiographIntensityd,
    ResizedSpacingd,
    VesselIntensityd,
)


@pytest.mark.parametrize("size", [(20, 6), (6, 20), (20, 6, 5), (6, 20, 5), (5, 6, 20)])
def test_the_vessel_lies_along_the_first_axis_and_goes_back(size: tuple[int, ...]) -> None:
    image = MetaTensor(torch.rand(1, *size))
    chain = Compose([AlongVesselFirstd("image")])
    turned = chain({"image": image})
    assert turned["image"].shape[1] == 20
    torch.testing.assert_close(chain.inverse(turned)["image"].as_tensor(), image.as_tensor())


def test_an_image_as_wide_as_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image: found size \[8, 8\]"):
        AlongVesselFirstd("image")({"image": MetaTensor(torch.zeros(1, 8, 8))})


@pytest.mark.parametrize("full", [None, 255, 65535])
def test_intensities_are_the_same_however_they_are_stored(full: int | None) -> None:
    hu = torch.tensor([[-1000.0, -150.0, -100.0, 300.0, 750.0, 1200.0]])
    image = hu if full is None else ((hu + 150) / 900).clamp(0, 1) * full
    found = VesselIntensityd("image")({"image": image})["image"]
    np.testing.assert_allclose(found, [[-1, -1, -8 / 9, 0, 1, 1]], atol=1e-5)


@pytest.mark.parametrize("full", [255, 65535])
def test_a_prepared_radiograph_is_not_stretched(full: int) -> None:
    image = torch.linspace(0.2, 0.6, 401)[None] * full
    stored = RadiographIntensityd("image", prepared=True)({"image": image})["image"]
    np.testing.assert_allclose(stored, 2 * image / full - 1, atol=1e-5)
    stretched = RadiographIntensityd("image")({"image": image})["image"]
    assert (stretched.min(), stretched.max()) == (-1, 1)
    assert stretched[0, 4] == pytest.approx(-1, abs=1e-4) and stretched[0, 5] > -1


@pytest.mark.parametrize("transform", [RadiographIntensityd("image"), VesselIntensityd("image")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 7.0])
def test_an_image_without_intensities_is_refused(transform: MapTransform, value: float) -> None:
    image = torch.full((1, 8, 8), 7.0)
    image[0, 3, 4] = value
    with pytest.raises(ValueError, match=r"image: found intensities from \S+ to \S+, expected finite ones that differ"):
        transform({"image": image})


def test_a_radiograph_of_a_few_bright_pixels_is_refused_as_in_data_prep() -> None:
    image = torch.zeros(1, 20, 20)
    image[0, 3, 4] = 255
    with pytest.raises(ValueError, match="image: found 0 as 1st and as 99th percentile of the intensities"):
        RadiographIntensityd("image")({"image": image})


@pytest.mark.parametrize("shape", [(60, 80), (81, 50), (96, 64), (7, 7), (301, 200)])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 96)])
def test_padding_is_that_of_data_prep_and_is_undone(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = MetaTensor(torch.rand(1, *shape))
    chain = Compose([PadToAspectd("image", size, value=-1.0)])
    padded = chain({"image": image})
    np.testing.assert_array_equal(padded["image"][0], pad_to_aspect(image[0].numpy(), size, -1))
    torch.testing.assert_close(chain.inverse(padded)["image"].as_tensor(), image.as_tensor())


def test_a_strip_is_not_padded_to_a_huge_image() -> None:
    pad = PadToAspectd("image", (64, 64))
    assert pad({"image": torch.zeros(1, 10, 160)})["image"].shape == (1, 160, 160)
    with pytest.raises(ValueError, match=r"found an image of shape \(2, 12800\), expected .* of \(64, 64\)"):
        pad({"image": torch.zeros(1, 2, 12800)})


def test_spacing_grows_as_the_image_is_made_smaller() -> None:
    found = ResizedSpacingd("image", (64, 32), [0.1, 0.2])({"image": torch.zeros(1, 640, 64)})
    torch.testing.assert_close(found["spacing"], torch.tensor([1.0, 0.4]))
    assert "spacing" not in ResizedSpacingd("image", (64, 32))({"image": torch.zeros(1, 640, 64)})


@pytest.mark.parametrize("spacing", [0.2, [0.2], [0.2, 0], ["a", "b"]])
def test_a_spacing_is_one_number_for_each_axis(spacing: object) -> None:
    with pytest.raises(ValueError, match=r"spacing: found .*, expected 2 positive numbers, mm along each axis"):
        ResizedSpacingd("image", (64, 32), spacing)  # type: ignore[arg-type]
