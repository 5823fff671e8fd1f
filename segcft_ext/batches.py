"""From a collated batch to what a trainer's iteration takes: on the device, augmented, measured.

These are the ``prepare_batch`` of MONAI's trainers and evaluators. The dictionary has ``image`` (B, 1, \\*spatial) in
[-1, 1], ``label`` (B, 1, \\*spatial) and, where the variables are wanted, ``variables`` (B, K) and ``spacing`` (B, D).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import one_hot
from torch import Tensor

from segcft_ext.datalist import Datalist
from segcft_ext.measurements import measure

__all__ = ["Augmentation", "PrepareRegression", "PrepareSegmentation", "PrepareVariables", "find_images"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".nii", ".nii.gz")

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def find_images(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """An image, or the images of a folder, as the items of a MONAI dataset.

    Raises:
        FileNotFoundError: when there is none.
    """
    path = Path(path)
    found = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.name.lower().endswith(IMAGE_SUFFIXES))
    if not found:
        raise FileNotFoundError(f"{path}: neither an image nor a folder with images ({', '.join(IMAGE_SUFFIXES)})")
    return [{"image": str(file)} for file in found]


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
    others (age, sex) are taken as they are in the datalist. They are the values of this image, not draws from the
    population: for what is fitted to that, the batch holds the datalist's own.

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
        known = batchdata["spacing"]  # looked at where the loader left it: on the device, one would wait for it
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
