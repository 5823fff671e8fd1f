"""How the file of a radiograph becomes a picture: the steps that ``data_prep`` and the bundles' inference share.

A model sees in inference what it saw in training only if both read a file in the same way. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image, ImageOps
from pydicom.dataset import Dataset

try:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers.util import apply_modality_lut, apply_voi_lut  # type: ignore[no-redef]

__all__ = ["MILLIMETRES", "as_displayed", "dicom_spacing", "is_dicom", "padded_shape", "raster_pixels", "upright"]

MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
"""Millimetres in a unit of length, by nibabel's name for it; any other unit, and none, is taken for millimetres."""

_PHOTOMETRIC = 262
"""TIFF's tag of the photometric interpretation; 0: zero is white."""


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM file."""
    return head[128:132] == b"DICM"


def as_displayed(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Apply rescale (or modality LUT) and window (or VOI LUT) to a grey DICOM image, and invert MONOCHROME1.

    Pixels with the Pixel Padding Value, which are no part of the picture (PS3.3, C.7.5.1.1.2), become as dark as its
    darkest.

    Raises:
        ValueError: when rescale, window or look-up table are invalid.
    """
    padding = _padding(pixels, dataset)
    pixels = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
    pixels = _turned_over(pixels) if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels
    return np.where(padding, pixels[~padding].min(), pixels) if padding.any() and not padding.all() else pixels


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Where a grey DICOM image holds its Pixel Padding Value, or a value from there to Pixel Padding Range Limit."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (low <= stored) & (stored <= high)


def dicom_spacing(dataset: Dataset) -> tuple[Sequence[float] | None, bool]:
    """Spacing of rows and columns in mm, None where unknown, and whether it is the spacing at the detector.

    Pixel Spacing that equals Imager Pixel Spacing is not calibrated (PS3.3, 10.7.1.3).
    """
    calibrated, detector = dataset.get("PixelSpacing"), dataset.get("ImagerPixelSpacing")
    found = calibrated or detector
    return found or None, bool(found) and found == detector


def upright(volume: Any) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """One slice of a NIfTI image: columns run to the patient's left, rows to posterior or inferior.

    The header's orientation is trusted; where it states none (both form codes 0), nibabel's default for the format
    applies. The slice may lie along any two of the array's axes: those of length one are dropped.

    Returns:
        Pixels (H, W), the affine matrix of their transpose (W, H), and the spacing of rows and columns in mm.

    Raises:
        ValueError: when the image has colours or is not one slice.
    """
    one_slice = sum(n > 1 for n in volume.shape[:3]) == 2 and all(n == 1 for n in volume.shape[3:])
    if not one_slice or volume.get_data_dtype().fields:
        raise ValueError(f"found an array of shape {volume.shape}, {volume.get_data_dtype()}, expected one grey slice")
    shape = (*volume.shape, 1, 1)[:3]
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(("L", "P", "I")))
    pixels = apply_orientation(np.asanyarray(volume.dataobj).reshape(shape), turn)
    axes = sorted(range(3), key=lambda axis: pixels.shape[axis] == 1)
    affine = (volume.affine @ inv_ornt_aff(turn, shape))[:, [*axes, 3]]
    unit = MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)
    across, down, _ = unit * nibabel.affines.voxel_sizes(affine)
    return np.ascontiguousarray(pixels.squeeze().T), affine, (float(down), float(across))


def raster_pixels(image: Image.Image) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) of a PNG, JPEG or TIFF, which is turned in place as its EXIF orientation says.

    Palettes and colours of print (CMYK) or video (YCbCr) become RGB, a TIFF with white as zero is inverted.

    Raises:
        ValueError: when the file holds several pictures, such as the pages of a TIFF.
    """
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # a camera's JPEG, to which smaller copies are added
        raise ValueError(f"found {count} pictures, expected one")
    ImageOps.exif_transpose(image, in_place=True)  # Pillow itself does so for TIFF
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 and image.mode not in ("1", "L")
    pixels = np.asarray(image.convert("RGB") if image.mode in ("P", "PA", "CMYK", "YCbCr") else image)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    return _turned_over(pixels) if white_is_zero else pixels  # Pillow itself inverts up to 8 bits


def padded_shape(shape: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """The smallest shape that holds ``shape`` and has the aspect ratio of ``size`` (up to rounding to whole pixels)."""
    return tuple(max(round(n * own / side) for n, side in zip(shape, size)) for own in size)


def _turned_over(pixels: np.ndarray) -> np.ndarray:
    """Inverted intensities: each pixel's distance from the brightest, which may not fit into a signed integer type."""
    wide = pixels.astype(np.int64) if np.issubdtype(pixels.dtype, np.signedinteger) else pixels
    return wide.max() - wide
