"""Reading one picture: PNG (8 and 16 bit), DICOM, NIfTI. The format is told by the file's content, not by its name.

What cannot be read raises :class:`~data_prep.cases.Rejected`; messages carry the kind of the fault and never the file's
name or an element of its header, since both may identify a patient.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from PIL import Image
from pydicom.errors import BytesLengthException, InvalidDicomError

from data_prep.cases import Rejected

try:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers.util import apply_modality_lut, apply_voi_lut  # type: ignore[no-redef]

__all__ = ["SUFFIXES", "Picture", "read_picture", "strip_suffix"]

SUFFIXES = (".nii.gz", ".nii", ".dicom", ".dcm", ".png")
"""Suffixes taken off a file's name to get the case's name. Others belong to the name (DICOM UIDs have dots)."""

MAX_BYTES = 2**29
"""Largest file that is read, 512 MiB; a picture of 8192 x 8192 pixels of 32 bits has half of that."""

# What decoders raise on damaged files, as met with Pillow, nibabel and pydicom.
_FAULTS = (
    OSError, EOFError, ValueError, SyntaxError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError,
    OverflowError, RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile,
    Image.DecompressionBombError, ImageFileError, HeaderDataError, OrientationError,
    BytesLengthException, InvalidDicomError,
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W), row 0 at the top, and their spacing in mm (row, column) or None where unknown."""

    pixels: np.ndarray
    spacing: tuple[float, float] | None = None


def strip_suffix(name: str) -> str:
    """The name without its suffix, if that is one of :data:`SUFFIXES`."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def read_picture(path: Path | zipfile.Path) -> Picture:
    """Read a grey picture, from a file or from a file within a zip archive.

    Raises:
        Rejected: when the format is unknown, the file is damaged or too large, or it holds colours or several frames.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except _FAULTS as error:
        raise Rejected("unreadable", f"the file cannot be opened ({type(error).__name__})") from None
    if len(data) > MAX_BYTES:
        raise Rejected("too_large", f"the file has more than {MAX_BYTES} bytes")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        read, kind = _read_png, "PNG"
    elif data[128:132] == b"DICM":
        read, kind = _read_dicom, "DICOM"
    elif data[344:348] in (b"n+1\0", b"n+2\0") or data[4:8] == b"n+2\0" or data.startswith(b"\x1f\x8b"):
        read, kind = _read_nifti, "NIfTI"
    else:
        raise Rejected("unsupported_format", "" if data else "the file is empty")
    try:
        picture = read(data)
    except Rejected:
        raise
    except _FAULTS as error:
        raise Rejected("unreadable", f"the {kind} file cannot be decoded ({type(error).__name__})") from None
    if picture.pixels.ndim != 2 or min(picture.pixels.shape) < 2:
        raise Rejected("unreadable", f"the {kind} file holds an array of shape {picture.pixels.shape}, not a picture")
    return picture


def _read_png(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode in ("P", "PA"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
        bands = image.getbands()
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3:
        colours = pixels[..., : -1 if bands[-1] in ("A", "a") else None]
        if (colours != colours[..., :1]).any():
            raise Rejected("colour", "the PNG file has colours")
        pixels = colours[..., 0]
    return Picture(pixels)


def _read_dicom(data: bytes) -> Picture:
    """Stored values, rescaled (or modality LUT), windowed (or VOI LUT), MONOCHROME1 turned over: as a viewer shows it.

    Spacing is Pixel Spacing, else Imager Pixel Spacing, which is at the detector and not corrected for magnification.
    """
    dataset = pydicom.dcmread(io.BytesIO(data))
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise Rejected("multi_frame", f"the DICOM file holds {int(dataset.NumberOfFrames)} frames")
    if int(dataset.get("SamplesPerPixel") or 1) > 1:
        raise Rejected("colour", "the DICOM file has colours")
    pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    return Picture(pixels, _checked_spacing(*spacing) if spacing else None)


def _read_nifti(data: bytes) -> Picture:
    """A NIfTI slice as radiologists look at it: columns run to the patient's left, rows to posterior or inferior.

    The header's orientation is believed. Axes of length one are dropped; two must remain.
    """
    # from_bytes and not load: the format is told by content, whatever the file is called.
    if data.startswith(b"\x1f\x8b"):
        data = zlib.decompress(data, wbits=31)
    kind = nibabel.Nifti2Image if data[4:8] == b"n+2\0" else nibabel.Nifti1Image
    volume = kind.from_bytes(data)
    if len(volume.shape) < 3:
        volume = kind(np.asanyarray(volume.dataobj)[..., None], volume.affine, volume.header)
    shape = volume.shape[:3]
    if sum(n > 1 for n in shape) != 2 or any(n > 1 for n in volume.shape[3:]):
        raise Rejected("multi_frame", f"the NIfTI file holds an array of shape {volume.shape}, not one slice")
    wanted = nibabel.orientations.axcodes2ornt(("L", "P", "I"))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(volume.affine), wanted)
    pixels = nibabel.orientations.apply_orientation(np.asanyarray(volume.dataobj).reshape(shape), turn)
    zooms = np.empty(3)
    zooms[turn[:, 0].astype(int)] = nibabel.affines.voxel_sizes(volume.affine)
    kept = [axis for axis in range(3) if pixels.shape[axis] > 1]
    unit = {"meter": 1000.0, "micron": 0.001}.get(volume.header.get_xyzt_units()[0], 1.0)
    spacing = _checked_spacing(*(unit * zooms[axis] for axis in reversed(kept)))
    return Picture(np.ascontiguousarray(pixels.squeeze().T), spacing)


def _checked_spacing(row: float, column: float) -> tuple[float, float]:
    spacing = float(row), float(column)
    if not all(0 < s < np.inf for s in spacing):
        raise Rejected("unreadable", f"the pixel spacing is {spacing}, not two positive numbers")
    return spacing
