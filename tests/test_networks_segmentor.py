import re

import pytest
import torch
from small_chests import small_chests

from segcft_ext.networks.segmentor import Segmentor

LABELS = {"background": 0, "lung": 1, "heart": 2}
ARCHITECTURES = [
    ("UNet", {"channels": (4, 8), "strides": (2,)}),
    ("BasicUNet", {"features": (4, 4, 4, 4, 4, 4)}),
    ("SegResNet", {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}),
    ("AttentionUnet", {"channels": (4, 8), "strides": (2,)}),
]


@pytest.mark.parametrize(("architecture", "arguments"), ARCHITECTURES)
@pytest.mark.parametrize("dims", [2, 3])
def test_gives_logits_and_gradients_in_two_and_three_dimensions(architecture, arguments, dims):
    size = 32 if architecture == "BasicUNet" else 16  # it halves the resolution four times
    network = Segmentor(LABELS, architecture, spatial_dims=dims, **arguments).eval()
    image = torch.rand(2, 1, *[size] * dims, requires_grad=True)
    logits = network(image)
    assert logits.shape == (2, 3, *[size] * dims)
    logits.sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("UNet", {"channels": (4, 8, 8, 16, 16), "strides": (2, 2, 2, 2), "num_res_units": 2}),
        ("BasicUNet", {"features": (4, 4, 4, 4, 4, 4)}),
        ("AttentionUnet", {"channels": (4, 8, 8), "strides": (2, 2)}),
    ],
)
@pytest.mark.parametrize("size", [(50, 50), (72, 72), (64, 24), (100, 41), (19, 33, 26)])
def test_takes_images_of_any_size(architecture, arguments, size):
    network = Segmentor(LABELS, architecture, spatial_dims=len(size), **arguments).eval()
    image = torch.rand(1, 1, *size, requires_grad=True)
    logits = network(image)
    assert logits.shape == (1, 3, *size)
    logits.sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


def test_an_image_that_fits_is_left_alone_and_another_is_continued_at_its_end():
    network = Segmentor(LABELS, "UNet", channels=(4, 8, 8), strides=(2, (4, 1))).eval()
    assert network.multiples == [8, 2]
    image = torch.rand(1, 1, 16, 6)
    assert torch.equal(network(image), network.network(image))
    continued = torch.cat([image[..., :5], image[..., 4:5]], dim=-1)
    assert torch.equal(network(image[..., :5]), network.network(continued)[..., :5])


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("UNet", {"channels": (4, 4), "strides": (32,)}), ("SegResNet", {"init_filters": 8, "blocks_down": [1] * 8})],
)
def test_images_that_are_too_small_are_refused(architecture, arguments, tmp_path):
    datalist = small_chests(tmp_path)
    segmentor = Segmentor(datalist.labels, architecture, **arguments)
    message = rf"image\.size: found \[32, 32\], expected one that {architecture} can take: "
    with pytest.raises(ValueError, match=message):
        segmentor.describe(datalist)


def test_unknown_architecture_suggests_a_known_one():
    with pytest.raises(ValueError, match=r"architecture is 'BasicUNett'.*BasicUNet"):
        Segmentor(LABELS, "BasicUNett")


def test_background_is_needed():
    with pytest.raises(ValueError, match="'background' to be 0"):
        Segmentor({"lung": 1}, "UNet", channels=(4, 8), strides=(2,))


def test_data_with_other_labels_are_refused(tmp_path):
    datalist = small_chests(tmp_path)
    segmentor = Segmentor(LABELS, "UNet", channels=(4, 8), strides=(2,))
    message = f"{datalist.path}: labels: found {dict(datalist.labels)}, expected the segmentor's: {LABELS}"
    with pytest.raises(ValueError, match=re.escape(message)):
        segmentor.describe(datalist)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("BasicUNet", {"features": (4, 4, 4, 4, 4, 4)}), ("UNet", {"channels": (4, 8, 8), "strides": (2, 2)})],
)
@pytest.mark.parametrize("size", [(32, 32), (42, 33)])
def test_can_be_exported_as_torchscript(architecture, arguments, size):
    """What ``monai.bundle ckpt_export`` does; and what has been exported for one size takes another."""
    network = Segmentor(LABELS, architecture, **arguments).eval()
    scripted, image = torch.jit.script(network), torch.rand(1, 1, *size)
    torch.testing.assert_close(scripted(image), network(image))
