"""Reading one picture: PNG, TIFF, DICOM, NIfTI. The format is recognised by the file's content, not by its name.

What cannot be read raises :class:`~data_prep.cases.Rejected`; messages carry the kind of the fault and never the file's
name or an element of its header, since both may identify a patient. For the same reason warnings and logs of decoders,
which quote faulty data, are suppressed.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.cases import Rejected, rejecting
from data_prep.dicom import read_dicom
from data_prep.grey import Picture, check_shape, single_channel
from data_prep.nifti import is_nifti, read_nifti
from segcft_ext.presentation import is_dicom, raster_pixels

__all__ = ["MAX_BYTES", "quiet", "read_picture"]

MAX_BYTES = 2**29
"""Largest file that is read, 512 MiB; a picture of 8192 x 8192 pixels of 32 bits has half of that."""


def read_picture(path: Path | zipfile.Path, indexed: bool = False) -> Picture:
    """Read a grey picture, from a file or from a file within a zip archive.

    Args:
        path: the file.
        indexed: whether the pixels are label values. Colours of a palette then only display them: the pixels are the
            palette's indices; a picture with a palette of greys is a grey picture in any case. Rescale, window,
            inversion and padding of a DICOM file are not applied.

    Raises:
        Rejected: when the format is unknown, the file is damaged or too large, or it holds colours or several frames.
    """
    with rejecting("unreadable", "the file cannot be opened"):
        if not path.is_file():  # reading from a pipe would block
            raise Rejected("unreadable", "this is no file, or a link to none")
        # Python allocates as much as it is asked to read, which takes time: ask for no more than the file has.
        size = path.stat().st_size if isinstance(path, Path) else MAX_BYTES
        with path.open("rb") as file:
            data = file.read(min(size, MAX_BYTES) + 1)
    if len(data) > MAX_BYTES:
        raise Rejected("too_large", f"the file has more than {MAX_BYTES} bytes")
    with quiet(), rejecting("unreadable", "the file cannot be decoded"):
        picture = _read(data, indexed)
    if picture.pixels.ndim != 2:
        raise Rejected("unreadable", f"the file holds an array of shape {picture.pixels.shape}, not a picture")
    check_shape(*picture.pixels.shape)
    return picture


_quiet_lock = threading.Lock()
_quiet_threads = 0
_quiet_state = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and logs of decoders.

    Both are settings of the whole process, so the last thread to leave restores them.
    """
    global _quiet_threads
    with _quiet_lock:
        if not _quiet_threads:
            _quiet_state.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _quiet_state.callback(logging.disable, logging.root.manager.disable)
            logging.disable()
        _quiet_threads += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_threads -= 1
            if not _quiet_threads:
                _quiet_state.close()


def _read(data: bytes, indexed: bool) -> Picture:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_raster(data, "PNG", indexed)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _read_raster(data, "TIFF", indexed)
    if is_dicom(data):
        return read_dicom(data, indexed)
    if is_nifti(data):
        return read_nifti(data, MAX_BYTES)
    raise Rejected("unsupported_format", "" if data else "the file is empty")


def _read_raster(data: bytes, kind: str, indexed: bool) -> Picture:
    """PNG or TIFF. The resolution that they may state is a printer's or a scanner's, so no spacing is taken from it."""
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        check_shape(image.height, image.width)
        if getattr(image, "n_frames", 1) > 1:
            raise Rejected("multi_frame", f"the {kind} file holds {image.n_frames} pictures")
        palette = image if image.mode == "P" and indexed else None
        pixels = raster_pixels(image)
        if palette is not None and (pixels != pixels[..., :1]).any():
            return Picture(np.asarray(palette))
        transparent = image.mode != "PA" and image.getbands()[-1] in ("A", "a")
    if pixels.ndim == 3:
        pixels = single_channel(pixels[..., : -1 if transparent else None])
    return Picture(pixels)
