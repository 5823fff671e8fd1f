"""Reading one slice from a NIfTI file, oriented as radiologists view it."""

from __future__ import annotations

import zlib

import nibabel
import numpy as np

from data_prep.cases import Rejected
from data_prep.grey import Picture, check_shape, check_spacing
from segcft_ext.presentation import MILLIMETRES, upright

__all__ = ["corners_apart", "is_nifti", "read_nifti"]

_MAGIC = (b"n+1\0", b"n+2\0")
_GZIP = b"\x1f\x8b"


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a single-file NIfTI or of a gzip archive."""
    return head.startswith(_GZIP) or head[344:348] in _MAGIC or head[4:8] in _MAGIC


def read_nifti(data: bytes, max_bytes: int) -> Picture:
    """Read one slice, oriented by :func:`segcft_ext.presentation.upright`.

    Args:
        data: the file, compressed or not.
        max_bytes: largest size after decompression.

    Raises:
        Rejected: when the file is too large, or holds colours or more than one slice.
    """
    if data.startswith(_GZIP):
        data = zlib.decompressobj(wbits=31).decompress(data, max_bytes + 1)
        if len(data) > max_bytes:
            raise Rejected("too_large", f"the file has more than {max_bytes} bytes when it is decompressed")
    kind = nibabel.Nifti2Image if data[4:8] == _MAGIC[1] else nibabel.Nifti1Image
    volume = kind.from_bytes(data)
    sides = [n for n in volume.shape if n > 1]
    if any(n < 1 for n in volume.shape) or len(sides) != 2 or any(n > 1 for n in volume.shape[3:]):
        raise Rejected("multi_frame", f"the NIfTI file holds an array of shape {volume.shape}, not one slice")
    check_shape(*sides)
    if volume.get_data_dtype().fields:
        raise Rejected("colour")
    pixels, affine, spacing = upright(volume)
    unit = MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)
    return Picture(pixels, check_spacing(*spacing), affine=np.diag([unit, unit, unit, 1.0]) @ affine)


def corners_apart(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance in mm between a corner of one grid and the same corner of another.

    Args:
        shape: of both grids, three numbers.
        first, second: affines (4, 4) from indices to mm.
    """
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())
