"""A table of figures with a row for each method, framed by the zero and the floor, its best figures marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from segcft_ext.evaluation.methods import FLOOR, ZERO
from segcft_ext.wording import words

__all__ = ["Cell", "Figures", "Table", "cell", "interventions", "number", "table"]


@dataclass(frozen=True)
class Cell:
    """One figure: its value (NaN where there is none) and, where known, its 95 % interval."""

    value: float
    interval: tuple[float, float] | None = None
    best: bool = False

    def text(self, digits: int) -> str:
        interval = ""
        if math.isfinite(self.value) and self.interval and all(math.isfinite(bound) for bound in self.interval):
            interval = " [" + ", ".join(_decimal(bound, digits) for bound in self.interval) + "]"
        return _decimal(self.value, digits) + interval


@dataclass(frozen=True)
class Table:
    """A table with a row for the identity, each method, and the judge.

    Attributes:
        key: short name, used in files and anchors.
        title: one line.
        note: how to read it: unit, what is good.
        columns: headings.
        rows: name and cells of each row.
        digits: decimals shown.
    """

    key: str
    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    digits: int


def _decimal(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else "–"  # + 0.0: no minus zero


def number(value: float | None) -> float:
    """A figure from JSON, where null stands for NaN."""
    return math.nan if value is None else float(value)


Figures = Mapping[str, Mapping[str, Any]]


def table(
    figures: Figures,
    key: str,
    title: str,
    note: str,
    columns: Mapping[str, Any],
    value: Callable[[Mapping[str, Any], Any], Cell],
    floor: Callable[[Any], Cell] = lambda column: Cell(math.nan),
    loss: Callable[[float], float] = abs,
    digits: int = 1,
) -> Table:
    """Make a table; ``columns`` maps headings to arguments of ``value`` and ``floor``, the lowest ``loss`` is best."""
    rows = [(name, [value(entry, column) for column in columns.values()]) for name, entry in figures.items()]
    rows = _mark_best(rows, loss, digits)
    rows.append((FLOOR, [floor(column) for column in columns.values()]))
    return Table(key, title, note, list(columns), rows, digits)


def _mark_best(
    rows: list[tuple[str, list[Cell]]], loss: Callable[[float], float], digits: int
) -> list[tuple[str, list[Cell]]]:
    """Mark the best method of each column (not the zero): ties are all marked, but not if all methods tie.

    Ties are values that are equal as shown.
    """
    for column in range(len(rows[0][1])):
        losses = {
            name: loss(round(cells[column].value, digits))
            for name, cells in rows
            if name != ZERO and math.isfinite(cells[column].value)
        }
        if len(set(losses.values())) < 2:
            continue
        for name, row in rows:
            if losses.get(name) == min(losses.values()):
                row[column] = replace(row[column], best=True)
    return rows


def cell(entry: Mapping[str, Any], figure: str, interval: str = "ci95") -> Cell:
    """The cell of a figure from JSON, with the interval of this name if there is one."""
    bounds = entry.get(interval)
    return Cell(number(entry.get(figure)), (number(bounds[0]), number(bounds[1])) if bounds else None)


def interventions(figures: Figures) -> dict[str, str]:
    """The intervened variables by the heading ``do(…)`` of their columns."""
    return {f"do({words(do)})": do for do in figures[ZERO]["effectiveness"]}
