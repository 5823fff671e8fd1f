"""The segmentor: any of MONAI's segmentation networks, in a checkpoint that says what its channels mean."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from monai.networks import nets
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.nn.functional import pad

from segcft_ext.checkpoints import SelfDescribing
from segcft_ext.datalist import Datalist

__all__ = ["Segmentor"]


class Segmentor(SelfDescribing):
    """Image -> logits of the structures, by a network of :mod:`monai.networks.nets`.

    A network with ``strides`` takes images of any size: they are padded at the end of each axis, by replicating their
    last pixels, to the next multiple of the product of its strides, and the logits are cropped to the image again.

    Args:
        labels: value of each structure in the label map, which is its channel; ``background`` is 0.
        architecture: class name in :mod:`monai.networks.nets`, built with ``in_channels=1``.
        spatial_dims: 2 or 3.
        **arguments: further arguments of that class.

    Raises:
        ValueError: when the architecture is unknown, or ``labels`` has no background.

    Example:
        >>> net = Segmentor({"background": 0, "heart": 1}, "BasicUNet", features=(8, 8, 16, 16, 32, 8))
        >>> net(torch.rand(1, 1, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
    """

    def __init__(
        self, labels: Mapping[str, int], architecture: str = "BasicUNet", spatial_dims: int = 2, **arguments: Any
    ) -> None:
        super().__init__({"labels": labels, "architecture": architecture, "spatial_dims": spatial_dims, **arguments})
        if labels.get("background") != 0:
            raise ValueError(f"Segmentor: labels are {dict(labels)}, expected 'background' to be 0")
        self.labels = {name: int(value) for name, value in labels.items()}
        found = getattr(nets, architecture, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            similar = get_close_matches(architecture, dir(nets))
            raise ValueError(
                f"Segmentor: architecture is {architecture!r}, expected a class of monai.networks.nets {similar}"
            )
        self.network = found(
            spatial_dims=spatial_dims, in_channels=1, out_channels=max(self.labels.values()) + 1, **arguments
        )
        used = [
            np.broadcast_to(stride, spatial_dims)
            for stride, _ in zip(arguments.get("strides", ()), arguments.get("channels", ())[1:])
        ]
        self.multiples = [int(multiple) for multiple in np.prod([np.ones(spatial_dims, int), *used], axis=0)]

    def describe(self, datalist: Datalist, use: str | None = None) -> None:
        """Record the data that the network is trained on, see :meth:`SelfDescribing.describe`.

        Raises:
            ValueError: when the datalist has other labels than the network, or images of a size that it cannot take,
                such as one that it reduces to a single pixel, which has no standard deviation for normalisation.
        """
        if dict(datalist.labels) != self.labels:
            raise ValueError(
                f"{datalist.path}: labels: found {dict(datalist.labels)}, expected the segmentor's: {self.labels}"
            )
        try:
            with eval_mode(self):
                self(next(self.parameters()).new_zeros(1, 1, *datalist.size))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{datalist.path}: image.size: found {list(datalist.size)}, expected one that "
                f"{self.definition['architecture']} can take: {error}"
            ) from error
        super().describe(datalist, use)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (B, C, \\*spatial) for images in [-1, 1] of shape (B, 1, \\*spatial)."""
        padding: list[int] = []
        for axis in range(image.ndim - 1, 1, -1):
            padding += [0, -image.shape[axis] % self.multiples[axis - 2]]
        if sum(padding) == 0:
            return self.network(image)
        logits = self.network(pad(image, padding, "replicate"))
        for axis in range(2, image.ndim):
            logits = logits.narrow(axis, 0, image.shape[axis])
        return logits
