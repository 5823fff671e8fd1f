"""Summarising the raw figures, one row for each counterfactual, into the content of ``evaluation.json``.

.. code-block:: text

    {"methods": {name: {"effectiveness": {do: {measured: {"mape", "ci95", "mae", "mae_ci95", "n",
                                                        "drift", "drift_ci95", "drift_mae", "drift_mae_ci95"
                                                        (of the others)}}},
                        "slope":    {do: {"slope", "ci95", "intercept", "n"}},
                        "leakage":  {do: ratio},
                        "locality": {do: {"leakage", "ci95", "outside", "inside", "n", "n_inside"}},
                        "presence": {do: {group: {"mae", …, "seen", "seen_ci95"}}} of what may be zero,
                        "positional": {do: {"leakage", "ci95", "others", "own", "n"}} of regions,
                        "composition": {"1", "10"}, "composition_sampled": {"1", "10"},
                        "reversibility": {do: L1},
                        "place": {do: misplaced share of the growth} of what is never absent,
                        "folding": {do: {"share", "minimum"}} or null without a deformation,
                        "realism": {"fid", "kid", "kid_sd", "n"},
                        "truth": {do: {"psnr", "psnr_near", "ssim", "mae", "dice", "n",
                                       "variables": {measured: {"mape", …}},
                                       "presence": {group: {"psnr", "psnr_ci95", "n"}} of what may be zero}}
                                 or null without a renderer}},
     "identity": the same for x~ = x,
     "judge": {structure: {"dice", "area_mape"}},
     "floor": {measured: {"mape", "ci95", "mae", "mae_ci95", "n", "slope", "slope_ci95"}},
     "floor_drift": {do: {measured: {"drift", "drift_ci95", "drift_mae", "drift_mae_ci95"}}} of the true
                    counterfactuals, or null without a renderer,
     "floor_place": "place" of the true counterfactuals; empty without a renderer,
     "floor_presence": {measured: {"absent" or "present": {"mae", …, "seen", "seen_ci95"}}} of what may be zero,
     "realism_of_real_images": {"fid", "kid", "kid_sd", "n"} or null,
     "data": {…, "figure": "mape", or "mae" where an intervened variable may be zero}}

The figures are defined in :mod:`~segcft_ext.evaluation.effectiveness`, :mod:`~segcft_ext.evaluation.presence`,
:mod:`~segcft_ext.evaluation.locality`, :mod:`~segcft_ext.evaluation.positional`,
:mod:`~segcft_ext.evaluation.place`, :mod:`~segcft_ext.evaluation.axioms`, :mod:`~segcft_ext.evaluation.realism` and
:mod:`~segcft_ext.evaluation.truth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from segcft_ext.evaluation.bootstrap import mean_interval
from segcft_ext.evaluation.effectiveness import drift, error, mean, slope
from segcft_ext.evaluation.judge import floor, summarise_structures
from segcft_ext.evaluation.locality import leakage
from segcft_ext.evaluation.methods import IDENTITY
from segcft_ext.evaluation.positional import positional_leakage
from segcft_ext.evaluation.presence import groups, presence, presence_floor
from segcft_ext.evaluation.realism import realism

__all__ = ["flat_metrics", "summarise"]


def summarise(
    pairs: pd.DataFrame,
    cases: pd.DataFrame,
    structures: Mapping[str, Sequence[tuple[float, float]]],
    features: Mapping[str, tuple[Sequence[str], Tensor]],
    reference: tuple[Sequence[str], Tensor] | None,
    measured: Sequence[str],
    may_be_zero: Sequence[str],
    regions: Mapping[str, tuple[str, str]],
    places: Mapping[str, Mapping[str, float]],
    true_place: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """All figures of an evaluation.

    Args:
        pairs: a row for each method, intervened variable, case and draw.
        cases: a row for each case with the judge's measurements, and one for each method and case with the composition.
        structures: Dice and area error of each structure and case.
        features: cases and features of the "real" test images and of each method's counterfactuals.
        reference: cases and features of real training images.
        measured: names of the measured variables.
        may_be_zero: those with a point mass at zero.
        regions: structure and region of the variables that have one.
        places: misplaced share of the growth by method and intervened variable.
        true_place: that of the true counterfactuals.
        seed: seed of bootstrap and subsets.
    """
    methods = {}
    for name, rows in pairs.groupby("method", sort=False):
        by_do = {str(do): part for do, part in rows.groupby("do", sort=False)}
        own = cases[cases["method"] == name]
        locality = {do: _locality(part, seed) for do, part in by_do.items()}
        methods[str(name)] = {
            "effectiveness": {do: _effectiveness(part, do, measured, seed) for do, part in by_do.items()},
            "slope": {do: _slope(part, do, seed) for do, part in by_do.items()},
            "leakage": {do: figures["leakage"] for do, figures in locality.items()},
            "locality": locality,
            "presence": {do: _presence(part, do, seed) for do, part in by_do.items() if do in may_be_zero},
            "positional": {
                do: _positional(part, do, others, seed)
                for do, part in by_do.items()
                if (others := _other_regions(do, measured, regions))
            },
            "place": dict(places[str(name)]),
            "composition": _composition(own, "composition"),
            "composition_sampled": _composition(own, "composition_sampled"),
            "reversibility": {do: float(_acted(part)["reversibility"].mean()) for do, part in by_do.items()},
            "folding": _each(by_do, "folded", _folding),
            "realism": _realism(features[str(name)], features["real"], seed),
            "truth": _each(by_do, "truth.psnr", lambda part: _truth(part, measured, may_be_zero, seed)),
        }
    real = cases[cases["method"] == "judge"]
    return {
        "methods": {name: figures for name, figures in methods.items() if name != IDENTITY},
        "identity": methods[IDENTITY],
        "judge": summarise_structures(structures),
        "floor": floor(
            _columns(real, "before", measured), _columns(real, "factual", measured), real["id"], measured, seed
        ),
        "floor_drift": _each(
            {str(do): part for do, part in pairs[pairs["method"] == IDENTITY].groupby("do", sort=False)},
            "truth.psnr",
            lambda part: _floor_drift(part, measured, seed),
        ),
        "floor_place": dict(true_place),
        "floor_presence": {
            name: presence_floor(
                real[f"before.{name}"].to_numpy(), real[f"factual.{name}"].to_numpy(), real["id"], seed
            )
            for name in may_be_zero
        },
        "realism_of_real_images": None if reference is None else _realism(reference, features["real"], seed),
    }


def flat_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures under names for a tracker, e.g. ``Seg-CFT/mape/heart_area``; NaN is left out."""
    found: dict[str, float] = {}
    for method, figures in {IDENTITY: evaluation["identity"], **evaluation["methods"]}.items():
        name = method.replace("/", "_")  # a tracker reads a slash as a folder
        for do, cells in figures["effectiveness"].items():
            found |= {f"{name}/{figure}/{do}": cells[do][figure] for figure in ("mape", "mae")}
            found |= {f"{name}/drift/{do}/{j}": cell["drift"] for j, cell in cells.items() if "drift" in cell}
        for do in figures["effectiveness"]:
            found[f"{name}/slope/{do}"] = figures["slope"][do]["slope"]
            found[f"{name}/leakage/{do}"] = figures["leakage"][do]
            found[f"{name}/reversibility/{do}"] = figures["reversibility"][do]
        found |= {f"{name}/place/{do}": share for do, share in figures["place"].items()}
        for do, cell in figures["positional"].items():
            found[f"{name}/positional/{do}"] = cell["leakage"]
        found |= {f"{name}/composition/{count}": value for count, value in figures["composition"].items()}
        found |= {f"{name}/{key}": figures["realism"][key] for key in ("fid", "kid")}
        for do, truth in (figures["truth"] or {}).items():
            found |= {f"{name}/{key}/{do}": truth[key] for key in ("psnr", "ssim")}
    for structure, scores in evaluation["judge"].items():
        found |= {f"judge/{key}/{structure}": value for key, value in scores.items()}
    return {key: value for key, value in found.items() if np.isfinite(value)}


def _realism(judged: tuple[Sequence[str], Tensor], real: tuple[Sequence[str], Tensor], seed: int) -> dict[str, Any]:
    (cases, features), (real_cases, real_features) = judged, real
    return realism(features, cases, real_features, real_cases, seed)


def _columns(rows: pd.DataFrame, figure: str, measured: Sequence[str]) -> np.ndarray:
    return rows[[f"{figure}.{name}" for name in measured]].to_numpy()


def _acted(rows: pd.DataFrame) -> pd.DataFrame:
    """The interventions on one variable that ask for another value than the factual one.

    Where many cases have no plaque, many targets are zero as well. Under such an intervention nothing can drift, and
    reversing it is trivial.
    """
    do = str(rows["do"].iloc[0])
    return rows[rows[f"asked.{do}"] != rows[f"factual.{do}"]]


def _effectiveness(rows: pd.DataFrame, do: str, measured: Sequence[str], seed: int) -> dict[str, Any]:
    cells, acted = {}, _acted(rows)
    for name in measured:
        cells[name] = error(rows[f"measured.{name}"].to_numpy(), rows[f"asked.{name}"].to_numpy(), rows["id"], seed)
        if name != do:
            cells[name] |= _drift(acted, name, "measured", seed)
    return cells


def _floor_drift(rows: pd.DataFrame, measured: Sequence[str], seed: int) -> dict[str, Any]:
    do = str(rows["do"].iloc[0])
    rows = _acted(rows[rows[f"truth.seen.{do}"].notna()])
    return {name: _drift(rows, name, "truth.seen", seed) for name in measured if name != do}


def _drift(rows: pd.DataFrame, name: str, seen: str, seed: int) -> dict[str, Any]:
    after, asked, before, factual = (rows[f"{f}.{name}"].to_numpy() for f in (seen, "asked", "before", "factual"))
    return drift(after - before, asked - factual, factual, rows["id"], seed)


def _slope(rows: pd.DataFrame, do: str, seed: int) -> dict[str, Any]:
    achieved = rows[f"measured.{do}"] - rows[f"before.{do}"]
    wanted = rows[f"asked.{do}"] - rows[f"factual.{do}"]
    return slope(achieved.to_numpy(), wanted.to_numpy(), rows["id"], seed)


def _locality(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    return leakage(rows["outside"].to_numpy(), rows["inside"].to_numpy(), rows["id"], seed)


def _presence(rows: pd.DataFrame, do: str, seed: int) -> dict[str, Any]:
    measured, asked, factual = (rows[f"{figure}.{do}"].to_numpy() for figure in ("measured", "asked", "factual"))
    return presence(measured, asked, factual, rows["id"], seed)


def _other_regions(do: str, measured: Sequence[str], regions: Mapping[str, tuple[str, str]]) -> list[str]:
    return [j for j in measured if do in regions and j in regions and j != do and regions[j][0] == regions[do][0]]


def _positional(rows: pd.DataFrame, do: str, others: Sequence[str], seed: int) -> dict[str, Any]:
    change = {j: (rows[f"measured.{j}"] - rows[f"before.{j}"]).to_numpy() for j in (do, *others)}
    beyond = [change[j] - (rows[f"asked.{j}"] - rows[f"factual.{j}"]).to_numpy() for j in others]
    return positional_leakage(change[do], np.stack(beyond, 1), rows["id"], seed)


def _composition(rows: pd.DataFrame, key: str) -> dict[str, float]:
    columns = [column for column in rows if str(column).startswith(f"{key}.")]
    return {str(column).removeprefix(f"{key}."): float(rows[column].mean()) for column in columns}


def _each(by_do: Mapping[str, pd.DataFrame], column: str, figures: Any) -> dict[str, Any] | None:
    if not any(column in part and part[column].notna().any() for part in by_do.values()):
        return None
    return {do: figures(part) for do, part in by_do.items()}


def _folding(rows: pd.DataFrame) -> dict[str, float]:
    return {"share": float(rows["folded"].mean()), "minimum": float(rows["jacobian_minimum"].min())}


def _truth(rows: pd.DataFrame, measured: Sequence[str], may_be_zero: Sequence[str], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    do = str(rows["do"].iloc[0])
    rows = rows[rows["truth.psnr"].notna() & (rows["truth.changed"] == 1)]
    for figure in ("psnr", "psnr_near", "ssim", "mae", "dice"):
        found |= _true_figure(rows, figure, seed)
    found["n"] = len(rows)
    if do in may_be_zero:
        parts = groups(rows[f"asked.{do}"].to_numpy(), rows[f"factual.{do}"].to_numpy())
        found["presence"] = {
            group: _true_figure(rows[part], "psnr", seed) | {"n": int(part.sum())} for group, part in parts.items()
        }
    found["variables"] = {
        name: error(rows[f"measured.{name}"].to_numpy(), rows[f"true.{name}"].to_numpy(), rows["id"], seed)
        for name in measured
    }
    return found


def _true_figure(rows: pd.DataFrame, figure: str, seed: int) -> dict[str, Any]:
    known = rows[rows[f"truth.{figure}"].notna()]  # a truly absent structure has no Dice
    values = known[f"truth.{figure}"].to_numpy()
    return {figure: mean(values), f"{figure}_ci95": mean_interval(values, known["id"], seed)}
