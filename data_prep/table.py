"""The optional table of further variables (sex, age, …), one row for each case.

Only the columns that are asked for are looked at: a column of a hospital's table may well hold a name or a date of
birth. Cells are kept as text until a case needs them, so that a cell that makes no sense rejects one case, not the run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from data_prep.cases import Rejected
from data_prep.rows import Rows, is_missing

__all__ = ["Table", "infer_kind"]

MAX_CATEGORIES = 10
"""A text column with more values than this is no categorical variable; it is a name, a date or a remark."""

_WORDS = ("none", "null")
"""Words for a missing value that may also be meant as a category, as in none, mild, severe."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class Table(Rows):
    """Rows of a table by case, and the definitions of the variables that are taken from it.

    Args:
        path: any table that :func:`data_prep.rows.read_table` reads.
        variables: names of the columns wanted; or a mapping from name to ``"continuous"`` or to the list of its
            categories. With names only, the kind is inferred (:func:`infer_kind`).
        units: unit of each continuous variable.
        missing: for each variable the value, or values, that mean "missing". Empty cells are missing in any case; NA,
            NaN, none and null are, too, unless they are listed among the variable's categories.
        id_column: the column with the case's file name, with or without suffix.
        source_column: the column that names the case's source.
        patient_column: the column that names the case's patient.

    Attributes:
        definitions: the variables as they stand in a datalist's header.
        notes: a sentence for each variable whose inferred categories leave out the words none or null.

    Raises:
        ValueError: when the table cannot be read, lacks a column, or a kind cannot be inferred.
    """

    def __init__(
        self,
        path: Path,
        variables: Sequence[str] | Mapping[str, str | Sequence[Any]] = (),
        units: Mapping[str, str] | None = None,
        missing: Mapping[str, Any] | None = None,
        id_column: str = "id",
        source_column: str | None = None,
        patient_column: str | None = None,
    ) -> None:
        units, missing = dict(units or {}), dict(missing or {})
        kinds = variables if isinstance(variables, Mapping) else dict.fromkeys(variables)
        for option, given in (("units", units), ("missing", missing)):
            if set(given) - set(variables):
                raise ValueError(
                    f"{option}: {sorted(set(given) - set(variables))} are not among the variables asked for"
                )
        known = {n: _definition(n, kind, units.get(n, "")) for n, kind in kinds.items() if kind is not None}
        super().__init__(path, list(variables), id_column, source_column, patient_column)
        self._missing = {
            name: {_plain(value) for value in (given if isinstance(given, (list, tuple)) else [given])}
            for name, given in missing.items()
        }
        self.definitions: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._listed = {name: {*map(_plain, kind)} for name, kind in kinds.items() if isinstance(kind, (list, tuple))}
        for name in kinds:
            self.definitions.append(known.get(name) or self._infer(name, units.get(name, "")))

    def values(self, row: Mapping[str, str] | None) -> dict[str, float | int | None]:
        """The variables of one row; all missing without a row.

        Raises:
            Rejected: when a cell is not a number where one is due, or not one of the categories.
        """
        values: dict[str, float | int | None] = {}
        for definition in self.definitions:
            name = definition["name"]
            cell = row[name] if row is not None else ""
            if self._is_missing(name, cell):
                values[name] = None
            elif definition["kind"] == "continuous":
                number = _number(cell)
                if number is None:
                    raise Rejected("bad_value", f"{name} is not a number")
                values[name] = number
            else:
                codes = {_plain(category): index for index, category in enumerate(definition["categories"])}
                if _plain(cell) not in codes:
                    raise Rejected("bad_value", f"{name} is none of {definition['categories']}")
                values[name] = codes[_plain(cell)]
        return values

    def _is_missing(self, name: str, cell: str) -> bool:
        plain = _plain(cell)
        return plain in self._missing.get(name, ()) or (is_missing(cell) and plain not in self._listed.get(name, ()))

    def _infer(self, name: str, unit: str) -> dict[str, Any]:
        column = [cell for cell in map(str.strip, self.frame[name]) if not self._is_missing(name, cell)]
        kind = infer_kind(column, f"{self.path}: column {name!r}")
        if kind != "continuous":
            self._note_words(name, kind)
        return _definition(name, kind, unit)

    def _note_words(self, name: str, categories: Sequence[str]) -> None:
        cells = [cell for cell in map(str.strip, self.frame[name]) if cell.lower() in _WORDS]
        if cells:
            listed = json.dumps({name: [cells[0], *categories]}, ensure_ascii=False)
            text = f"{name}: {len(cells)} cells with {cells[0]!r} are missing values"
            self.notes.append(f"{text}; if that is a category, list them: --variables '{listed}'")


def infer_kind(cells: Sequence[str], where: str) -> str | list[str]:
    """``"continuous"`` for numbers, else the sorted categories; 0 and 1 alone are two categories.

    Raises:
        ValueError: when there is nothing to infer from, only one category, too many, or a number with a decimal comma.
    """
    if comma := next((cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell)), None):
        raise ValueError(f"{where}: found {comma!r}, expected numbers with a decimal point, or listed categories")
    numbers = [_number(cell) for cell in cells]
    if numbers and None not in numbers and set(numbers) != {0.0, 1.0}:
        return "continuous"
    categories = sorted({_plain(cell) for cell in cells})
    if not 2 <= len(categories) <= MAX_CATEGORIES:
        others = numbers.count(None)
        mixed = f" ({others} of {len(cells)} are no numbers)" if 0 < others < len(cells) else ""
        raise ValueError(
            f"{where}: {len(categories)} different values{mixed}, so its kind cannot be inferred; "
            f'give it, e.g. {{"name": "continuous"}} or {{"name": ["A", "B"]}}'
        )
    return categories


def _definition(name: str, kind: str | Sequence[Any], unit: str) -> dict[str, Any]:
    if kind == "continuous":
        return {"name": name, "kind": "continuous", "unit": unit}
    if not isinstance(kind, (list, tuple)) or len(kind) < 2:
        raise ValueError(f'variables: {name!r} is {kind!r}, expected "continuous" or a list of two or more categories')
    categories = [_plain(category) for category in kind]
    if len(set(categories)) != len(categories):
        raise ValueError(f"variables: {name!r} has a category twice in {categories}")
    return {"name": name, "kind": "binary" if len(kind) == 2 else "categorical", "unit": "", "categories": categories}


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None  # to Python, 1_0 is 10


def _plain(value: Any) -> str:
    """A value as text; numbers in one spelling, so that 0, "0" and "0.0" are the same."""
    text = str(value).strip()
    return text if _number(text) is None else f"{Decimal(text).normalize() + 0:f}"
