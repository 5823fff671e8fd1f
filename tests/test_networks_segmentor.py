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


def test_structures_follow_the_label_values():
    assert Segmentor({"heart": 2, "background": 0, "lung": 1}, "UNet", channels=(4, 8), strides=(2,)).structures == [
        "lung",
        "heart",
    ]


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
def test_can_be_exported_as_torchscript():
    """What ``monai.bundle ckpt_export`` does."""
    network = Segmentor({"background": 0, "heart": 1}, "BasicUNet", features=(4, 4, 4, 4, 4, 4)).eval()
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
