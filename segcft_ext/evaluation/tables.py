"""The tables of an evaluation, made from the content of ``evaluation.json``.

Every table has the identity (doing nothing: the zero) as its first row and the judge on real images (the floor: no
method can be shown to be better) as its last; the best method of each column is marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from segcft_ext.evaluation.methods import IDENTITY

__all__ = ["FLOOR", "ZERO", "Cell", "Table", "evaluation_tables", "label", "number", "summary_line"]

ZERO = f"{IDENTITY} (the zero)"
FLOOR = "judge on real images (the floor)"


@dataclass(frozen=True)
class Cell:
    """One figure: its value (NaN where there is none) and, where known, its 95 % interval."""

    value: float
    interval: tuple[float, float] | None = None
    best: bool = False

    def text(self, digits: int) -> str:
        interval = ""
        if self.interval and all(math.isfinite(bound) for bound in self.interval):
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


def label(name: str) -> str:
    """A variable's name for people: ``left_lung_area`` -> ``left lung area``."""
    return name.replace("_", " ")


def number(value: float | None) -> float:
    """A figure from JSON, where null stands for NaN."""
    return math.nan if value is None else float(value)


def summary_line(evaluation: Mapping[str, Any]) -> str:
    """One sentence: how many cases and interventions, and who judged."""
    data = evaluation["data"]
    return (
        f"{data['cases']} test cases, {data['interventions_per_case']} interventions on each of "
        f"{', '.join(map(label, data['interventions']))} per case, the same for all methods (seed {data['seed']}), "
        f"judged by an independent segmentor ({data['judge']['definition']['architecture']})."
    )


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """All tables for which the evaluation has figures."""
    figures = {ZERO: evaluation["identity"], **evaluation["methods"]}
    tables = [
        *_effectiveness(evaluation, figures),
        *_locality(evaluation, figures),
        _axioms(figures),
        _realism(evaluation, figures),
    ]
    if any(entry["truth"] for entry in figures.values()):
        tables += _truth(evaluation, figures)
    return tables


Figures = Mapping[str, Mapping[str, Any]]


def _table(
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
    """One table; ``columns`` maps headings to what ``value`` and ``floor`` take, the lowest ``loss`` is the best."""
    rows = [(name, [value(entry, column) for column in columns.values()]) for name, entry in figures.items()]
    rows = _mark_best(rows, loss, digits)
    rows.append((FLOOR, [floor(column) for column in columns.values()]))
    return Table(key, title, note, list(columns), rows, digits)


def _mark_best(
    rows: list[tuple[str, list[Cell]]], loss: Callable[[float], float], digits: int
) -> list[tuple[str, list[Cell]]]:
    """Mark the best method of each column (not the zero): all that look equal, but none where all methods do."""
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


def _cell(entry: Mapping[str, Any], figure: str, interval: str = "ci95") -> Cell:
    bounds = entry.get(interval)
    return Cell(number(entry.get(figure)), (number(bounds[0]), number(bounds[1])) if bounds else None)


def _do(name: str) -> str:
    return f"do({label(name)})"


def _dos(figures: Figures) -> dict[str, str]:
    return {_do(do): do for do in figures[ZERO]["effectiveness"]}


def _effectiveness(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    floor, units, dos = evaluation["floor"], evaluation["data"]["units"], _dos(figures)
    pairs = {f"{heading}: {label(j)}": (do, j) for heading, do in dos.items() for j in floor}
    return [
        _table(
            figures,
            "effectiveness",
            "Effectiveness: error of the intervened variable",
            "Mean absolute error of the judge's measurement against the value asked for, in % of that value, with "
            "95 % intervals over cases. Lower is better; the floor is the judge's own error.",
            dos,
            lambda entry, do: _cell(entry["effectiveness"][do][do], "mape"),
            lambda do: _cell(floor[do], "mape"),
        ),
        _table(
            figures,
            "effectiveness_unit",
            "Effectiveness in the variables' units",
            "The same error in the unit of the variable. Lower is better.",
            {f"{heading} [{units[do] or '1'}]": do for heading, do in dos.items()},
            lambda entry, do: _cell(entry["effectiveness"][do][do], "mae", "mae_ci95"),
            lambda do: _cell(floor[do], "mae", "mae_ci95"),
            digits=2,
        ),
        _table(
            figures,
            "slope",
            "Slope of achieved over wanted change",
            "Least squares over cases and interventions; 1 is what was asked for, 0 is no effect. A constant bias of "
            "the judge does not enter.",
            dos,
            lambda entry, do: _cell(entry["slope"][do], "slope"),
            loss=lambda value: abs(value - 1),
            digits=2,
        ),
        _table(
            figures,
            "drift",
            "Drift: change of the variables that nobody touched",
            "Mean absolute change between the judge's measurements before and after, in % of the factual value. Lower "
            "is better, if the intervened variable was reached: who does nothing moves nothing.",
            {heading: pair for heading, pair in pairs.items() if pair[0] != pair[1]},
            lambda entry, pair: _cell(entry["effectiveness"][pair[0]][pair[1]], "drift", "drift_ci95"),
            digits=2,
        ),
        _table(
            figures,
            "all_effectiveness",
            "Error of every variable under every intervention",
            "Mean absolute error of the judge's measurement against the value that the model predicts, in %. Lower is "
            "better.",
            pairs,
            lambda entry, pair: _cell(entry["effectiveness"][pair[0]][pair[1]], "mape", ""),
            lambda pair: _cell(floor[pair[1]], "mape", ""),
        ),
    ]


def _locality(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    dos = _dos(figures)
    tables = [
        _table(
            figures,
            "leakage",
            "Leakage: change outside over change inside",
            "Mean absolute intensity change outside of the union of the structure's masks before and after (5 pixels "
            "at 256 wider), over the mean inside. Lower is better, if the intervened variable was reached.",
            dos,
            lambda entry, do: _cell(entry["locality"][do], "leakage"),
            digits=3,
        )
    ]
    if any(entry["folding"] for entry in figures.values()):
        tables.append(
            _table(
                figures,
                "folding",
                "Folding of the deformation",
                "Share of pixels where the deformation folds (Jacobian determinant at or below zero), in %, and the "
                "smallest determinant of all. Nothing may fold; – is a method without a deformation.",
                {f"{heading}: folded, %": (do, "share", 100) for heading, do in dos.items()}
                | {f"{heading}: smallest determinant": (do, "minimum", 1) for heading, do in dos.items()},
                lambda entry, c: Cell(c[2] * number(entry["folding"][c[0]][c[1]]) if entry["folding"] else math.nan),
                loss=lambda value: 0.0,
                digits=3,
            )
        )
    return tables


def _axioms(figures: Figures) -> Table:
    composition = {"composition": "composition", "composition, sampled latents": "composition_sampled"}
    return _table(
        figures,
        "axioms",
        "Axioms: composition and reversibility",
        "Mean absolute intensity difference (images in [-1, 1]) to the factual image after 1 and 10 null "
        "interventions, with the latents' mean and with sampled latents, and after an intervention is taken back. "
        "Lower is better.",
        {f"{name}, × {count}": (key, count) for name, key in composition.items() for count in figures[ZERO][key]}
        | {f"reversibility, {heading}": ("reversibility", do) for heading, do in _dos(figures).items()},
        lambda entry, column: Cell(number(entry[column[0]][column[1]])),
        digits=5,
    )


def _realism(evaluation: Mapping[str, Any], figures: Figures) -> Table:
    real = evaluation["realism_of_real_images"] or {}
    return _table(
        figures,
        "realism",
        "Realism: distance of the counterfactuals from real test images",
        f"Between features, standardised, of: {evaluation['data']['realism_features']}. Lower is better. "
        "Counterfactuals are compared with the real images of other test cases, so the identity is the distance "
        "between two sets of real test images, and the floor that between real training and test images.",
        {"FID": "fid", "KID": "kid"},
        lambda entry, key: _cell(entry["realism"], key),
        lambda key: _cell(real, key),
        digits=3,
    )


def _truth(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    dos, floor = _dos(figures), evaluation["floor"]

    def true(entry: Mapping[str, Any], do: str) -> Mapping[str, Any]:
        return entry["truth"][do] if entry["truth"] else {}

    def quality(key: str, title: str, digits: int) -> Table:
        return _table(
            figures,
            f"truth_{key}",
            title,
            "Against the true counterfactual, rendered again with the same noise (phantoms only). Higher is better.",
            dos,
            lambda entry, do: _cell(true(entry, do), key, f"{key}_ci95"),
            loss=lambda value: -value,
            digits=digits,
        )

    return [
        quality("psnr", "Truth: PSNR in dB", 1),
        quality("ssim", "Truth: structural similarity (SSIM)", 3),
        quality("dice", "Truth: Dice of the intervened structure", 3),
        _table(
            figures,
            "truth_variables",
            "Truth: error of the intervened variable",
            "Mean absolute error of the judge's measurement against that on the true counterfactual's label map, in %. "
            "Lower is better.",
            dos,
            lambda entry, do: _cell(true(entry, do).get("variables", {}).get(do, {}), "mape"),
            lambda do: _cell(floor[do], "mape"),
        ),
    ]
