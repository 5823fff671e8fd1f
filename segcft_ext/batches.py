"""Turning a collated batch into the input of a trainer's iteration: moved to the device, augmented and measured.

These are the ``prepare_batch`` of MONAI's trainers and evaluators. The dictionary has ``image`` (B, 1, \\*spatial) in
[-1, 1], ``label`` (B, 1, \\*spatial) and, where the variables are wanted, ``variables`` (B, K) and ``spacing`` (B, D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.utils import one_hot
from torch import Tensor

from segcft_ext.datalist import Datalist
from segcft_ext.measurements import measure

__all__ = ["Augmentation", "PrepareRegression", "PrepareSegmentation", "PrepareVariables"]

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class PrepareSegmentation:
    """Image and label map.

    Args:
        augmentation: applied to both on the device; none for validation.
    """

    def __init__(self, augmentation: Augmentation | None = None) -> None:
        self.augmentation = augmentation

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        image, label = (batchdata[key].to(device, non_blocking=non_blocking, **kwargs) for key in ("image", "label"))
        return self.augmentation(image, label) if self.augmentation is not None else (image, label)


class PrepareVariables:
    """Image, the variables of that image, its pixel spacing and its label map.

    Measured variables are measured on the label map *after* the augmentation, which moves and scales the anatomy; the
    others (age, sex) are taken from the datalist. These are the values of the augmented image, not draws from the
    population: the mechanisms are fitted to the datalist's own values, which are in the batch as well.

    Args:
        datalist: the data, for its measurements.
        variables: the variables wanted, in the order in which the dataset's items hold them; all by default.
        augmentation: applied to image and label map on the device; none for validation.
    """

    def __init__(
        self, datalist: Datalist, variables: Sequence[str] | None = None, augmentation: Augmentation | None = None
    ) -> None:
        names = [datalist.variable(name).name for name in (variables or datalist.variable_names)]
        self.prepare_segmentation = PrepareSegmentation(augmentation)
        self.num_classes = datalist.num_classes
        self.measurements = {name: m for name, m in datalist.measurements().items() if name in names}
        self.columns = [names.index(name) for name in self.measurements]

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """``(image, values, spacing, reference)``.

        Values (B, K) are in physical units, spacing (B, D) in mm or None where unknown; the reference is the one-hot
        label map (B, C, \\*spatial) on which they were measured.
        """
        image, label = self.prepare_segmentation(batchdata, device, non_blocking, **kwargs)
        values = batchdata["variables"].to(device, non_blocking=non_blocking)
        known = batchdata["spacing"]  # checked before the transfer: on the device, the check would synchronise
        spacing = None if known.isnan().any() else known.to(device, non_blocking=non_blocking)
        reference = one_hot(label.float(), num_classes=self.num_classes)
        if self.measurements:
            measured = measure(self.measurements, reference, image, spacing)
            values = values.index_copy(1, torch.tensor(self.columns, device=values.device), measured)
        return image, values, spacing, reference


class PrepareRegression(PrepareVariables):
    """Image and its variables, for a supervised trainer."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, values, *_ = super().__call__(*args, **kwargs)
        return image, values
