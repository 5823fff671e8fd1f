"""Reading whole CT volumes and label volumes, NIfTI or DICOM series, with the affine from voxels to RAS mm.

Nothing is assumed about orientation: rows, columns and slices may run anywhere, with any spacing, oblique or sheared.
As everywhere in this package a fault raises :class:`~data_prep.cases.Rejected`, without names or header elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset

from data_prep.cases import Rejected, rejecting
from data_prep.dicom import decode_pixels
from data_prep.nifti import corners_apart, is_nifti
from data_prep.readers import quiet
from segcft_ext.presentation import MILLIMETRES, is_dicom

__all__ = ["SCALED", "Volume", "align_axes", "check_same_grid", "read_ct", "read_labels"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AIR = -1000.0
"""HU of what lies beyond a volume."""

PLACE = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
"""DICOM elements that say where a slice lies."""

SCALED = 0.05
"""How far a label may lie from a whole number: floats saved as scaled integers come back as 0.99998, say."""


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) and the affine (4, 4) from voxel indices to RAS mm."""

    voxels: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Distance of neighbouring voxels along each axis, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_ct(path: Path) -> Volume:
    """Read a CT volume in HU: a NIfTI file, or a folder with the slices of one DICOM series.

    Raises:
        Rejected: when it cannot be read, is no volume, or cannot be in HU.
    """
    volume = _read(_read_series, "DICOM series", path) if path.is_dir() else _read(_read_nifti, "NIfTI file", path)
    # Every eighth voxel along each axis is enough: every CT of a chest has large regions of fat and air.
    some = volume.voxels[::8, ::8, ::8].astype(np.float64)
    some = some[np.isfinite(some)]
    if some.size == 0:
        raise Rejected("not_finite", "the CT volume has no finite voxel")
    low, high = float(some.min()), float(some.max())
    if low >= 0 or high - low < 200:
        text = f"the CT volume has values from {low:g} to {high:g}; in Hounsfield units fat and air are negative"
        raise Rejected("not_hounsfield", text)
    return volume


def read_labels(path: Path, values: Mapping[int, Sequence[int]]) -> Volume:
    """Read a label volume (NIfTI) and give its labels new values.

    Args:
        path: the file.
        values: new value -> values in the file; 0 in the file stays 0.

    Raises:
        Rejected: when it cannot be read, or holds something else than 0 and the values listed.
    """
    volume = _read(_read_nifti, "label volume's NIfTI file", path)
    found = volume.voxels
    new = {0: 0} | {original: value for value, originals in values.items() for original in originals}
    highest = max(new)
    table = np.zeros(highest + 1, np.uint8)
    table[list(new)] = list(new.values())
    counts = np.zeros(highest + 1, np.int64)
    renamed = np.empty(found.shape, np.uint8, order="F")
    for k in range(found.shape[2]):  # bincount needs eight bytes for each value
        whole = _whole_numbers(found[..., k])
        if whole.min() < 0 or whole.max() > highest:
            text = f"the label volume holds values from {found.min():g} to {found.max():g}, expected 0 to {highest}"
            raise Rejected("unknown_label", text)
        counts += np.bincount(whole.reshape(-1), minlength=len(counts))
        renamed[..., k] = table[whole]
    unknown = [value for value in np.flatnonzero(counts).tolist() if value not in new]
    if unknown:
        raise Rejected("unknown_label", f"the label volume holds the values {unknown}, which no structure has")
    return Volume(renamed, volume.affine)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    """The values as integers; values outside of all labels may be clipped, but stay outside."""
    if not np.issubdtype(values.dtype, np.integer):
        if not np.isrealobj(values) or not np.isfinite(values).all():
            raise Rejected("bad_label", "the label volume holds numbers that are not finite or not real")
        clipped = values.clip(-1, 2**31)
        values = np.rint(clipped)
        apart = np.abs(clipped - values)
        if apart.max() > SCALED:
            text = f"the label volume holds numbers that are not whole, such as {clipped.flat[apart.argmax()]:g}"
            raise Rejected("bad_label", text)
    return values.astype(np.int64)


def align_axes(label: Volume, image: Volume) -> Volume:
    """The label volume with its axes in the image's order and directions; voxels stay where they are in space.

    A DICOM series and labels drawn on its NIfTI copy usually differ in these: dcm2niix flips the rows.
    """
    to_image = io_orientation(np.linalg.inv(image.affine) @ label.affine)
    affine = label.affine @ inv_ornt_aff(to_image, label.voxels.shape)
    return Volume(apply_orientation(label.voxels, to_image), affine)


def check_same_grid(image: Volume, label: Volume) -> None:
    """Check that the label volume has the same voxel grid as the image.

    Raises:
        Rejected: when the shapes differ, or a corner lies elsewhere by more than a tenth of a voxel.
    """
    if image.voxels.shape != label.voxels.shape:
        text = f"the image has shape {image.voxels.shape}, the label volume {label.voxels.shape}"
        raise Rejected("shape_mismatch", text)
    apart = corners_apart(image.voxels.shape, image.affine, label.affine)
    if apart > 0.1 * image.spacing.min():
        raise Rejected("grid_mismatch", f"a corner of the label volume lies {apart:.2f} mm from that of the image")


def _read(reader: Callable[[Path], Volume], kind: str, path: Path) -> Volume:
    with quiet(), rejecting("unreadable", f"the {kind} cannot be decoded"):
        volume = reader(path)
    if volume.voxels.ndim != 3 or min(volume.voxels.shape) < 4:
        raise Rejected("unreadable", f"the {kind} holds an array of shape {volume.voxels.shape}, not a volume")
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(volume.affine)) < 1e-9:
        raise Rejected("unreadable", f"the {kind} has no geometry: its affine cannot be inverted")
    return volume


def _read_nifti(path: Path) -> Volume:
    with path.open("rb") as file:
        head = file.read(348)
    packed = head.startswith(b"\x1f\x8b")
    if is_nifti(head) and packed != path.name.lower().endswith("gz"):  # nibabel goes by the name
        raise Rejected("unreadable", f"the NIfTI file is {'' if packed else 'not '}compressed, contrary to its name")
    image: Any = nibabel.load(path)
    stored = image.dataobj
    # As stored where no scaling is needed, else 32-bit floats: nibabel's own scaling would give 64-bit floats.
    voxels = stored.get_unscaled()
    if (stored.slope, stored.inter) != (1, 0):
        voxels = voxels.astype(np.float32) * np.float32(stored.slope) + np.float32(stored.inter)
    if voxels.dtype.fields is not None:
        raise Rejected("colour", "the NIfTI file has colours")
    if voxels.ndim > 3 and all(n == 1 for n in voxels.shape[3:]):
        voxels = voxels.reshape(voxels.shape[:3])
    if voxels.ndim > 3:
        raise Rejected("multi_frame", f"the NIfTI file holds an array of shape {voxels.shape}, not one volume")
    unit = MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    return Volume(np.asarray(voxels), np.diag([unit, unit, unit, 1.0]) @ image.affine)


def _is_dicom_file(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _read_series(folder: Path) -> Volume:
    """The slices in the order of their positions along their common normal; a tilted gantry gives a sheared affine.

    Files that are not DICOM are ignored: exports come with texts and previews.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_dicom_file(path)]
    datasets = [dataset for dataset in map(pydicom.dcmread, files) if "PixelData" in dataset]
    _check_slices(datasets)
    first = datasets[0]
    along_row, along_column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    datasets.sort(key=lambda dataset: float(normal @ np.array(dataset.ImagePositionPatient, float)))
    positions = np.array([dataset.ImagePositionPatient for dataset in datasets], float)
    row_spacing, column_spacing = (float(s) for s in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * column_spacing, along_column * row_spacing
    affine[:3, 2] = _even_step(positions, normal)
    affine[:3, 3] = positions[0]
    # Pixels are (row, column); a row's pixels run along the first direction, so columns come first here.
    stack = np.stack([decode_pixels(dataset).T for dataset in datasets], axis=2)
    scale = np.array([(float(d.RescaleSlope), float(d.RescaleIntercept)) for d in datasets])
    if (scale == np.rint(scale)).all():
        voxels = stack.astype(np.int32) * scale[:, 0].astype(np.int32) + scale[:, 1].astype(np.int32)
        voxels = np.clip(voxels, -32768, 32767).astype(np.int16)  # half the memory
    else:
        voxels = (stack * scale[:, 0] + scale[:, 1]).astype(np.float32)
    return Volume(voxels, LPS_TO_RAS @ affine)


def _check_slices(datasets: Sequence[Dataset]) -> None:
    """Check that there are slices, all of one CT series in Hounsfield units, and of one geometry."""
    if not datasets:
        raise Rejected("unreadable", "the folder holds no DICOM image")
    if len({str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}) > 1:
        raise Rejected("several_series")
    same = ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    for dataset in datasets:
        lacking = [dictionary_description(keyword) for keyword in PLACE if not dataset.get(keyword)]
        if lacking:
            raise Rejected("unreadable", f"a slice of the DICOM series has no {', '.join(lacking)}")
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise Rejected("multi_frame", "a DICOM file of the series holds several frames")
        if "RescaleSlope" not in dataset or "RescaleIntercept" not in dataset:
            raise Rejected("not_hounsfield", "a slice of the DICOM series has no Rescale Slope and Intercept")
        if dataset.get("Modality", "CT") != "CT" or dataset.get("RescaleType", "HU") not in ("HU", "US"):
            raise Rejected("not_hounsfield", "the DICOM series is not a CT rescaled to Hounsfield units")
        found, first = ([np.array(d[key].value, float) for key in same] for d in (dataset, datasets[0]))
        if not all(np.allclose(a, b, atol=1e-3) for a, b in zip(found, first)):
            raise Rejected("incomplete_series", "the slices differ in size, spacing or orientation")


def _even_step(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The step from slice to slice, shape (3,), of slices at these positions (N, 3), in mm, sorted along the normal."""
    steps = np.diff(positions @ normal)
    if len(steps) == 0 or steps.min() < 1e-3:
        raise Rejected("incomplete_series", "there is one slice only, or there are several at one position")
    if np.abs(steps - np.median(steps)).max() > 0.1 * np.median(steps):
        text = f"the slices' distances go from {steps.min():.3f} to {steps.max():.3f} mm: some are missing"
        raise Rejected("incomplete_series", text)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    aside = np.linalg.norm(positions - positions[0] - np.outer(np.arange(len(positions)), step), axis=1).max()
    if aside > 0.1 * np.median(steps):
        text = f"a slice lies {aside:.3f} mm beside the line through the first and the last one, evenly divided"
        raise Rejected("incomplete_series", text)
    return step
