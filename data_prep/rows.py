"""Reading tables of any usual format as text, and matching their rows with cases."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.names import strip_suffix

__all__ = ["LONGEST_CELL", "Match", "Rows", "is_missing", "read_table"]

LONGEST_CELL = 2**24
"""Characters of a cell; the module csv allows for less than some run-length encoded masks have."""

_MISSING = ("", "na", "n/a", "nan", "none", "null", "nat", "<na>")


def is_missing(cell: str) -> bool:
    """Whether a cell is empty or says in a usual way that there is no value."""
    return cell.lower() in _MISSING


def read_table(path: Path) -> pd.DataFrame:
    """A table with every cell as text, empty where missing: CSV, TSV (.tsv, .tab), Excel (.xlsx, .xls) or Parquet.

    The index of a CSV or TSV table holds the number of each row's line in the file.

    Raises:
        ValueError: when the table cannot be read, a row of a CSV or TSV file has more or fewer cells than its header,
            or two columns have one name.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
        elif suffix in (".xlsx", ".xls"):
            # The header is read as a row. Otherwise pandas would rename names that occur twice.
            frame = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
            frame = frame[1:].set_axis(frame[:1].fillna("").astype(str).squeeze(axis=0), axis=1)
        else:
            frame = _read_text(path, "\t" if suffix in (".tsv", ".tab") else ",")
    except ImportError as error:
        raise ValueError(f"{path}: pip install 'segcft-ext[formats]' reads such tables ({error})") from error
    except Exception as error:  # readers of damaged Excel and Parquet files raise errors of many types
        raise ValueError(f"{path}: the table cannot be read: {str(error).strip() or type(error).__name__}") from error
    frame.columns = frame.columns.map(str)
    doubled = sorted({name for name in frame.columns[frame.columns.duplicated()] if name.strip()})
    if doubled:
        raise ValueError(f"{path}: found the column {doubled[0]!r} twice, expected every name once")
    return frame.astype(object).where(frame.notna(), "").astype(str)


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    """A CSV or TSV file as text. pandas would fill up a row that was cut, as if the cells that it lacks were empty."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        rows = [(reader.line_num, cells) for cells in reader if "".join(cells).strip()]
    (_, header), *rows = rows or [(0, [])]
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"line {line}: found {len(cells)} cells, expected {len(header)}")
    return pd.DataFrame([cells for _, cells in rows], [line for line, _ in rows], header, dtype=str)


@dataclass(frozen=True)
class Match:
    """A case's row in the table, or what is wrong with it.

    Attributes:
        row: the row's cells by column; None if the case has no row.
        source: the source that the row names, None where it names none (:func:`is_missing`).
        patient: the patient that the row names, likewise.
        fault: why no row can be matched, "" if nothing is wrong.
    """

    row: Mapping[str, str] | None = None
    source: str | None = None
    patient: str | None = None
    fault: str = ""


class Rows:
    """The rows of a table, found by the file name that they hold.

    Args:
        path: the table.
        columns: the columns to keep; no other is looked at.
        id_column: the column with the case's file name, with or without suffix.
        source_column: the column that names the case's source.
        patient_column: the column that names the case's patient.

    Attributes:
        path: the table.
        frame: the columns, as text.
        unused: number of rows that :meth:`match` gave to no case.

    Raises:
        ValueError: when the table cannot be read or lacks a column.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        id_column: str = "id",
        source_column: str | None = None,
        patient_column: str | None = None,
    ) -> None:
        self.path = path
        frame = read_table(path)
        wanted = list(dict.fromkeys([id_column, *columns, *filter(None, (source_column, patient_column))]))
        unknown = [column for column in wanted if column not in frame.columns]
        if unknown:
            raise ValueError(f"{path}: no column {', '.join(map(repr, unknown))}; the table has {list(frame.columns)}")
        if not wanted[1:]:
            raise ValueError(f"{path}: say which columns are wanted as variables; the table has {list(frame.columns)}")
        self.frame = frame[wanted]
        self._source_column, self._patient_column = source_column, patient_column
        self._rows: dict[str, list[dict[str, str]]] = {}
        for row in self.frame.to_dict("records"):
            self._rows.setdefault(strip_suffix(str(row[id_column]).strip()), []).append(
                {str(key): str(value).strip() for key, value in row.items()}
            )
        self.unused = len(self.frame)

    def match(self, cases: Sequence[tuple[str, str]]) -> list[Match]:
        """The row of each case, given as (folder's name, file's name without suffix).

        A row names the file with or without the folders that lead to it. Where several folders hold a file of this
        name, the source column tells them apart; a row that names another of the folders is not taken. A case without a
        row has an empty match.
        """
        folders = {folder for folder, _ in cases}
        found: list[list[dict[str, str]]] = []
        for folder, name in cases:
            rows = self._rows.get(name) or self._rows.get(name.rsplit("/", 1)[-1]) or []
            of_folder = [row for row in rows if self._cell(row, self._source_column) == folder]
            found.append(of_folder or [row for row in rows if self._cell(row, self._source_column) not in folders])
        uses = Counter(id(row) for rows in found for row in rows)
        self.unused = len(self.frame) - len(uses)
        return [self._match(rows, uses) for rows in found]

    def _match(self, rows: list[dict[str, str]], uses: Mapping[int, int]) -> Match:
        if len(rows) > 1:
            return Match(fault=f"the table has {len(rows)} rows for the case")
        if rows and uses[id(rows[0])] > 1:
            return Match(fault=f"the table has one row for {uses[id(rows[0])]} cases of the same name")
        if not rows:
            return Match()
        source, patient = (self._cell(rows[0], column) for column in (self._source_column, self._patient_column))
        return Match(rows[0], source, patient)

    @staticmethod
    def _cell(row: Mapping[str, str], column: str | None) -> str | None:
        return row[column] if column and not is_missing(row[column]) else None
