"""The tables of an evaluation, made from the content of ``evaluation.json``.

Every table of methods has the identity (doing nothing: the zero) as its first row and the judge on real images (the
floor: errors near it are indistinguishable) as its last; the best method of each column is marked. A matrix shows one
method; the zero has its own matrix of errors, and a row below each matrix of drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from segcft_ext.evaluation.methods import FLOOR, ZERO
from segcft_ext.evaluation.presence import GROUPS
from segcft_ext.evaluation.table import Cell, Figures, Table, cell, interventions, number, table
from segcft_ext.wording import words, written_unit

__all__ = ["evaluation_tables", "judge_rows", "summary_line"]

# More pairs of an intervened and a measured variable than this become a matrix for each method.
MAX_PAIRS = 12


def summary_line(evaluation: Mapping[str, Any]) -> str:
    """One sentence: how many cases and interventions, and who judged."""
    data = evaluation["data"]
    cases, draws = data["cases"], data["interventions_per_case"]
    return (
        f"{cases} test case{'' if cases == 1 else 's'}, {draws} intervention{'' if draws == 1 else 's'} on each of "
        f"{', '.join(map(words, data['interventions']))} per case, the same for all methods (seed {data['seed']}), "
        f"judged by an independent segmentor ({data['judge']['definition']['architecture']})."
    )


def judge_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each structure with the judge's Dice and error of the area in %, on real test images, as text."""
    return [
        (words(name), Cell(number(scores["dice"])).text(3), Cell(number(scores["area_mape"])).text(1))
        for name, scores in evaluation["judge"].items()
    ]


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


def _effectiveness(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    floor, headings = evaluation["floor"], interventions(figures)
    percent = table(
        figures,
        "effectiveness",
        "Effectiveness: error of the intervened variable",
        "Mean absolute error of the judge's measurement against the value asked for, in % of that value, with "
        "95 % intervals over cases. Lower is better; the floor is the judge's own error.",
        headings,
        lambda entry, do: cell(entry["effectiveness"][do][do], "mape"),
        lambda do: cell(floor[do], "mape"),
    )
    unit = table(
        figures,
        "effectiveness_unit",
        "Effectiveness in the variables' units",
        "The same error in the unit of the variable. Lower is better.",
        _with_units(evaluation, headings),
        lambda entry, do: cell(entry["effectiveness"][do][do], "mae", "mae_ci95"),
        lambda do: cell(floor[do], "mae", "mae_ci95"),
        digits=2,
    )
    if _figure(evaluation) == "mae":
        unit = replace(
            unit,
            key="effectiveness",
            title=percent.title,
            note="Mean absolute error of the judge's measurement against the value asked for, in the variable's unit, "
            "with 95 % intervals over cases. Lower is better; the floor is the judge's own error.",
        )
        percent = replace(
            percent,
            key="effectiveness_percent",
            title="Effectiveness in %, of positive targets only",
            note="The same error in % of the value asked for, without the interventions that ask for zero; a small "
            "target makes a large percentage.",
        )
        first, second = unit, percent
    else:
        first, second = percent, unit
    slope = table(
        figures,
        "slope",
        "Slope of achieved over wanted change",
        "Least squares over cases and interventions; 1 is what was asked for, 0 is no effect. A constant bias of "
        "the judge does not enter; its slope on real images, of the measured on the true values of the cases, does.",
        headings,
        lambda entry, do: cell(entry["slope"][do], "slope"),
        lambda do: cell(floor[do], "slope", "slope_ci95"),
        loss=lambda value: abs(value - 1),
        digits=2,
    )
    return [first, second, slope, *_presence(evaluation, figures), *_pairs(evaluation, figures)]


def _figure(evaluation: Mapping[str, Any]) -> str:
    """ "mape", or "mae" where a variable may be zero."""
    return evaluation["data"]["figure"]


def _unit(evaluation: Mapping[str, Any], variable: str) -> str:
    return written_unit(evaluation["data"]["units"][variable])


def _with_units(evaluation: Mapping[str, Any], headings: Mapping[str, str]) -> dict[str, str]:
    return {f"{heading} [{_unit(evaluation, do) or '1'}]": do for heading, do in headings.items()}


def _pairs(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    """Drift and error of every variable under every intervention: side by side, or as matrices where there are many."""
    floor, headings, figure = evaluation["floor"], interventions(figures), _figure(evaluation)
    pairs = {f"{heading}: {words(j)}": (do, j) for heading, do in headings.items() for j in floor}
    drift, unit = (
        ("drift", "in % of the factual value") if figure == "mape" else ("drift_mae", "in the variable's unit")
    )
    drift_note = (
        "Mean absolute change between the judge's measurements before and after, beyond what the model predicts (for "
        f"the zero, the first method's model), {unit}. Lower is better, if the intervened variable was reached: who "
        "does nothing moves nothing."
    )
    error_note = (
        "Mean absolute error of the judge's measurement against the value that the model predicts, "
        f"{'in %' if figure == 'mape' else unit}. Lower is better."
    )
    drift_title = "Drift: change of the variables that nobody touched"
    error_title = "Error of every variable under every intervention"
    truth = evaluation["floor_drift"]
    if truth:
        drift_note += " The floor is what the judge sees of the true counterfactuals."
    if len(pairs) > MAX_PAIRS:
        drift_note += f" The zero{' and the floor' if truth else ''}: mean over the interventions on other variables."
        known = {ZERO: figures[ZERO]["effectiveness"], FLOOR: truth or {}}
        drift_frame = [(name, [_mean_drift(cells, j, drift) for j in floor]) for name, cells in known.items()]
        error_frame = [(FLOOR, [cell(floor[j], figure, "") for j in floor])]
        parts = (
            ("error", error_title, error_note, figure, error_frame),
            ("drift", drift_title, drift_note, drift, drift_frame),
        )
        return [
            _matrix(f"{key}_{place}", f"{title}: {name}", note, entry, list(floor), headings, shown, frame)
            for key, title, note, shown, frame in parts
            for place, (name, entry) in enumerate(figures.items())
            if (key, name) != ("drift", ZERO)
        ]
    others = {heading: pair for heading, pair in pairs.items() if pair[0] != pair[1]}
    drifts = table(
        figures,
        "drift",
        drift_title,
        drift_note,
        others,
        lambda entry, pair: cell(entry["effectiveness"][pair[0]][pair[1]], drift, f"{drift}_ci95"),
        lambda pair: cell(truth[pair[0]][pair[1]] if truth else {}, drift, f"{drift}_ci95"),
        digits=2,
    )
    errors = table(
        figures,
        "all_effectiveness",
        error_title,
        error_note,
        pairs,
        lambda entry, pair: cell(entry["effectiveness"][pair[0]][pair[1]], figure, ""),
        lambda pair: cell(floor[pair[1]], figure, ""),
        digits=1 if figure == "mape" else 2,
    )
    return [drifts, errors] if others else [errors]


def _matrix(
    key: str,
    title: str,
    note: str,
    entry: Mapping[str, Any],
    measured: Sequence[str],
    headings: Mapping[str, str],
    figure: str,
    frame: Sequence[tuple[str, list[Cell]]],
) -> Table:
    """do(row) x measured column of one method, with the rows of the frame below."""
    rows = [
        (heading, [cell(entry["effectiveness"][do][j], figure, "") for j in measured])
        for heading, do in headings.items()
    ]
    digits = 1 if figure == "mape" else 2
    return Table(key, title, note, [words(j) for j in measured], [*rows, *frame], digits)


def _mean_drift(cells: Mapping[str, Mapping[str, Any]], measured: str, figure: str) -> Cell:
    """The mean drift of a variable over the interventions on others."""
    values = [number(by_measured[measured][figure]) for do, by_measured in cells.items() if do != measured]
    return Cell(fmean(values) if values else math.nan)


def _presence(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    titles = {
        "absent_absent": "Absent, and to stay so",
        "absent_present": "Absent, and to appear",
        "present_absent": "Present, and to vanish",
        "present_present": "Present, and to change",
    }
    headings = {h: do for h, do in interventions(figures).items() if do in evaluation["floor_presence"]}

    def one(group: str, present: bool) -> Table:
        floor, wrong = ("present", "missed") if present else ("absent", "seen")

        def value(entry: Mapping[str, Any], figure: str) -> Cell:
            if figure == "mae":
                return cell(entry, "mae", "mae_ci95")
            seen = cell(entry, "seen", "seen_ci95")
            if not present or seen.interval is None:
                return seen
            return Cell(1 - seen.value, (1 - seen.interval[1], 1 - seen.interval[0]))

        return table(
            figures,
            f"presence_{group}",
            titles[group],
            "Interventions on a structure by its presence before and after: mean absolute error in the variable's "
            f"unit, and the share of counterfactuals in which the judge has {wrong} it. Lower is better. The floor is "
            f"the judge on real images in which it is {floor}.",
            {
                f"{heading}: {name}": (do, figure)
                for heading, do in headings.items()
                for figure, name in (("mae", f"error, {_unit(evaluation, do)}"), ("seen", f"{wrong}, share"))
            },
            lambda entry, column: value(entry["presence"][column[0]][group], column[1]),
            lambda column: value(evaluation["floor_presence"][column[0]][floor], column[1]),
            digits=2,
        )

    return [one(group, after) for group, (_, after) in GROUPS.items()] if headings else []


def _locality(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    headings = interventions(figures)
    tables = [
        table(
            figures,
            "leakage",
            "Leakage: change outside over change inside",
            "Mean absolute intensity change outside of the union of the structure's masks before and after (5 pixels "
            "at 256 wider), over the mean inside. Lower is better, if the intervened variable was reached."
            + _without_region(figures),
            headings,
            lambda entry, do: cell(entry["locality"][do], "leakage"),
            digits=3,
        )
    ]
    placed = {heading: do for heading, do in headings.items() if do in figures[ZERO]["place"]}
    if placed:
        tables.append(
            table(
                figures,
                "place",
                "Place: growth elsewhere than in the population",
                "Where the structure's mask gains or loses for one unit of its variable, against where the masks of "
                "real cases do that differ in that variable only: half the sum of the absolute difference of the two "
                "maps, blurred, over that of the population's. 0: at the same place, 1: elsewhere only; a half: "
                "nowhere. Lower is better. The floor is that of the true counterfactuals, where they are known.",
                placed,
                lambda entry, do: Cell(number(entry["place"][do])),
                lambda do: Cell(number(evaluation["floor_place"].get(do))),
                digits=2,
            )
        )
    if any(entry["folding"] for entry in figures.values()):
        tables.append(
            table(
                figures,
                "folding",
                "Folding of the deformation",
                "Share of cells between pixels in which the deformation folds (Jacobian determinant at or below "
                "zero), in %, and the smallest determinant of all. Nothing may fold; – is a method without a "
                "deformation.",
                {f"{heading}: folded, %": (do, "share", 100) for heading, do in headings.items()}
                | {f"{heading}: smallest determinant": (do, "minimum", 1) for heading, do in headings.items()},
                lambda entry, c: Cell(c[2] * number(entry["folding"][c[0]][c[1]]) if entry["folding"] else math.nan),
                loss=lambda value: 0.0,
                digits=3,
            )
        )
    regional = {heading: do for heading, do in headings.items() if do in figures[ZERO]["positional"]}
    if regional:
        tables.append(
            table(
                figures,
                "positional_leakage",
                "Positional leakage: change in the other regions over change in the one intervened on",
                "Mean absolute change of the judge's measurement in each other region of the structure, beyond what "
                "the model predicts, over that in the region intervened on. Lower is better, if that was reached.",
                regional,
                lambda entry, do: cell(entry["positional"][do], "leakage"),
                digits=3,
            )
        )
    return tables


def _without_region(figures: Figures) -> str:
    """A sentence on how many counterfactuals of each method have no region of change; "" if none."""
    without = {
        name: sum(cell["n"] - cell["n_inside"] for cell in entry["locality"].values())
        for name, entry in figures.items()
    }
    if not any(without.values()):
        return ""
    found = ", ".join(f"{name} {count}" for name, count in without.items())
    return (
        " A structure that was asked to appear, and that the judge does not see, has no inside; its whole image counts "
        f"as outside. Such counterfactuals: {found}."
    )


def _axioms(figures: Figures) -> Table:
    composition = {"composition": "composition", "composition, sampled latents": "composition_sampled"}
    return table(
        figures,
        "axioms",
        "Axioms: composition and reversibility",
        "Mean absolute intensity difference (images in [-1, 1]) to the factual image after 1 and 10 null "
        "interventions, with the latents' mean and with sampled latents, and after an intervention is taken back. "
        "Lower is better.",
        {f"{name}, × {count}": (key, count) for name, key in composition.items() for count in figures[ZERO][key]}
        | {f"reversibility, {heading}": ("reversibility", do) for heading, do in interventions(figures).items()},
        lambda entry, column: Cell(number(entry[column[0]][column[1]])),
        digits=5,
    )


def _realism(evaluation: Mapping[str, Any], figures: Figures) -> Table:
    real = evaluation["realism_of_real_images"] or {}
    return table(
        figures,
        "realism",
        "Realism: distance of the counterfactuals from real test images",
        f"Between features, standardised, of: {evaluation['data']['realism_features']}. Lower is better. "
        "Counterfactuals are compared with the real images of other test cases, so the identity is the distance "
        "between two sets of real test images, and the floor that between real images of the guide's training cases "
        "and of test cases: the judge was trained on neither.",
        {"FID": "fid", "KID": "kid"},
        lambda entry, key: cell(entry["realism"], key),
        lambda key: cell(real, key),
        loss=lambda value: value,  # KID is unbiased and may be negative
        digits=3,
    )


def _truth(evaluation: Mapping[str, Any], figures: Figures) -> list[Table]:
    headings, floor, figure = interventions(figures), evaluation["floor"], _figure(evaluation)
    interval = "ci95" if figure == "mape" else "mae_ci95"
    wanted = {"absent_present": "appears", "present_absent": "vanishes", "present_present": "changes"}
    # None without a variable that may be zero.
    parted = {h: do for h, do in headings.items() if "presence" in (figures[ZERO]["truth"] or {}).get(do, {})}

    def true(entry: Mapping[str, Any], do: str) -> Mapping[str, Any]:
        return entry["truth"][do] if entry["truth"] else {}

    def quality(key: str, title: str, digits: int) -> Table:
        return table(
            figures,
            f"truth_{key}",
            title,
            "Against the true counterfactual, rendered again with the same noise (phantoms only). Higher is better.",
            headings,
            lambda entry, do: cell(true(entry, do), key, f"{key}_ci95"),
            loss=lambda value: -value,
            digits=digits,
        )

    by_presence = table(
        figures,
        "truth_presence",
        "Truth: PSNR in dB by presence",
        "The same for structures that may be absent. Nothing in the image tells where one that appears would be: at "
        "another place it is farther from the truth than none. Where one vanishes or changes, the image does tell.",
        {f"{h}: {name}": (do, group) for h, do in parted.items() for group, name in wanted.items()},
        lambda entry, column: cell(true(entry, column[0]).get("presence", {}).get(column[1], {}), "psnr", "psnr_ci95"),
        loss=lambda value: -value,
    )
    return [
        quality("psnr", "Truth: PSNR in dB", 1),
        *([by_presence] if parted else []),
        quality("psnr_near", "Truth: PSNR in dB near the structures", 1),
        quality("ssim", "Truth: structural similarity (SSIM)", 3),
        quality("dice", "Truth: Dice of the intervened structure", 3),
        table(
            figures,
            "truth_variables",
            "Truth: error of the intervened variable",
            "Mean absolute error of the judge's measurement against that on the true counterfactual's label map, "
            f"{'in %' if figure == 'mape' else 'in the unit of the variable'}. Lower is better.",
            headings,
            lambda entry, do: cell(true(entry, do).get("variables", {}).get(do, {}), figure, interval),
            lambda do: cell(floor[do], figure, interval),
            digits=1 if figure == "mape" else 2,
        ),
    ]
