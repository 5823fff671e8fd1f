"""DICOM files for the tests of data_prep, in every transfer syntax that can be written here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

LOSSLESS = (ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


def write_dicom(path: Path, pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> Path:
    """Write pixels (H, W), (frames, H, W) or (H, W, 3): with 8 bits if they are uint8, else with 12 bits in 16."""
    colours = pixels.ndim == 3 and pixels.shape[-1] == 3
    wide = pixels.dtype != np.uint8
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    if pydicom.__version__.startswith("2."):
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colours else pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (16, 12, 11) if wide else (8, 8, 7)
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 3 if colours else 1, 0
    dataset.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        dataset.PlanarConfiguration = 0
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = np.ascontiguousarray(pixels, "<u2" if wide else "u1").tobytes()
    if syntax == JPEGBaseline8Bit:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="JPEG", quality=100)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = syntax
    elif syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    if syntax == JPEGLosslessSV1:
        _compress_jpeg_lossless(path)
    return path


def _compress_jpeg_lossless(path: Path) -> None:
    """Compress the file in place with GDCM, since pydicom has no encoder for JPEG lossless."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
