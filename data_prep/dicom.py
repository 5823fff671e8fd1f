"""Reading one picture from a DICOM file as a viewer shows it.

Some compressions need the decoders of the extra ``formats``. Native decoders trust the header of a code stream, so the
size that it declares is compared with that of the data set before anything is decoded.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit, UID_dictionary

from data_prep.cases import Rejected, rejecting
from data_prep.grey import Picture, check_shape, check_spacing, single_channel
from data_prep.isolated import IsolatedDecoder
from segcft_ext.presentation import as_displayed, dicom_spacing

try:
    from pydicom.pixels import get_decoder
except ImportError:  # pydicom 2 chooses its decoder alone
    get_decoder = None  # type: ignore[assignment]

__all__ = ["decode_pixels", "read_dicom"]

_DECODERS = ("pydicom", "pyjpegls", "pillow", "pylibjpeg", "gdcm")
"""Plugins of pydicom in the order of preference.

RLE is decoded by pydicom and not by pylibjpeg, whose panic on a damaged file is no ``Exception`` and would end the run.
"""

_gdcm = IsolatedDecoder()

_JPEG = "1.2.840.10008.1.2.4."
"""How the UIDs of JPEG and its relatives begin."""

_COLOURS = re.compile(r"RGB|YBR_\w+")


def read_dicom(data: bytes, indexed: bool = False) -> Picture:
    """Read the stored values, rescaled (or modality LUT), windowed (or VOI LUT), MONOCHROME1 inverted.

    If ``indexed``, the stored values are those of labels and stay as they are.

    Spacing is Pixel Spacing, else Imager Pixel Spacing, which holds at the detector and is noted as such.

    Raises:
        Rejected: when the file holds no picture, several frames or colours, or no decoder reads its compression.
    """
    if str(DeflatedExplicitVRLittleEndian).encode() in data[:1024]:
        raise Rejected("no_decoder", "deflated DICOM files are not read: any size may come out of them")
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "Rows" not in dataset or "Columns" not in dataset:
        raise Rejected("unreadable", "the DICOM file holds no picture")
    check_shape(int(dataset.Rows), int(dataset.Columns))
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise Rejected("multi_frame", f"the DICOM file holds {int(dataset.NumberOfFrames)} frames")
    photometric = str(dataset.PhotometricInterpretation)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if photometric in ("MONOCHROME1", "MONOCHROME2") and samples == 1:
        pixels = decode_pixels(dataset)
        with rejecting("unreadable", "rescale, window or look-up table of the DICOM file make no sense"):
            pixels = pixels if indexed else as_displayed(pixels, dataset)
    elif _COLOURS.fullmatch(photometric) and samples == 3:
        pixels = single_channel(decode_pixels(dataset))
    else:
        raise Rejected("colour")
    spacing, at_detector = dicom_spacing(dataset)
    notes = (*(("detector_spacing",) if at_detector else ()), *_burned_in(dataset))
    return Picture(pixels, None if spacing is None else check_spacing(*spacing), notes)


def decode_pixels(dataset: Dataset) -> np.ndarray:
    """Stored values of shape (H, W), or (H, W, 3) in RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        declared = _declared_shape(dataset.PixelData) if syntax.startswith(_JPEG) else None
        if declared not in (None, (dataset.Rows, dataset.Columns)):
            raise Rejected("unreadable", "the compressed data declare another size than the DICOM file")
        if get_decoder is not None:
            plugin = _choose_decoder(syntax, int(dataset.BitsStored))
            if plugin == "gdcm":
                return _gdcm.decode(_pixels_alone(dataset))
            dataset.pixel_array_options(decoding_plugin=plugin)
    return dataset.pixel_array


def _pixels_alone(dataset: Dataset) -> bytes:
    """A DICOM file of the pixels and what describes them (group 0028)."""
    alone = dataset.group_dataset(0x0028)
    alone.add(dataset["PixelData"])
    alone.file_meta, alone.preamble = dataset.file_meta, b"\0" * 128
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, alone, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def _choose_decoder(syntax: UID, bits: int) -> str:
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:  # a syntax that pydicom does not know: rejected below, with its name
        available = ()
    if syntax == JPEGExtended12Bit and bits > 8:
        available = tuple(plugin for plugin in available if plugin not in ("pillow", "gdcm"))
    chosen = next((plugin for plugin in _DECODERS if plugin in available), None)
    if chosen is None:
        name = syntax.name if syntax in UID_dictionary else "unknown"
        raise Rejected("no_decoder", f"compression {name}; most are read with pip install 'segcft-ext[formats]'")
    return chosen


def _declared_shape(encoded: bytes) -> tuple[int, int] | None:
    """(H, W) in the header of the first JPEG, JPEG-LS or JPEG 2000 code stream, None when there is none.

    Raises:
        struct.error: when the stream ends within its header.
    """
    start = encoded.find(b"\xff\x4f\xff\x51")  # JPEG 2000: start of code stream, SIZ
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", encoded, start + 8)
        return bottom - top, right - left
    start = encoded.find(b"\xff\xd8\xff")
    if start < 0:
        return None
    position = start + 2
    while True:
        marker, length = struct.unpack_from(">HH", encoded, position)
        # Start of frame: SOF0 to SOF15 without DHT, JPG and DAC, which lie between; SOF55 is JPEG-LS.
        if (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)) or marker == 0xFFF7:
            height, width = struct.unpack_from(">HH", encoded, position + 5)
            return height, width
        position += 2 + length


def _burned_in(dataset: Dataset) -> tuple[str, ...]:
    stated = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    return {"YES": ("burned_in_text",), "NO": ()}.get(stated, ("burned_in_unknown",))
