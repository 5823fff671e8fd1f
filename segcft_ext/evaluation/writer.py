"""Writing the results of an evaluation to a folder: tables, raw figures and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from tqdm import tqdm

from segcft_ext.command_line import read_whole
from segcft_ext.evaluation.evaluator import JudgeEvaluator
from segcft_ext.evaluation.files import write_evaluation
from segcft_ext.evaluation.methods import IDENTITY
from segcft_ext.evaluation.sweeps import factual_panel, panels, sweep
from segcft_ext.figures import (
    Panel,
    change_maps,
    counterfactual_grid,
    effectiveness_heatmap,
    effectiveness_scatter,
    save_figure,
)
from segcft_ext.folders import writable_folder, write_json_atomically, write_text_atomically
from segcft_ext.wording import quantity, words, written_unit

__all__ = ["EvaluationWriter"]

SWEEP_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COMPARED_QUANTILES = (0.1, 0.9)
PICTURES = ("comparison", "sweep", "maps")  # the kinds of figures that show images


class EvaluationWriter:
    """Writes the results of a :class:`~segcft_ext.evaluation.evaluator.JudgeEvaluator` when it is done.

    It writes ``evaluation.json``, ``evaluation.csv`` and ``evaluation.md``; ``pairs.csv`` with a row for each
    counterfactual; ``figures/*.png`` and ``figures/figures.json``, which says what each figure shows. The cases shown
    are spread evenly over the test split, not selected. Figures of an earlier evaluation in the folder are removed.

    Args:
        output_dir: the folder.
        figure_cases: number of test cases that are shown.
    """

    def __init__(self, output_dir: str | os.PathLike[str], figure_cases: int = 2) -> None:
        self.output_dir = Path(output_dir)
        self.figure_cases = read_whole("figure_cases", figure_cases, 0)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda: writable_folder(self.output_dir))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: JudgeEvaluator) -> None:
        write_evaluation(engine.evaluation, self.output_dir)
        pairs = engine.pairs.to_csv(index=False, float_format="%.6g")
        write_text_atomically(self.output_dir / "pairs.csv", pairs)
        self._shown: list[dict[str, str]] = []
        self._sliced = " Of each volume the middle slice." if engine.datalist.spatial_dims == 3 else ""
        self._errors(engine)
        self._maps(engine)
        dataset: Any = engine.loader.dataset if len(engine.methods) > 1 else []
        positions = np.unique(
            np.linspace(0, len(dataset) - 1, min(self.figure_cases, len(dataset))).round().astype(int)
        )
        for number, position in enumerate(positions.tolist()):
            self._counterfactuals(engine, dataset[position], number)
        index = self.output_dir / "figures" / "figures.json"
        earlier = _listed(index)
        write_json_atomically(index, self._shown)
        for name in earlier - _listed(index):
            (index.parent / name).unlink(missing_ok=True)

    def _save(self, figure: Figure, name: str, kind: str, caption: str) -> None:
        path = save_figure(figure, self.output_dir / "figures" / f"{name.replace('/', '_')}.png")
        caption += self._sliced if kind in PICTURES else ""
        self._shown.append({"file": path.name, "kind": kind, "caption": caption})

    def _errors(self, engine: JudgeEvaluator) -> None:
        evaluation, pairs = engine.evaluation, engine.pairs
        methods = {IDENTITY: evaluation["identity"], **evaluation["methods"]}
        units = evaluation["data"]["units"]
        changes = {name: _changes(pairs[pairs["method"] == name], engine.interventions) for name in methods}
        lines = {
            name: {do: (line["slope"], line["intercept"]) for do, line in figures["slope"].items()}
            for name, figures in methods.items()
        }
        self._save(
            effectiveness_scatter(changes, lines, units),
            "effectiveness-scatter",
            "scatter",
            "Achieved over wanted change of the intervened variable, a point for each counterfactual. On the dashed "
            "line the edit does what was asked; the solid line is the least-squares fit.",
        )
        measured = list(evaluation["floor"])
        figure = evaluation["data"]["figure"]
        errors = {
            name: np.array([[figures["effectiveness"][do][j][figure] for j in measured] for do in engine.interventions])
            for name, figures in methods.items()
        }
        unit = "%" if figure == "mape" else ", ".join(sorted({written_unit(units[j]) for j in measured}))
        self._save(
            effectiveness_heatmap(
                errors,
                engine.interventions,
                measured,
                f"mean absolute error, {unit}",
                digits=1 if figure == "mape" else 2,
            ),
            "effectiveness-heatmap",
            "heatmap",
            "Error of every variable (columns) under every intervention (rows), "
            + ("in % of the value it should have." if figure == "mape" else "in the unit of the variable."),
        )

    def _maps(self, engine: JudgeEvaluator) -> None:
        regions = engine.datalist.regions
        fixed = regions is not None and regions.of == "image" and regions.axis == 0
        lines = regions.boundaries[1:-1] if regions is not None and fixed else ()
        if maps := engine.change_maps():
            self._save(
                change_maps(maps, "mean absolute change", lines),
                "change-maps",
                "maps",
                "Mean absolute change of the image by intervention (rows) and method (columns), over all test cases "
                "and targets" + ("; the lines part the regions." if fixed else "."),
            )
        if gains := engine.gain_maps():
            self._save(
                change_maps(gains, "gain of the mask", signed=True),
                "gain-maps",
                "maps",
                "Where a structure grows for one unit of its variable, by intervention (rows): in the population, and "
                "by method (columns), over all test cases and targets. Red: gained, blue: lost, in shares of the "
                "largest gain in the population.",
            )

    def _counterfactuals(self, engine: JudgeEvaluator, item: Mapping[str, Any], number: int) -> None:
        batch = {key: item[key][None] for key in ("image", "label")}
        batch |= {key: torch.as_tensor(item[key])[None] for key in ("variables", "spacing")}
        case, _ = engine.cases({**batch, "id": [item["id"]]})
        labels = engine.datalist.foreground
        for variable in tqdm(engine.interventions, desc=f"drawing test case {number + 1}", unit="variable"):
            unit = engine.datalist.variable(variable).unit
            factual = factual_panel(case, variable, unit)
            marginal = np.array([entry["variables"][variable] for entry in engine.datalist.entries["training"]])
            targets, said = _quantiles(marginal, SWEEP_QUANTILES, variable in engine.may_be_zero)
            for place, (name, method) in enumerate(engine.methods.items()):
                if name != IDENTITY:
                    figure = counterfactual_grid(
                        factual,
                        {name: sweep(method, engine.judge, case, variable, targets, unit)},
                        labels,
                        f"do({words(variable)}), {name}",
                    )
                    self._save(
                        figure,
                        f"sweep-{variable}-{place}-{_slug(name)}-{number + 1}",
                        "sweep",
                        f"{name}: {words(variable)} of test case {number + 1} set to {said}.",
                    )
            targets, said = _quantiles(marginal, COMPARED_QUANTILES, variable in engine.may_be_zero)
            self._save(
                counterfactual_grid(
                    factual, _comparison(engine, case, variable, targets, unit), labels, f"do({words(variable)})"
                ),
                f"comparison-{variable}-{number + 1}",
                "comparison",
                f"All methods side by side, block by block: {words(variable)} of test case {number + 1} set to {said}. "
                "Solid contours: what the independent judge sees, in the factual image and the truth the label map; "
                "dotted: the structures of the factual image.",
            )


def _listed(index: Path) -> set[str]:
    """The figures that a ``figures.json`` lists; none where it is missing or damaged."""
    try:
        return {entry["file"] for entry in json.loads(index.read_text(encoding="utf-8"))}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return set()


def _quantiles(marginal: np.ndarray, levels: Sequence[float], may_be_zero: bool) -> tuple[list[float], str]:
    """Targets at quantiles of the training data, and text that says so; if a variable may be zero, zero comes first."""
    if not may_be_zero:
        listed = ", ".join(f"{100 * level:.0f}" for level in levels)
        return np.quantile(marginal, levels).tolist(), f"the percentiles {listed} of the training data"
    listed = ", ".join(f"{100 * level:.0f}" for level in levels[1:])
    positive = np.quantile(marginal[marginal > 0], levels[1:]).tolist()
    return [0.0, *positive], f"zero, and to the percentiles {listed} of the positive values in the training data"


def _comparison(
    engine: JudgeEvaluator, case: Any, variable: str, targets: Sequence[float], unit: str
) -> dict[str, list[Panel]]:
    """For each target a row of counterfactuals: the truth where it is known, then every method."""
    rows: dict[str, list[Panel]] = {f"do({quantity(target, unit)})": [] for target in targets}
    columns: dict[str, list[Panel]] = {}
    if engine.truth is not None:
        images, masks = engine.truth([case.ids[0]] * len(targets), {variable: list(targets)})
        known = case.repeat(len(targets))
        images, masks = (tensor.to(case.image.device) for tensor in (images, masks))
        measured = engine.judge.measure(masks, images, known.spacing, known.label)
        impossible = images.isnan().flatten(1).any(1)
        measured = measured[:, engine.judge.names.index(variable)].masked_fill(impossible, nan)
        columns["truth"] = panels(images, masks, list(rows), measured, unit, "measured")
    for name, method in engine.methods.items():
        if name != IDENTITY:
            columns[name] = sweep(method, engine.judge, case, variable, targets, unit)
    for name, column in columns.items():
        for row, panel in zip(rows.values(), column):
            row.append(Panel(panel.image, panel.mask, name, panel.subtitle))
    return rows


def _changes(rows: pd.DataFrame, interventions: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for do in interventions:
        part = rows[rows["do"] == do]
        wanted = part[f"asked.{do}"] - part[f"factual.{do}"]
        achieved = part[f"measured.{do}"] - part[f"before.{do}"]
        found[do] = (wanted.to_numpy(), achieved.to_numpy())
    return found


def _slug(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name.lower()).strip("-")
