"""The regressor: image -> variables, the guide of regressor-guided fine-tuning (Reg-CFT)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from segcft_ext.checkpoints import SelfDescribing
from segcft_ext.datalist import Datalist
from segcft_ext.networks.coordinates import with_coordinates
from segcft_ext.variables import Variables

__all__ = ["Regressor", "ScaledHuberLoss"]


class Regressor(SelfDescribing):
    """A small convolutional network that predicts continuous variables of an image in their physical units.

    Each stage halves the resolution. The last features are averaged over the image, which suits variables that are sums
    over it, such as areas. Coordinates as further input channels let the network tell one region from another. It works
    on scaled variables; their range, fitted to the training split, is in the checkpoint (:attr:`variables`).

    Args:
        variables: ``{"name", "kind"}`` of each variable; all of them continuous.
        spatial_dims: 2 or 3.
        channels: features of each stage.

    Raises:
        ValueError: when a variable is not continuous.
    """

    def __init__(
        self,
        variables: Sequence[Mapping[str, Any]],
        spatial_dims: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128),
    ) -> None:
        super().__init__({"variables": variables, "spatial_dims": spatial_dims, "channels": channels})
        for variable in variables:
            if variable["kind"] != "continuous":
                raise ValueError(
                    f"Regressor: {variable['name']!r} is {variable['kind']}, expected a continuous variable"
                )
        self.variables = Variables(variables)
        widths = [1 + spatial_dims, *channels]
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    _convolution(spatial_dims, narrow, wide, stride=2), _convolution(spatial_dims, wide, wide, stride=1)
                )
                for narrow, wide in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], len(variables))

    def fit(self, datalist: Datalist, use: str | None = None) -> None:
        """Take the range of the variables from the training split, and record the data.

        Args:
            datalist: the data.
            use: which training cases the network is trained on, "guide" or "judge"; None for all.
        """
        self.variables.fit(**datalist.training_values(self.names))
        self.describe(datalist, use)

    @property
    def names(self) -> list[str]:
        """Names of the predicted variables."""
        return self.variables.names

    def scaled(self, image: Tensor) -> Tensor:
        """The prediction in scaled units, [-1, 1] over the range of the training split: shape (B, K)."""
        return self.head(torch.flatten(self.features(with_coordinates(image)), 2).mean(2))

    def forward(self, image: Tensor) -> Tensor:
        """The variables of images in [-1, 1] of shape (B, 1, \\*spatial): shape (B, K), in physical units."""
        return self.variables.unscale(self.scaled(image))


class ScaledHuberLoss(nn.Module):
    """Huber loss of values (B, K) in physical units, computed on the scaled variables; missing targets are left out.

    It is zero if all targets are missing.

    Args:
        variables: the variables, for their scaling.
        delta: error, in scaled units, above which the loss grows linearly.
    """

    def __init__(self, variables: Variables, delta: float = 0.1) -> None:
        super().__init__()
        self.variables = variables
        self.huber = nn.HuberLoss(delta=delta)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        if not known.any():
            return prediction.sum() * 0
        return self.huber(self.variables.scale(prediction)[known], self.variables.scale(target)[known])


def _convolution(spatial_dims: int, narrow: int, wide: int, stride: int) -> nn.Module:
    return Convolution(
        spatial_dims, narrow, wide, strides=stride, kernel_size=3, act="LEAKYRELU", norm="BATCH", bias=False
    )
