"""Figures of merit of a segmentor: Dice, surface distances, lesions found and missed, and errors of the variables.

The Dice of a structure that is absent from the label map says nothing about how well it is outlined, so such an image
does not count (MONAI's ``ignore_empty``). Whether the structure is rightly not predicted is shown by the lesions and by
the error of its area.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from matplotlib.figure import Figure
from monai.engines import Workflow

from segcft_ext.datalist import Datalist
from segcft_ext.evaluation.lesions import count_lesions
from segcft_ext.figures import Panel, picture, save_figure, segmentation_grid
from segcft_ext.folders import writable_folder, write_csv_atomically, write_json_atomically
from segcft_ext.measurements import measure

__all__ = ["SegmentationReport"]

SHOWN = 12


class SegmentationReport:
    """Writes ``segmentation.json`` (means over the cases), ``segmentation.csv`` (a row for each case), and a picture.

    In the table, a figure that is not defined for a case is an empty cell. ``segmentation.png`` shows the outlines of
    the :data:`SHOWN` cases with the lowest value of the first metric, mean over the structures; of volumes the middle
    slice.

    Attach it to an evaluator whose decollated batch has each case's ``image``, whose output has, for each case,
    ``probabilities`` and the one-hot ``pred`` and ``label``, all of shape (C, \\*spatial), and whose per-structure
    metrics keep their details. The variables are measured on the probabilities, as a guide does it (``soft``), and on
    the most probable labels, as a judge does it (``hard``), and compared with those of the label map. The means are
    added to the engine's metrics.

    Args:
        datalist: the data.
        folder: folder to write to.
        metrics: names of the evaluator's metrics to report; their details have a column for each structure.
        header: further content for the top of the JSON file.
        lesions: structures with any number of pieces, including none; their connected components are counted.
    """

    def __init__(
        self,
        datalist: Datalist,
        folder: str | os.PathLike[str],
        metrics: Sequence[str],
        header: dict[str, Any] | None = None,
        lesions: Sequence[str] = (),
    ) -> None:
        self.labels = datalist.foreground
        self.measurements = datalist.measurements()
        self.units = {name: datalist.variable(name).unit for name in self.measurements}
        self.folder = Path(folder)
        self.metrics = list(metrics)
        self.header = {"datalist": str(datalist.path), **(header or {})}
        self.lesions = {name: datalist.labels[name] for name in lesions}
        self._cases: list[dict[str, Any]] = []
        self._pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # image, predicted and true label map

    def attach(self, engine: Workflow) -> None:
        engine.add_event_handler(Events.STARTED, lambda: writable_folder(self.folder))
        engine.add_event_handler(Events.EPOCH_STARTED, self._cases.clear)
        engine.add_event_handler(Events.EPOCH_STARTED, self._pictures.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def measure(self, engine: Workflow) -> None:
        for batch, output in zip(engine.state.batch, engine.state.output):
            row: dict[str, Any] = {"id": batch["id"], "source": batch["source"]}
            known = torch.as_tensor(batch["spacing"])[None]
            spacing, reference = None if known.isnan().any() else known, output["label"][None]
            image = torch.as_tensor(batch["image"])[None].to(reference.device)
            for suffix, key in (("", "label"), ("_soft", "probabilities"), ("_hard", "pred")):
                values = measure(self.measurements, output[key][None], image, spacing, reference)
                row |= {f"{name}{suffix}": value for name, value in zip(self.measurements, values[0].tolist())}
            for name, value in self.lesions.items():
                true, seen = (output[key][value].cpu().numpy() > 0 for key in ("label", "pred"))
                counts = asdict(count_lesions(true, seen))
                row |= {f"lesions_{kind}_{name}": count for kind, count in counts.items()}
            self._cases.append(row)
            predicted, true = (output[key].argmax(0).byte() for key in ("pred", "label"))
            self._pictures.append((picture(batch["image"]), picture(predicted), picture(true)))

    def write(self, engine: Workflow) -> None:
        for metric in self.metrics:
            for row, values in zip(self._cases, engine.state.metric_details[metric].tolist()):
                known = [value if math.isfinite(value) else None for value in values]
                row |= {f"{metric}_{name}": known[self.labels[name] - 1] for name in self.labels}
        summary = self.summary()
        engine.state.metrics |= _flatten(summary)
        rows = [row.values() for row in self._cases]
        write_csv_atomically(self.folder / "segmentation.csv", [self._cases[0].keys(), *rows])
        content = {**self.header, "cases": len(self._cases), **summary}
        write_json_atomically(self.folder / "segmentation.json", content)
        save_figure(self._worst(), self.folder / "segmentation.png")

    def _worst(self) -> Figure:
        """The cases that were outlined worst, by the first metric."""
        metric = self.metrics[0]
        known = np.ma.masked_invalid([self._column(f"{metric}_{name}") for name in self.labels])
        scores = known.mean(0).filled(np.inf)
        order = np.argsort(scores, kind="stable")[:SHOWN]
        cases, truths = [], []
        for k in order:
            image, predicted, true = self._pictures[k]
            score = f"{scores[k]:.3f}" if np.isfinite(scores[k]) else "–"
            cases.append(Panel(image, predicted, self._cases[k]["id"][:8], f"{metric} {score}"))
            truths.append(true)
        title = f"The {len(order)} of {len(scores)} cases with the lowest {metric}, mean over the structures"
        return segmentation_grid(cases, truths, self.labels, title=title)

    def summary(self) -> dict[str, Any]:
        """Means over the cases.

        Returns:
            ``structures``: mean and SD of each structure's metrics over the cases in which they are defined, and in how
            many they are not (a structure that was not found has no surface). ``variables``: each variable's mean
            absolute error and, over the cases in which it is not zero, the same in percent of the true value and the
            mean signed error in percent; if it is zero in some cases only, also the mean absolute errors of the cases
            with and without it. ``lesions``: see :meth:`_lesions`.
        """
        structures = {
            name: {metric: _mean(self._column(f"{metric}_{name}")) for metric in self.metrics} for name in self.labels
        }
        variables: dict[str, Any] = {}
        for name, unit in self.units.items():
            true = self._column(name)
            errors = {kind: self._column(f"{name}_{kind}") - true for kind in ("soft", "hard")}
            variables[name] = {"unit": unit} | {kind: _errors(error, true) for kind, error in errors.items()}
        summary = {"structures": structures, "variables": variables}
        return summary | ({"lesions": {name: self._lesions(name) for name in self.lesions}} if self.lesions else {})

    def _lesions(self, name: str) -> dict[str, float | int]:
        """Figures of one structure's lesions, by lesion and by image.

        Returns:
            ``lesions``, their number; ``lesion_sensitivity``, the share of them that was found;
            ``false_positives_per_image``; the numbers of images ``images_with`` at least one lesion and
            ``images_without``; ``presence_sensitivity``, the share of the former in which any was predicted, and
            ``presence_specificity``, the share of the latter in which none was. Shares of zero lesions or images are
            left out.
        """
        true, found, seen, false = (self._column(f"lesions_{k}_{name}") for k in ("true", "found", "seen", "false"))
        present = true > 0
        figures: dict[str, float | int] = {"lesions": int(true.sum())}
        if present.any():
            figures["lesion_sensitivity"] = float(found.sum() / true.sum())
        figures |= {
            "false_positives_per_image": float(false.mean()),
            "images_with": int(present.sum()),
            "images_without": int((~present).sum()),
        }
        if present.any():
            figures["presence_sensitivity"] = float((seen[present] > 0).mean())
        if not present.all():
            figures["presence_specificity"] = float((seen[~present] == 0).mean())
        return figures

    def _column(self, key: str) -> np.ndarray:
        return np.array([row[key] for row in self._cases], np.float64)


def _mean(values: np.ndarray) -> dict[str, float | int]:
    known = values[np.isfinite(values)]
    if not known.size:
        return {"undefined": int(values.size)}
    return {"mean": float(known.mean()), "sd": float(known.std()), "undefined": int(values.size - known.size)}


def _errors(error: np.ndarray, true: np.ndarray) -> dict[str, float]:
    present = true != 0
    percent = 100 * error[present] / np.abs(true[present])
    found = {"mae": float(np.abs(error).mean())}
    if present.any():
        found |= {"mape": float(np.abs(percent).mean()), "bias": float(percent.mean())}
    if present.any() and not present.all():
        found |= {
            f"mae_{name}": float(np.abs(error[k]).mean()) for name, k in (("present", present), ("absent", ~present))
        }
    return found


def _flatten(summary: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, metrics in summary["structures"].items():
        flat |= {f"{metric}_{name}": values.get("mean", math.nan) for metric, values in metrics.items()}
    for name, kinds in summary["variables"].items():
        for kind in ("soft", "hard"):
            flat |= {f"{figure}_{kind}_{name}": value for figure, value in kinds[kind].items()}
    for name, figures in summary.get("lesions", {}).items():
        flat |= {f"{figure}_{name}": float(value) for figure, value in figures.items()}
    return {key: value for key, value in flat.items() if math.isfinite(value)}
