"""CheXmask's tables: masks of the lungs and the heart for public radiographs, in the two versions that are published.

In the version of the original resolution, the columns Height and Width are filled and the masks lie on the image's own
pixels. In the pre-processed version these columns are empty and the masks have 1024 x 1024 pixels: they lie on the
image after its black borders were cut off, the rest was padded to a centred square, and the square was resized.

The tables have several gigabytes, nearly all of it masks. So a table is read through once to note where each row lies,
and a case's row is read again when the case is loaded.

References:
    Gaggion et al., CheXmask: a large-scale dataset of anatomical segmentation masks for multi-center chest x-ray
    images, Scientific Data 2024.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from data_prep.cases import Rejected, naming
from data_prep.rle import decode_rle
from data_prep.rows import LONGEST_CELL

__all__ = ["MaskRow", "crop_borders", "index_masks", "read_masks"]

ID, RCA, HEIGHT, WIDTH = "ImageID", "Dice RCA (Mean)", "Height", "Width"
STRUCTURES = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
PREPROCESSED = (1024, 1024)
PACKED = (b"\x1f\x8b", b"PK\3\4", b"BZh", b"\xfd7zX")  # gzip, zip, bzip2, xz


@dataclass(frozen=True)
class MaskRow:
    """Where an image's row lies in the table, in bytes, and its Dice RCA (Mean), NaN where none is given."""

    start: int
    length: int
    rca: float


def index_masks(path: Path, names: Container[str]) -> tuple[dict[str, list[MaskRow]], int]:
    """Read a table through and note where its rows lie.

    Args:
        path: the CSV file.
        names: the ImageIDs whose rows are wanted.

    Returns:
        The rows of each of these images (several where the table repeats an ImageID), and the number of other rows.

    Raises:
        ValueError: when the file is compressed, lacks a column or is not CSV.
        OSError: when it cannot be read.
    """
    found: dict[str, list[MaskRow]] = {}
    others = start = 0
    size = path.stat().st_size
    with path.open("rb") as file, tqdm(total=size, desc="CheXmask's table", unit="B", unit_scale=True) as bar:
        if file.read(4).startswith(PACKED):
            raise ValueError(f"{path}: unpack CheXmask's table first; its rows are read by their position")
        file.seek(0)
        lines = _Lines(file)
        reader = _reader(lines)
        try:
            header = _header(path, next(reader, []))
            start = lines.position
            bar.update(start)
            for cells in reader:
                length, at = lines.position - start, start
                start = lines.position
                bar.update(length)
                row = dict(zip(header, cells))
                if row.get(ID) in names:
                    found.setdefault(row[ID], []).append(MaskRow(at, length, _number(row.get(RCA, ""))))
                else:
                    others += 1
        except csv.Error as error:
            raise ValueError(f"{path}: no CSV from byte {start} on: {error}") from error
    return found, others


def read_masks(path: Path, name: str, row: MaskRow) -> tuple[dict[str, np.ndarray], tuple[int, int] | None]:
    """The masks of one image as booleans, and the shape of the image they lie on, None in the pre-processed version.

    Raises:
        Rejected: when the row is cut off, or a mask or the shape makes no sense.
        OSError: when the file is no longer the one that was indexed.
    """
    with path.open("rb") as file:
        header = _header(path, next(_reader(_Lines(file)), []))
        file.seek(row.start)
        text = file.read(row.length).decode("utf-8", errors="replace")
    cells = next(_reader(text.splitlines(keepends=True)), [])
    values = dict(zip(header, cells))
    if values.get(ID) != name:
        raise OSError(f"{path}: the table has changed since it was read through; run again")
    if len(cells) != len(header):
        raise Rejected("bad_rle", f"the row of CheXmask's table has {len(cells)} cells, {len(header)} are due")
    height, width = (_number(values[column]) for column in (HEIGHT, WIDTH))
    shape = None
    if values[HEIGHT].strip() or values[WIDTH].strip():
        if not (height % 1 == 0 and width % 1 == 0 and 0 < height < 2**15 and 0 < width < 2**15):
            raise Rejected("bad_rle", "Height and Width of CheXmask's table are not two numbers of pixels")
        shape = int(height), int(width)
    masks = {}
    for structure, column in STRUCTURES.items():
        with naming(structure):
            masks[structure] = decode_rle(values[column], shape or PREPROCESSED)
    return masks, shape


def crop_borders(pixels: np.ndarray) -> np.ndarray:
    """The image (H, W) without its black borders: the smallest rectangle that holds all pixels above 1, in 8 bits.

    Padded to a centred square, this is what the pre-processed masks lie on, at another size.

    CheXmask's authors read PadChest's 16-bit files in 8 bits, which keeps the higher byte. So in 16 bits, values up to
    511 count as border. They read the values as stored, so MONOCHROME1 must not be inverted before.

    Raises:
        Rejected: when nothing is left.
    """
    inside = pixels > (1 if pixels.dtype == np.uint8 else 511)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not rows.size:
        raise Rejected("constant_image", "all pixels of the image are as dark as a border")
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class _Lines(Iterator[str]):
    """The lines of a file as text, with the position in bytes up to which they have been read.

    A CSV reader takes no line before it needs it, so the position is the end of the last record; a record may have
    several lines, since the landmarks of the original resolution do.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.position += len(line)
        return line.decode("utf-8", errors="replace")


def _reader(lines: Iterable[str]) -> Iterator[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    return csv.reader(lines)


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.removeprefix("\ufeff").strip() for cell in cells]
    absent = [column for column in (ID, RCA, *STRUCTURES.values(), HEIGHT, WIDTH) if column not in header]
    if absent:
        raise ValueError(f"{path}: no column {', '.join(map(repr, absent))}; the table has {header}")
    return header


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
