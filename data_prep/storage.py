"""Storing arrays in the prepared folder: a picture as PNG, a volume as NIfTI with its spacing in the affine.

A volume's axes stay in the order of the array's, and its affine is diagonal: the spacing in mm, or one where it is
unknown.
"""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

__all__ = ["SUFFIXES", "write_array"]

SUFFIXES = {2: ".png", 3: ".nii.gz"}


def write_array(path: Path, array: np.ndarray, spacing: Sequence[float] | None = None) -> int:
    """Write a picture (H, W) or a volume (D, H, W) of uint8 or uint16 atomically; returns the file's size in bytes.

    Args:
        path: with the suffix that :data:`SUFFIXES` has for the array's dimensions.
        array: what to write.
        spacing: mm along each axis; a picture has no place for it.
    """
    # A unique name, since a process orphaned by the kill of an earlier run may still be writing the same case.
    scratch = path.with_name(f"{path.name.removesuffix(SUFFIXES[array.ndim])}.{secrets.token_hex(4)}.tmp")
    try:
        if array.ndim == 2:
            Image.fromarray(array).save(scratch, format="PNG")
        else:
            volume = nib.Nifti1Image(array, np.diag([*(spacing or (1.0, 1.0, 1.0)), 1.0]))
            # without the time in gzip's header the same volume gives the same file
            scratch.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=3, mtime=0))
        size = scratch.stat().st_size
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)  # a full disk needs the room
        raise
    return size
