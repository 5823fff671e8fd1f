"""Maximum and mean over neighbours, against PyTorch's own pooling."""

import pytest
import torch
import torch.nn.functional as F

from segcft_ext.networks.pooling import max_near, mean_near


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("size", [(2, 3, 9, 7), (1, 2, 7, 8, 9)])
def test_maximum_and_mean_are_those_of_pooling(size: tuple[int, ...], radius: int) -> None:
    maps = torch.randn(size, generator=torch.Generator().manual_seed(0))
    largest, mean = (F.max_pool2d, F.avg_pool2d) if len(size) == 4 else (F.max_pool3d, F.avg_pool3d)
    window = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
    assert torch.equal(max_near(maps, radius), largest(maps, **window))
    for beyond in (True, False):
        torch.testing.assert_close(mean_near(maps, radius, beyond), mean(maps, **window, count_include_pad=beyond))
