"""Finding CT volumes with their label volumes and centrelines: in folders like ImageCAS-X, or in a list.

ImageCAS-X (https://kitbransby.github.io/ImageCAS-X/) has ``volumes/ID.img.nii.gz``,
``segmentations/ID.coronary.nii.gz`` and ``centerlines/ID.coronary_{left,right}_centerline.vtk``. Here a volume and its
label volume have the same name, apart from words at its end that say what the file is; a centreline belongs to the
volume or label volume with whose name its own name begins. So ``volumes/ID.nii.gz`` (or a folder ``volumes/ID`` with
the slices of a DICOM series), ``segmentations/ID_seg.nii.gz`` and ``centerlines/ID.vtk`` or ``ID_LAD.csv`` are found
too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.names import source_name
from data_prep.rows import read_table

__all__ = ["Scan", "find_scans", "list_scans"]

FILES = ("volume", "label", "centreline")
_SUFFIX = re.compile(r"(\.nii|\.nii\.gz|\.vtk|\.vtp|\.csv)$", re.IGNORECASE)
_ROLE = r"[._ -](img|image|labels?|seg|segmentation|mask|coronary|cent(er|re)lines?)"
_ROLES_AT_END = re.compile(rf"(?<=[^._ -])({_ROLE})+$", re.IGNORECASE)
_ROLES = re.compile(rf"{_ROLE}(?=$|[._ -])", re.IGNORECASE)


@dataclass(frozen=True)
class Scan:
    """One CT volume and what belongs to it.

    Attributes:
        source: name of the source.
        name: the scan's name, unique within the source up to faults in the data; may identify the patient.
        patient: the patient's name; where it is unknown, source and name, since sources number their scans alike.
        volumes, labels: files of the image and of the label volume: one each, unless the data are at fault.
        centrelines: name and file of each centreline or tree; none where they are to be found in the label volume.
    """

    source: str
    name: str
    patient: str
    volumes: tuple[Path, ...]
    labels: tuple[Path, ...]
    centrelines: tuple[tuple[str, Path], ...]


def find_scans(root: Path) -> list[Scan]:
    """The scans below a folder with ``volumes``, ``segmentations`` and, if there are any, ``centerlines``.

    A label volume or a centreline without a volume is a scan too, so that it is counted.

    Raises:
        ValueError: when there is no folder of volumes or of segmentations, or nothing in it.
    """
    for folder in ("volumes", "segmentations"):
        if not (root / folder).is_dir():
            raise ValueError(f"{root / folder}: no such folder; expected volumes/, segmentations/ and centerlines/")
    volumes: dict[str, list[Path]] = {}
    for path in _entries(root / "volumes"):
        volumes.setdefault(_bare(path), []).append(path)
    labels: dict[str, list[Path]] = {}
    for path in _entries(root / "segmentations"):
        labels.setdefault(_bare(path), []).append(path)
    # The longest name first: 12_LAD belongs to 12_LAD and not to 12, should both exist.
    names = sorted({*volumes, *labels}, key=len, reverse=True)
    lines: dict[str, list[tuple[str, Path]]] = {}
    for folder in ("centerlines", "centrelines"):
        for path in _entries(root / folder):
            name = _owner(path, names)
            rest = _ROLES.sub("", _SUFFIX.sub("", path.name)[len(name) :]).strip("._- ")
            lines.setdefault(name, []).append((rest or "vessel", path))
    found = sorted({*volumes, *labels, *lines})
    if not found:
        raise ValueError(f"{root / 'volumes'}: no volume there")
    source = source_name(root.resolve().name)
    return [
        Scan(
            source=source,
            name=name,
            patient=f"{source}/{name}",
            volumes=tuple(volumes.get(name, [])),
            labels=tuple(labels.get(name, [])),
            centrelines=tuple(sorted(lines.get(name, []))),
        )
        for name in found
    ]


def list_scans(table: Path) -> list[Scan]:
    """The scans of a CSV file: ``volume``, ``label`` and, where there are any, ``centreline``, ``vessel``, ``patient``.

    Paths are relative to the file. A volume with several centrelines has several rows, whose names stand in ``vessel``.
    Without a ``patient`` each volume is a patient of its own.

    Raises:
        ValueError: when the file cannot be read, lacks a column or a cell, names a file that does not exist, or the
            rows of a volume contradict each other.
    """
    if not table.exists():
        raise ValueError(f"{table}: no such folder or list")
    frame = read_table(table)
    columns = [name for name in frame if name]
    known = {"volume", "label", "centreline", "vessel", "patient"}
    if not {"volume", "label"} <= set(columns) <= known or frame.empty:
        expected = f"some of {sorted(known)}, and rows"
        raise ValueError(f"{table}: found the columns {columns} and {len(frame)} rows, expected {expected}")
    lines, rows = list(frame.index), [{k: cell.strip() for k, cell in r.items()} for r in frame.to_dict("records")]
    for line, row in zip(lines, rows):
        if not row["volume"]:
            raise ValueError(f"{table}: line {line}: volume: found nothing, expected a file")
    missing = [
        f"line {line}: {column}: {table.parent / row[column]}"
        for line, row in zip(lines, rows)
        for column in FILES
        if row.get(column) and not (table.parent / row[column]).exists()
    ]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{table}: {missing[0]}: no such file{more}; paths are relative to the list")
    of_volume: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        of_volume.setdefault(row["volume"], []).append(row)
    return [_scan(table, volume, rows) for volume, rows in of_volume.items()]


def _scan(table: Path, volume: str, rows: list[dict[str, str]]) -> Scan:
    for column in ("label", "patient"):
        values = {row.get(column, "") for row in rows}
        if len(values) > 1:
            raise ValueError(f"{table}: {column}: found {len(values)} different ones for volume {volume}, expected one")
    bare = [row for row in rows if not row.get("centreline")]
    if 0 < len(bare) < len(rows):
        vessel = f" of vessel {bare[0]['vessel']}" if bare[0].get("vessel") else ""
        text = f"found none{vessel} for volume {volume}, expected a file as in its other rows, or none in any of them"
        raise ValueError(f"{table}: centreline: {text}")
    label, patient = rows[0]["label"], rows[0].get("patient", "")
    lines = [
        (row.get("vessel") or f"vessel {i}", table.parent / row["centreline"])
        for i, row in enumerate(rows, start=1)
        if row.get("centreline")
    ]
    source = source_name(table.stem)
    return Scan(
        source=source,
        name=volume,
        patient=patient or f"{source}/{volume}",
        volumes=(table.parent / volume,),
        labels=(table.parent / label,) if label else (),
        centrelines=tuple(lines),
    )


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _bare(path: Path) -> str:
    return _ROLES_AT_END.sub("", path.name if path.is_dir() else _SUFFIX.sub("", path.name))


def _owner(path: Path, names: list[str]) -> str:
    """The volume's or label volume's name with which the file's name begins, up to a separator; else the file's own."""
    stem = _SUFFIX.sub("", path.name)
    return next((n for n in names if stem == n or (stem.startswith(n) and stem[len(n)] in "._- ")), _bare(path))
