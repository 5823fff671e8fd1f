"""A small CT volume with one curved vessel, written in every way that the source ``ccta`` reads."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from pydicom.uid import generate_uid
from scipy.spatial import KDTree

from tests.dicom_files import write_dicom

SPACING = (0.6, 0.5, 0.8)


def centreline(count: int = 120) -> np.ndarray:
    """A quarter of a circle of radius 22 mm that also rises: 37.2 mm long, RAS."""
    t = np.linspace(0, np.pi / 2, count)
    return np.stack([22 * np.cos(t), 22 * np.sin(t), 8 * t], axis=1)


def oblique_affine() -> np.ndarray:
    """Voxels to RAS: rotated about two axes, the first two axes running to left and posterior as in DICOM's LPS."""
    a, b = 0.3, -0.25
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(SPACING)
    affine[:3, 3] = turn @ (34, 34, -14)
    return affine


@cache
def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU (int16), labels (uint8) of shape (84, 96, 56), and the affine: a lumen with a patch of calcium on it."""
    affine = oblique_affine()
    index = np.stack(np.meshgrid(*map(np.arange, (84, 96, 56)), indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    distance, nearest = KDTree(centreline(800)).query(places, distance_upper_bound=3)
    label = np.where(distance < 1.6, 1, 0).astype(np.uint8)
    label[(distance >= 1.6) & (distance < 2.8) & (nearest > 300) & (nearest < 420)] = 2
    noise = np.random.default_rng(0).normal(0, 10, label.shape)
    drawn = (np.choose(label, (-90.0, 380.0, 900.0)) + noise).astype(np.int16), label, affine
    for array in drawn:
        array.setflags(write=False)
    return drawn


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def write_csv(path: Path, points: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x,y,z\n" + "\n".join(",".join(f"{c:.4f}" for c in p) for p in points) + "\n", encoding="utf-8")
    return path


def write_scan(root: Path, name: str = "one", lps: bool = True) -> Path:
    """Write volume, labels and centreline below a folder, named as in ImageCAS-X (the centreline as a CSV table)."""
    hu, label, affine = draw()
    write_nifti(root / "volumes" / f"{name}.img.nii.gz", hu, affine)
    write_nifti(root / "segmentations" / f"{name}.coronary.nii.gz", label, affine)
    points = centreline() * (-1, -1, 1) if lps else centreline()
    write_csv(root / "centerlines" / f"{name}.coronary_left_centerline.csv", points)
    return root


def write_series(folder: Path, hu: np.ndarray, affine: np.ndarray, **elements: object) -> Path:
    """Write a DICOM series with the affine's axes, slices in shuffled files; elements given as None are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    columns, rows = np.linalg.norm(lps[:3, 0]), np.linalg.norm(lps[:3, 1])
    common = {
        "Modality": "CT",
        "SeriesInstanceUID": generate_uid(),
        "ImageOrientationPatient": [*(lps[:3, 0] / columns), *(lps[:3, 1] / rows)],
        "PixelSpacing": [rows, columns],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    } | elements
    for k in range(hu.shape[2]):
        position = (lps @ (0, 0, k, 1))[:3]
        stored = (hu[:, :, k].T.astype(np.int32) + 1024).clip(0, 4095).astype(np.uint16)
        given = {name: value for name, value in common.items() if value is not None}
        write_dicom(folder / f"{(k * 37) % hu.shape[2]:03d}.dcm", stored, **given, ImagePositionPatient=list(position))
    return folder
