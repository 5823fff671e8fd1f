"""Reading one slice from a NIfTI file, turned as radiologists look at it."""

from __future__ import annotations

import zlib

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from data_prep.cases import Rejected
from data_prep.grey import Picture, check_shape, check_spacing

__all__ = ["MILLIMETRES", "is_nifti", "read_nifti"]

_MAGIC = (b"n+1\0", b"n+2\0")
_GZIP = b"\x1f\x8b"
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
"""Of a unit of length in nibabel's words; millimetres and what is not stated are taken for millimetres."""


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a NIfTI file (in one part) or of a gzip archive."""
    return head.startswith(_GZIP) or head[344:348] in _MAGIC or head[4:8] in _MAGIC


def read_nifti(data: bytes, max_bytes: int) -> Picture:
    """One slice: columns run to the patient's left, rows to posterior or inferior.

    The header's orientation is believed; where it states none (both form codes 0) it is the format's default, as
    nibabel has it. The slice may lie along any two of the array's axes: those of length one are dropped.

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
    shape = (*volume.shape, 1, 1)[:3]
    sides = [n for n in volume.shape if n > 1]
    if any(n < 1 for n in volume.shape) or len(sides) != 2 or any(n > 1 for n in volume.shape[3:]):
        raise Rejected("multi_frame", f"the NIfTI file holds an array of shape {volume.shape}, not one slice")
    check_shape(*sides)
    if volume.get_data_dtype().fields:
        raise Rejected("colour")
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(("L", "P", "I")))
    pixels = apply_orientation(np.asanyarray(volume.dataobj).reshape(shape), turn)
    zooms = np.empty(3)
    zooms[turn[:, 0].astype(int)] = nibabel.affines.voxel_sizes(volume.affine)
    kept = [axis for axis in range(3) if pixels.shape[axis] > 1]
    unit = MILLIMETRES.get(volume.header.get_xyzt_units()[0], 1.0)
    spacing = check_spacing(*(unit * zooms[axis] for axis in reversed(kept)))
    return Picture(np.ascontiguousarray(pixels.squeeze().T), spacing)
