"""Where a case's masks come from: a folder for each structure, one file of label values, or run lengths in a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cases import Rejected, naming
from data_prep.grey import Picture
from data_prep.nifti import corners_apart
from data_prep.readers import read_picture
from data_prep.rle import decode_rle
from data_prep.rows import Match, Rows, is_missing
from data_prep.structures import threshold_mask
from data_prep.volumes import SCALED

__all__ = ["LabelMaps", "MaskFolders", "MaskTable", "Masks"]


class Masks(ABC):
    """The masks of all cases.

    Attributes:
        structures: names of the structures in the order of the label values.
        folders: folders of the masks' files, relative to each root; the files of a case have the same keys.
    """

    structures: Sequence[str]
    folders: Mapping[str, str]

    def match(self, cases: Sequence[tuple[str, str]]) -> None:
        """Take note of all cases, as (folder's name, file's name without suffix), before any is read.

        Raises:
            ValueError: when a table of masks cannot be read or lacks a column.
        """
        return

    def fingerprint(self, index: int) -> Any:
        """What the masks of a case depend on besides their files."""
        return None

    @abstractmethod
    def read(self, index: int, files: Mapping[str, Path], image: Picture) -> dict[str, np.ndarray]:
        """The masks of a case, boolean and of the image's shape.

        Args:
            index: position among the cases of :meth:`match`.
            files: the case's files by key of :attr:`folders`.
            image: the image on which the masks must lie.

        Raises:
            Rejected: when a mask is missing, cannot be read, or does not lie on the image.
        """


class MaskFolders(Masks):
    """One folder of masks for each structure.

    Args:
        folders: folder of each structure, relative to each root, in the order of the label values.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.folders = folders
        self.structures = list(folders)

    def read(self, index: int, files: Mapping[str, Path], image: Picture) -> dict[str, np.ndarray]:
        _expect(files, self.structures)
        masks = {}
        for name in self.structures:
            with naming(name):
                mask = read_picture(files[name], indexed=True)
                masks[name] = threshold_mask(mask.pixels)
            _check_register(mask, image, name)
        return masks


class LabelMaps(Masks):
    """One label map for each case, with all structures.

    Args:
        folder: folder of the label maps, relative to each root.
        values: values of each structure in these files, in the order of the new label values. 0 is the background, and
            so are values listed as ``background``; a value that is not listed rejects the case.

    Raises:
        ValueError: when a value stands for two structures, or there is no structure but the background.
    """

    def __init__(self, folder: str, values: Mapping[str, Sequence[int]]) -> None:
        self.folders = {"label map": folder}
        self._values = {name: list(given) for name, given in values.items() if name != "background"}
        self._background = [0, *values.get("background", [])]
        together = [value for given in values.values() for value in given]
        if len(set(together)) != len(together) or any(0 in given for given in self._values.values()):
            raise ValueError(f"labels: found {values}, expected every value once and 0 for the background alone")
        if not self._values:
            raise ValueError(f"labels: found {values}, expected structures besides the background")
        self.structures = list(self._values)

    def fingerprint(self, index: int) -> Any:
        return [self._background, self._values]

    def read(self, index: int, files: Mapping[str, Path], image: Picture) -> dict[str, np.ndarray]:
        _expect(files, list(self.folders))
        with naming("label map"):
            label_map = read_picture(files["label map"], indexed=True)
        _check_register(label_map, image, "the label map")
        values = _snapped(label_map.pixels)
        known = [*self._background, *(value for given in self._values.values() for value in given)]
        unknown = np.setdiff1d(values, known)
        if unknown.size:
            some = ", ".join(f"{value:g}" for value in unknown[:5])
            raise Rejected("unknown_label", f"the label map has {unknown.size} unknown values: {some}")
        return {name: np.isin(values, given) for name, given in self._values.items()}


class MaskTable(Masks):
    """Run-length encoded masks in the cells of a table: see :mod:`data_prep.rle`.

    Args:
        path: the table, one row for each case.
        columns: column of each structure, in the order of the label values.
        id_column: the column with the image's file name, with or without suffix.

    Attributes:
        unused: number of rows that belong to no case, once :meth:`match` has read the table.
    """

    unused = 0

    def __init__(self, path: Path, columns: Mapping[str, str], id_column: str = "id") -> None:
        self.folders = {}
        self.structures = list(columns)
        self._path, self._columns, self._id_column = path, columns, id_column
        self._matches: list[Match] = []

    def match(self, cases: Sequence[tuple[str, str]]) -> None:
        rows = Rows(self._path, list(self._columns.values()), self._id_column)
        self._matches, self.unused = rows.match(cases), rows.unused

    def fingerprint(self, index: int) -> Any:
        match = self._matches[index]
        return [match.fault, match.row, list(self._columns.items())]

    def read(self, index: int, files: Mapping[str, Path], image: Picture) -> dict[str, np.ndarray]:
        match = self._matches[index]
        if match.fault:
            raise Rejected("duplicate_row", f"masks: {match.fault}")
        row = match.row or {}
        given = [name for name, column in self._columns.items() if not is_missing(row.get(column, ""))]
        _expect(given, self.structures)
        masks = {}
        for name, column in self._columns.items():
            with naming(name):
                masks[name] = decode_rle(row[column], image.pixels.shape)
        return masks


def _snapped(values: np.ndarray) -> np.ndarray:
    """The values, each float within :data:`~data_prep.volumes.SCALED` of a whole number as that number."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    whole = np.rint(values)
    return np.where(np.isclose(values, whole, rtol=0, atol=SCALED), whole, values)


def _expect(found: Mapping[str, Path] | Sequence[str], expected: Sequence[str]) -> None:
    absent = [name for name in expected if name not in found]
    if absent:
        raise Rejected("missing_mask", f"no mask of {', '.join(absent)}")


def _check_register(mask: Picture, image: Picture, name: str) -> None:
    if mask.pixels.shape != image.pixels.shape:
        raise Rejected("shape_mismatch", f"the image has shape {image.pixels.shape}, {name} has {mask.pixels.shape}")
    if image.spacing and mask.spacing and not np.allclose(image.spacing, mask.spacing, rtol=1e-2):
        raise Rejected("spacing_mismatch", f"the image has spacing {image.spacing} mm, {name} has {mask.spacing} mm")
    if image.affine is None or mask.affine is None or not image.spacing:
        return
    height, width = image.pixels.shape
    apart = corners_apart((width, height, 1), image.affine, mask.affine)
    if not apart <= 0.1 * min(image.spacing):
        raise Rejected("grid_mismatch", f"a corner of {name} lies {apart:.2f} mm from that of the image")
