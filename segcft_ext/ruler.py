"""Measuring what a segmentor sees: the judge of an evaluation, or what tells the variables of a user's image.

A segmentor's label map is the most probable class of each pixel, measured like any label map. Hard masks are used
because they are what a reader would outline: a faint haze over the image adds to soft areas, but to no mask unless it
changes a pixel's class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from monai.networks.utils import one_hot
from torch import Tensor, nn

from segcft_ext.measurements import Measurement, measure_label_map

__all__ = ["Ruler"]


class Ruler(nn.Module):
    """Image -> label map -> measured variables.

    Args:
        segmentor: image (B, 1, *spatial) in [-1, 1] -> logits (B, C, *spatial).
        measurements: the measurement of each of the J variables.
        num_classes: C.
        inferer: how the segmentor is applied, ``inferer(image, network)``; by default to the whole batch at once.
    """

    def __init__(
        self,
        segmentor: nn.Module,
        measurements: Mapping[str, Measurement],
        num_classes: int,
        inferer: Callable[[Tensor, nn.Module], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.measurements = dict(measurements)
        self.inferer = inferer
        self.num_classes = num_classes

    @property
    def names(self) -> list[str]:
        """The measured variables, in the order of :meth:`measure`."""
        return list(self.measurements)

    @torch.no_grad()
    def segment(self, image: Tensor) -> Tensor:
        """Label maps, integers of shape (B, 1, *spatial)."""
        logits = self.inferer(image, self.segmentor) if self.inferer else self.segmentor(image)
        return logits.max(1, keepdim=True).indices  # on a CPU ten times as fast as argmax

    def measure(
        self, label: Tensor, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None
    ) -> Tensor:
        """The variables of label maps, shape (B, J), in the datalist's units.

        ``reference`` holds the label maps of the factual images, which define the regions.
        """
        return measure_label_map(self.measurements, label, self.num_classes, image, spacing, reference)

    def masks(self, label: Tensor, reference: Tensor) -> Tensor:
        """Where each variable lives in label maps (B, 1, *spatial): boolean, shape (B, J, *spatial)."""
        probabilities, factual = (one_hot(maps.float(), self.num_classes) for maps in (label, reference))
        return torch.cat([m.support(probabilities, factual) > 0 for m in self.measurements.values()], dim=1)
