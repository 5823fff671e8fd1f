"""How names, units and quantities are written in figures, tables and reports."""

from __future__ import annotations

import math

__all__ = ["quantity", "words", "written_unit"]

WRITTEN = {"percent": "%", "mm2": "mm²", "mm3": "mm³"}


def words(name: str) -> str:
    """The name of a variable or structure: ``left_lung_area`` becomes ``left lung area``."""
    return name.replace("_", " ")


def written_unit(unit: str) -> str:
    """A unit of the datalist: ``mm2`` becomes ``mm²``, and ``percent`` ``%``."""
    return WRITTEN.get(unit, unit)


def quantity(value: float, unit: str) -> str:
    """A number with three significant digits and its unit, if it has one; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.3g} {written_unit(unit)}".rstrip()
