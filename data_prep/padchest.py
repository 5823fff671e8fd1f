"""The source ``padchest``: PadChest's table and images, with the masks of CheXmask.

A row of PadChest's table is a case when it passes every filter; rows that do not are counted by the first filter that
they fail, so the cases found and the filtered rows add up to the table.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.archives import Place, find_files, open_place
from data_prep.cases import Case, Item, Rejected, Source
from data_prep.chexmask import MaskRow, crop_borders, index_masks, read_masks
from data_prep.geometry import fit_image, fit_label, pad_to_aspect
from data_prep.intensity import to_unit_range
from data_prep.journal import stamp
from data_prep.readers import read_picture
from data_prep.structures import CHEST, combine_masks, label_values
from segcft_ext.folders import write_csv_atomically

__all__ = ["PadChestSource", "write_filters"]

MIN_AGE, MAX_AGE = 18, 120
MIN_RCA = 0.7
"""CheXmask's authors advise against masks whose estimated overlap with the truth, Dice RCA (Mean), is lower."""
EXCLUDED_LABELS = ("suboptimal study", "exclude")
SEXES = ("F", "M")

_ID, _FOLDER, _PATIENT = "ImageID", "ImageDir", "PatientID"
_DATE, _BIRTH, _SEX = "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM"
_PROJECTION, _PEDIATRIC, _LABELS = "Projection", "Pediatric", "Labels"
_POLARITY = "PhotometricInterpretation_DICOM"
_COLUMNS = (_ID, _FOLDER, _PATIENT, _DATE, _BIRTH, _SEX, _PROJECTION, _PEDIATRIC, _LABELS, _POLARITY)


@dataclass(frozen=True)
class _Found:
    """What is known of a case before it is loaded; ``fault`` is a reason and a text."""

    masks: MaskRow | None
    place: Place | None
    fault: tuple[str, str] | None
    inverted: bool
    age: int
    sex: int | None


class PadChestSource(Source):
    """Adult postero-anterior radiographs of PadChest with CheXmask's lungs and heart.

    Args:
        table: PadChest's table, CSV or packed as .csv.gz.
        masks: CheXmask's table for PadChest, either version.
        images: folders and zip archives with the images; folders and archives below a folder are searched, too.
        size: (H, W) of the prepared arrays.

    Attributes:
        counts: numbers of rows in the table, of rows that each filter takes out, of cases, of images and of masks
            without a row, and of archives that cannot be opened.
        broken: the archives that cannot be opened.

    Raises:
        ValueError: when a table cannot be read, lacks a column, or no row passes the filters.
    """

    variables: Sequence[Mapping[str, Any]] = (
        {"name": "age", "kind": "continuous", "unit": "years"},
        {"name": "sex", "kind": "binary", "unit": "", "categories": list(SEXES)},
    )

    size: tuple[int, int]

    def __init__(self, table: Path, masks: Path, images: Sequence[Path], size: tuple[int, int]) -> None:
        self.size = size
        self.labels = label_values(CHEST)
        self._masks = masks
        frame = _read_table(table)
        places, self.broken = find_files(images, ".png")
        names = Counter(frame[_ID])
        rows_of, masks_alone = index_masks(masks, names)
        filtered, frame = _filter(frame, places, rows_of)
        if frame.empty:
            raise ValueError(f"{table}: no row passes the filters: {filtered}")
        self.counts = {
            "rows of the table": sum(filtered.values()) + len(frame),
            **{f"filtered: {name}": count for name, count in filtered.items()},
            "cases found": len(frame),
            "images without a row": len(places.keys() - names.keys()),
            "masks without a row": masks_alone,
            "archives that cannot be opened": len(self.broken),
        }
        self._found = [_match(row, names, places, rows_of) for row in frame.to_dict("records")]
        self.items = [
            Item("padchest", name, index, patient or None)
            for index, (name, patient) in enumerate(zip(frame[_ID], frame[_PATIENT]))
        ]

    def fingerprint(self, item: Item) -> list[Any]:
        """The image's file or archive, CheXmask's table, and the case's own rows."""
        found = self._found[item.index]
        return [stamp(Path(found.place.path)) if found.place else None, stamp(self._masks), asdict(found)]

    def load(self, item: Item) -> Case:
        """Read image and masks, bring them to the common geometry and intensity.

        PadChest's authors have windowed the files where DICOM gave a window, so WindowCenter and WindowWidth are not
        applied again; the percentiles of :func:`to_unit_range` remove gain and offset in any case.
        """
        found = self._found[item.index]
        if found.fault:
            raise Rejected(*found.fault)
        assert found.masks is not None and found.place is not None
        masks, shape = read_masks(self._masks, item.name, found.masks)
        pixels = read_picture(open_place(found.place)).pixels
        if shape is None:
            pixels = crop_borders(pixels)
        elif shape != pixels.shape:
            raise Rejected("shape_mismatch", f"the image has shape {pixels.shape}, CheXmask's table says {shape}")
        image = to_unit_range(pixels)
        if found.inverted:
            image = 1 - image
        if shape is None:
            image = pad_to_aspect(image, (1, 1))
        return Case(
            image=fit_image(image, self.size),
            label=fit_label(combine_masks(masks), self.size),
            variables={"age": found.age, "sex": found.sex},
        )


def write_filters(counts: Mapping[str, int], path: Path) -> None:
    """Write :attr:`PadChestSource.counts` as CSV: what, count."""
    write_csv_atomically(path, [("what", "count"), *counts.items()])


def _read_table(path: Path) -> pd.DataFrame:
    """The columns that are needed, as text; no other column is kept."""
    try:
        with path.open("rb") as packed:
            head = packed.read(4)
        if head == b"PK\3\4":
            raise ValueError("found a zip archive, expected CSV or .csv.gz")
        opened: Any = gzip.open if head.startswith(b"\x1f\x8b") else open
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            absent = [column for column in _COLUMNS if column not in header]
            if absent:
                raise ValueError(f"no column {', '.join(map(repr, absent))}; the table has {header}")
            doubled = [column for column in _COLUMNS if header.count(column) > 1]
            if doubled:
                raise ValueError(f"found the column {doubled[0]!r} twice, expected every name once")
            rows = []
            for cells in filter(None, reader):
                if len(cells) > len(header):
                    raise ValueError(f"line {reader.line_num}: found {len(cells)} cells, expected {len(header)}")
                row = dict(zip(header, cells))
                rows.append([row.get(column, "").strip() for column in _COLUMNS])
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path}: PadChest's table cannot be read: {error}") from error
    return pd.DataFrame(rows, columns=list(_COLUMNS), dtype=str)


def _filter(
    frame: pd.DataFrame, places: Mapping[str, Sequence[Place]], rows_of: Mapping[str, Sequence[MaskRow]]
) -> tuple[dict[str, int], pd.DataFrame]:
    """Number of rows that each filter takes out, and the rows that are left, with their ``age``."""
    present = frame[_ID].isin(places.keys()).groupby(frame[_FOLDER]).transform("any")
    age = pd.to_numeric(frame[_DATE].str[:4], errors="coerce") - pd.to_numeric(frame[_BIRTH], errors="coerce")
    rca = {name: rows[0].rca for name, rows in rows_of.items() if len(rows) == 1}
    labels = frame[_LABELS].str.lower().str.split(",").map(lambda parts: {part.strip(" []'\"") for part in parts})
    filters = {
        "no image of its folder is given": ~present,
        "age unknown": ~age.between(0, MAX_AGE),
        f"younger than {MIN_AGE} years": age < MIN_AGE,
        "projection not PA": frame[_PROJECTION] != "PA",
        "marked pediatric": ~frame[_PEDIATRIC].str.lower().isin(["", "no"]),
        "labelled suboptimal study or exclude": labels.map(lambda found: not found.isdisjoint(EXCLUDED_LABELS)),
        # A row without masks, or with several, is not filtered by their quality: it is a case, and rejected.
        f"Dice RCA (Mean) below {MIN_RCA:g} or unknown": frame[_ID].isin(rca) & ~(frame[_ID].map(rca) >= MIN_RCA),
    }
    counts, kept = {}, pd.Series(True, frame.index)
    for name, taken_out in filters.items():
        counts[name] = int((kept & taken_out).sum())
        kept &= ~taken_out
    return counts, frame.assign(age=age)[kept]


def _match(
    row: Mapping[str, Any],
    names: Mapping[str, int],
    places: Mapping[str, Sequence[Place]],
    rows_of: Mapping[str, Sequence[MaskRow]],
) -> _Found:
    name = row[_ID]
    files, masks = places.get(name, ()), rows_of.get(name, ())
    fault = None
    if names[name] > 1:
        fault = "duplicate_row", f"PadChest's table has {names[name]} rows for the image"
    elif len(masks) > 1:
        fault = "duplicate_row", f"CheXmask's table has {len(masks)} rows for the image"
    elif len(files) > 1:
        fault = "duplicate_name", f"{len(files)} files have the image's name"
    elif not files:
        fault = "missing_image", "there is no file of the image's name"
    elif not masks:
        fault = "missing_mask", "CheXmask's table has no row for the image"
    return _Found(
        masks=masks[0] if masks else None,
        place=files[0] if files else None,
        fault=fault,
        inverted=row[_POLARITY].upper() == "MONOCHROME1",
        age=int(row["age"]),
        sex=SEXES.index(row[_SEX]) if row[_SEX] in SEXES else None,
    )
