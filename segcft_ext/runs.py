"""Reading back what trainings recorded: parameters and curves of the runs of one MLflow experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow.entities
from mlflow import MlflowClient

from segcft_ext.tracking import sqlite_file, stage_of, without_password

__all__ = ["Run", "finished_runs"]

TOLD_APART = ("dscm", "guide", "deformation", "finetune_hvae")
"""Parameters that distinguish runs of the same name, such as the fine-tunings of a DSCM with two guides."""


@dataclass(frozen=True)
class Run:
    """One run: its name, its parameters, and for each metric with more than one point the steps and the values."""

    name: str
    parameters: dict[str, str]
    curves: dict[str, tuple[list[float], list[float]]]


def finished_runs(
    tracking_uri: str,
    experiment: str,
    names: Sequence[str] | None = None,
    data_dir: Path | None = None,
    runs_dir: Path | None = None,
) -> list[Run]:
    """The finished runs of an experiment.

    Args:
        tracking_uri: the store.
        experiment: name of the experiment.
        names: names of the runs wanted, in this order; by default the newest run of each stage, oldest first.
            Fine-tunings of different DSCMs, with different guides or of different mechanisms are different stages.
        data_dir: folder of a datalist. Without ``names``, runs on a datalist elsewhere are left out, unless that
            datalist no longer exists.
        runs_dir: folder of trainings. Without ``names``, runs that wrote elsewhere are left out.

    Raises:
        FileNotFoundError: when the store is an SQLite database that is not there; MLflow would create it.
        ValueError: when the store has no such experiment, or lacks a named run.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"{tracking_uri}: no such file, expected the MLflow store of the trainings")
    shown = without_password(tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = [e.name for e in client.search_experiments()]
        raise ValueError(f"{shown}: experiment {experiment!r} not found, it has {known}")
    runs = _finished(client, found.experiment_id)
    by_name = {run.info.run_name: run for run in runs}
    missing = [name for name in names or [] if name not in by_name]
    if missing:
        raise ValueError(f"{shown}: finished runs {missing} not found in {experiment!r}, it has {list(by_name)}")
    if names:
        return [_read(client, by_name[name]) for name in names]
    runs = [run for run in runs if _may_be_of(run, data_dir) and _wrote_to(run, runs_dir)]
    newest = {_stage(run): run for run in runs}
    return [_read(client, run) for run in runs if run in newest.values()]


def _finished(client: MlflowClient, experiment_id: str) -> list[mlflow.entities.Run]:
    """All finished runs, oldest first; a store returns them in pages."""
    runs, page = list[mlflow.entities.Run](), None
    while page != "":
        found = client.search_runs(
            [experiment_id],
            "attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            page_token=page,
        )
        runs += found
        page = found.token or ""
    return runs


def _stage(run: mlflow.entities.Run) -> tuple[str | None, ...]:
    """What distinguishes a stage from the others."""
    return (stage_of(run.info.run_name), *(run.data.params.get(key) for key in TOLD_APART))


def _may_be_of(run: mlflow.entities.Run, data_dir: Path | None) -> bool:
    """Whether a run's datalist lies in ``data_dir``, or no longer exists."""
    datalist = Path(run.data.params.get("datalist", ""))
    return data_dir is None or not datalist.is_file() or datalist.resolve().parent == data_dir.resolve()


def _wrote_to(run: mlflow.entities.Run, runs_dir: Path | None) -> bool:
    """Whether a run's output folder lies in ``runs_dir``."""
    folder = run.data.params.get("output_dir")
    return runs_dir is None or (folder is not None and Path(folder).resolve().is_relative_to(runs_dir.resolve()))


def _read(client: MlflowClient, run: mlflow.entities.Run) -> Run:
    curves = {}
    for metric in sorted(run.data.metrics):
        points = sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric))
        if len(points) > 1:
            curves[metric] = ([float(step) for step, _ in points], [value for _, value in points])
    return Run(run.info.run_name, dict(run.data.params), curves)
