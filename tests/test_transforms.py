"""Transforms of straightened vessels."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from segcft_ext.transforms import AlongVesselFirstd, VesselIntensityd


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
