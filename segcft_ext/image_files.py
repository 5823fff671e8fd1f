"""The image files that inference reads, and the names of the files that it writes for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter

from segcft_ext.presentation import is_dicom

__all__ = ["find_images", "image_stem", "label_extension", "output_name"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".nii", ".nii.gz")


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
