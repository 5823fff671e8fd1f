"""Turning a collated batch into the input of a trainer's iteration: moved to the device, augmented and measured.

These are the ``prepare_batch`` of MONAI's trainers and evaluators. The dictionary has ``image`` (B, 1, \\*spatial) in
[-1, 1], ``label`` (B, 1, \\*spatial) and, where the variables are wanted, ``variables`` (B, K) and ``spacing`` (B, D).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.folder_layout import default_name_formatter
from monai.networks.utils import one_hot
from torch import Tensor

from segcft_ext.datalist import Datalist
from segcft_ext.measurements import measure
from segcft_ext.presentation import is_dicom

__all__ = [
    "Augmentation",
    "PrepareRegression",
    "PrepareSegmentation",
    "PrepareVariables",
    "find_images",
    "image_stem",
    "label_extension",
    "output_name",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".nii", ".nii.gz")

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def find_images(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """An image, or the images of a folder, as the items of a MONAI dataset.

    Images are recognised by their suffix, DICOM files also by their content: many archives export them without one.
    Hidden files of a folder are left out, as in ``data_prep``.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when ``path`` is not a path, or the outputs of two images would have the same name.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(
            f"--image, --dataset_dir: found {path!r}, expected the path of an image or of a folder of them"
        )
    path = Path(path)
    found = [path] if path.is_file() else sorted(filter(_is_image, path.glob("*")))
    if not found:
        raise FileNotFoundError(
            f"--image, --dataset_dir: {path}: neither an image nor a folder with images "
            f"({', '.join(IMAGE_SUFFIXES)}, or DICOM of any name)"
        )
    files: dict[str, Path] = {}
    for file in found:
        other = files.setdefault(image_stem(file), file)
        if other is not file:
            raise ValueError(
                f"{path}: found {other.name} and {file.name}, expected names that differ by more than the suffix: what "
                "is written is named after them"
            )
    return [{"image": str(file)} for file in found]


def image_stem(path: str | os.PathLike[str]) -> str:
    """The name of an image without its suffix, if it has a known one (DICOM UIDs have dots)."""
    name = Path(path).name
    suffix = max((s for s in IMAGE_SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]


def output_name(meta: dict[str, Any], saver: Any) -> dict[str, Any]:
    """Name formatter for MONAI's ``SaveImage``: a file is named after its :func:`image_stem`.

    The dot is appended because ``SaveImage`` cuts one suffix off the subject.
    """
    found = default_name_formatter(meta, saver)
    return {**found, "subject": f"{image_stem(found['subject'])}."}


def label_extension(extension: str) -> str:
    """Check the extension for files of label maps; it is returned as given, with or without its dot.

    Raises:
        ValueError: when it is neither PNG nor NIfTI; JPEG, for example, would change the labels.
    """
    if extension.removeprefix(".") not in ("png", "nii", "nii.gz"):
        raise ValueError(f"output_ext: found {extension!r}, expected '.png' or '.nii.gz'")
    return extension


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    with path.open("rb") as file:
        return is_dicom(file.read(132))


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
