"""A small made-up PadChest with both versions of CheXmask, for the tests of data_prep."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drawn_chest import draw, write_png
from rle_text import encode_rle
from skimage.transform import resize

PADCHEST_COLUMNS = (
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "Pediatric", "PhotometricInterpretation_DICOM", "WindowCenter_DICOM", "Report",
    "Labels",
)  # fmt: skip
CHEXMASK_COLUMNS = (
    "ImageID", "Dice RCA (Max)", "Dice RCA (Mean)", "Landmarks", "Left Lung", "Right Lung", "Heart", "Height", "Width",
)  # fmt: skip
COLUMN_OF = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}


def padchest_row(name: str, **changes: Any) -> dict[str, Any]:
    """A row that passes every filter."""
    return {
        "": 7,
        "ImageID": name,
        "ImageDir": "0",
        "StudyDate_DICOM": "20140915",
        "StudyID": f"study-{name}",
        "PatientID": f"patient-{name}",
        "PatientBirth": "1950.0",
        "PatientSex_DICOM": "M",
        "ViewPosition_DICOM": "POSTEROANTERIOR",
        "Projection": "PA",
        "Pediatric": "No",
        "PhotometricInterpretation_DICOM": "MONOCHROME2",
        "WindowCenter_DICOM": "[2048]",
        "Report": "años, «sin \n hallazgos»",
        "Labels": "['pleural effusion', ' costophrenic angle blunting']",
        **changes,
    }


def original_row(name: str, masks: Mapping[str, np.ndarray], **changes: Any) -> dict[str, Any]:
    """CheXmask's row in the version of the original resolution, in which the landmarks run over several lines."""
    height, width = next(iter(masks.values())).shape
    row = {column: encode_rle(masks[name] > 0) for name, column in COLUMN_OF.items()}
    row |= {"ImageID": name, "Dice RCA (Max)": 0.9, "Dice RCA (Mean)": 0.8, "Height": height, "Width": width}
    return {**row, "Landmarks": "[[304 299]\n [281 306]]", **changes}


def preprocessed_row(name: str, masks: Mapping[str, np.ndarray], stored: np.ndarray) -> dict[str, Any]:
    """CheXmask's row in the pre-processed version, made from masks on the original pixels as its authors made it.

    On purpose, nothing of data_prep is used. ``stored`` holds the pixels of the file; OpenCV's 8-bit reader takes their
    higher byte.
    """
    rows, columns = np.nonzero((stored >> 8 if stored.dtype == np.uint16 else stored) > 1)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    height, width = bottom - top, right - left
    edge = max(height, width)
    resized = {}
    for structure, mask in masks.items():
        square = np.zeros((edge, edge), bool)
        y, x = (edge - height) // 2, (edge - width) // 2
        square[y : y + height, x : x + width] = mask[top:bottom, left:right] > 0
        resized[structure] = resize(square.astype(float), (1024, 1024), order=1) > 0.5
    return {**original_row(name, resized), "Landmarks": "304,299,281,306", "Height": "", "Width": ""}


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]], masks: Sequence[Mapping[str, Any]]) -> None:
    """Write ``padchest.csv`` and ``chexmask.csv``."""
    for file, columns, content in (
        ("padchest.csv", PADCHEST_COLUMNS, rows),
        ("chexmask.csv", CHEXMASK_COLUMNS, masks),
    ):
        with (folder / file).open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, columns)
            writer.writeheader()
            writer.writerows(content)


def write_padchest(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Write ``count`` 16-bit images below ``images/0/`` and both tables (CheXmask's in the original resolution).

    Returns:
        The rows of PadChest's table by ImageID.
    """
    rows, masks = {}, []
    for i in range(count):
        name = f"{i:03d}.png"
        image, found = draw(i)
        write_png(folder / "images" / "0" / name, image.astype(np.uint16) * 200)
        patient = f"patient-{i // 2}"
        rows[name] = padchest_row(name, PatientID=patient, PatientBirth=str(1930 + i), PatientSex_DICOM="FM"[i % 2])
        masks.append(original_row(name, found))
    write_tables(folder, list(rows.values()), masks)
    return rows
