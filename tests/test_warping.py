"""Warps: what MONAI's compute, without a grid from the CPU."""

from typing import Any

import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from segcft_ext.networks.warping import LocalWarp, exponential

SIZES = [(9, 7), (1, 8), (6, 5, 4)]


class Devices(TorchDispatchMode):
    """Notes on which devices tensors are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seen |= {item.device.type for item in tree_flatten(made)[0] if isinstance(item, Tensor)}
        return made


def with_gradients(made: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [made, *torch.autograd.grad(made.square().sum(), inputs)]


@pytest.mark.filterwarnings("ignore:.*Using PyTorch native grid_sample")
@pytest.mark.parametrize("size", SIZES)
def test_the_same_as_monais_to_the_bit(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, requires_grad=True)
    field = (3 * torch.randn(2, len(size), *size)).requires_grad_()
    for mode in ("bilinear", "bicubic")[: 4 - len(size)]:
        theirs = with_gradients(Warp(mode, padding_mode="border")(image, field), image, field)
        for own, other in zip(with_gradients(LocalWarp(mode)(image, field), image, field), theirs, strict=True):
            assert torch.equal(own, other)
    theirs = with_gradients(DVF2DDF(6, padding_mode="border")(field), field)
    for own, other in zip(with_gradients(exponential(6)(field), field), theirs, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_made_where_the_image_is(size: tuple[int, ...]) -> None:
    """On a GPU, a grid made on the CPU would have to be waited for."""
    image, field = (torch.empty(2, channels, *size, device="meta") for channels in (1, len(size)))
    with Devices() as devices:
        LocalWarp("bilinear")(image, exponential(6)(field))
    assert devices.seen == {"meta"}
