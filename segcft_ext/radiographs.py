"""Reading one radiograph for inference as ``data_prep`` reads it for training.

.. code-block:: python

    load = LoadImaged("image", reader=RadiographReader(), ensure_channel_first=True)
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import PydicomReader
from PIL import Image
from pydicom.dataset import Dataset

from segcft_ext.path_reader import PathReader
from segcft_ext.presentation import as_displayed, dicom_spacing, is_dicom, raster_pixels, upright

__all__ = ["PIXEL_SPACING", "RadiographReader"]

PIXEL_SPACING = "pixel_spacing"
"""Key of an image's metadata: spacing of the rows and of the columns in mm, where the file's header tells it."""

_FORMATS = "a picture (PNG, JPEG, TIFF), DICOM or NIfTI"
_NIFTI = (".nii", ".nii.gz")


class RadiographReader(PathReader):
    """Reads a radiograph of any format as ``data_prep`` reads it, with the columns first, as from MONAI's readers.

    DICOM files are read as a viewer shows them; a slice in a NIfTI file is turned upright, and the affine matrix with
    it. Where the header tells the pixel spacing, the metadata have :data:`PIXEL_SPACING`. Colours are kept.
    """

    def get_data(self, img: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Pixels (W, H) or (W, H, C), and metadata.

        Raises:
            ValueError: names the file that cannot be read.
        """
        try:
            with img.open("rb") as file:
                head = file.read(132)
            if is_dicom(head):
                pixels, meta = _read_dicom(img)
            elif img.name.lower().endswith(_NIFTI):
                pixels, meta = _read_nifti(img)
            else:
                with Image.open(img) as image:
                    pixels, meta = raster_pixels(image), {"affine": np.eye(4)}
        except Exception as error:  # decoders raise whatever they stumble over
            raise ValueError(f"{img}: cannot be read, expected {_FORMATS}: {type(error).__name__}: {error}") from None
        spacing = meta.get(PIXEL_SPACING)
        if spacing is not None and not all(0 < mm < np.inf for mm in spacing):
            raise ValueError(f"{img}: pixel spacing: found {spacing}, expected two positive numbers")
        array = np.ascontiguousarray(pixels.swapaxes(0, 1))
        meta |= {
            "original_affine": meta["affine"].copy(),
            "spatial_shape": np.array(array.shape[:2]),
            "original_channel_dim": float("nan") if array.ndim == 2 else -1,
        }
        return array, meta


class _DisplayedReader(PydicomReader):
    """MONAI's DICOM reader, which provides the affine matrix, with the pixels as a viewer shows them."""

    def _get_array_data(self, img: Dataset, *args: Any) -> np.ndarray:
        if int(img.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"found {img.NumberOfFrames} frames, expected one")
        return as_displayed(img.pixel_array, img) if img.pixel_array.ndim == 2 else img.pixel_array


def _read_dicom(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    reader = _DisplayedReader(swap_ij=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PydicomReader: ImageOrientationPatient")  # few radiographs have it
        dataset = reader.read(path)
        pixels, meta = reader.get_data(dataset)
    spacing, _ = dicom_spacing(dataset)
    known = {} if spacing is None else {PIXEL_SPACING: [float(mm) for mm in spacing]}
    return pixels.swapaxes(0, 1), {"affine": meta["affine"], **known}


def _read_nifti(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    pixels, affine, spacing = upright(nibabel.load(path))
    return pixels, {"affine": affine, PIXEL_SPACING: list(spacing)}
