"""One MLflow run for one stage."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Events
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from monai.engines import Trainer, Workflow
from monai.utils.enums import CommonKeys

from segcft_ext.datalist import Datalist
from segcft_ext.folders import write_text_atomically
from segcft_ext.tracking import default_tracking_uri, opening, unique_run_name

__all__ = ["MLflowRun"]

LOGGER = logging.getLogger(__name__)


class MLflowRun:
    """Records a stage as one MLflow run: data, parameters, versions, metrics, artifacts, and how it ended.

    It takes the place of MONAI's ``MLFlowHandler``, from which it differs as follows:

    * The run is always a new one, unless the stage is resumed.
    * The store is not accessed before the engine starts, nor by the other processes of a distributed training.
    * No store but the given one is accessed, whatever the environment says.
    * Numbers are averaged over the epoch instead of written at every iteration (a database transaction each).
    * The validator's metrics are in the trainer's run.
    * A run that ends by an error is closed as FAILED, one that is interrupted as KILLED.

    The run's id is the trainer's ``state.run_id``, which :class:`~segcft_ext.handlers.TrainingCheckpoint` saves and
    restores; an evaluation keeps it in ``id_file``. What is resumed continues that run, with its original parameters,
    if the store still has it.

    Attached to a trainer, it logs every scalar of the trainer's output (such as ``loss``) as ``train_<name>``, the mean
    over those steps of the epoch at which it is finite, and the learning rate. The metrics of the engine and of
    ``validator`` are logged under their own names. Attach it last, so that it finds the files that other handlers write
    at the end.

    Args:
        tracking_uri: the store; :func:`~segcft_ext.tracking.default_tracking_uri` by default.
        experiment: name of the experiment.
        run_name: name of the run, made unique if there is such a run already.
        parameters: settings to record, as a flat mapping.
        artifacts: files, uploaded at the end, and folders, whose new files are uploaded after every epoch; those that
            do not exist are left out. The parent folder of the first is recorded as ``output_dir``.
        validator: an engine whose metrics also belong to this run.
        datalist: the data, recorded as the run's dataset with the digest of the datalist's file, so that runs on the
            same data can be told from others; None records none.
        id_file: file for the run's id; a file that is there at the start names the run that is continued. It is up to
            others to remove it when the stage ends or starts anew.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "segcft",
        run_name: str = "run",
        parameters: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | os.PathLike[str]] = (),
        validator: Workflow | None = None,
        datalist: Datalist | None = None,
        id_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.tracking_uri = tracking_uri or default_tracking_uri()
        self.experiment = experiment
        self.run_name = run_name
        self.parameters = {**_versions(), **(parameters or {})}
        self.artifacts = [Path(path) for path in artifacts]
        if self.artifacts:
            self.parameters["output_dir"] = str(self.artifacts[0].absolute().parent)
        self.validator = validator
        self.datalist = datalist
        self.id_file = Path(id_file) if id_file else None
        self._client: MlflowClient
        self._run_id = ""  # from the start of the run to its end
        self._finite: dict[str, tuple[float, int]] = {}  # sum and number of this epoch's values
        self._uploaded: set[Path] = set()
        self._logged: set[tuple[str, int]] = set()  # metrics, with the epoch, that a resumed run has already

    def attach(self, engine: Workflow) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        if isinstance(engine, Trainer):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self.log_metrics)

    def start(self, engine: Workflow) -> None:
        with opening(self.tracking_uri, self.experiment) as client:
            self._open(client, engine)

    def _open(self, client: MlflowClient, engine: Workflow) -> None:
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None  # for the type checker
        quote = '"' if "'" in self.run_name else "'"
        taken = client.search_runs(
            [experiment.experiment_id], f"attributes.run_name = {quote}{self.run_name}{quote}", max_results=1
        )
        begun = getattr(engine.state, "run_id", None) if engine.state.epoch else None
        if self.id_file and self.id_file.is_file():
            begun = self.id_file.read_text(encoding="utf-8")
        resumed = _existing(client, begun)
        name = unique_run_name(self.run_name) if taken else self.run_name
        run = resumed or client.create_run(experiment.experiment_id, run_name=name)
        self._client, self._run_id = client, run.info.run_id
        known = [client.get_metric_history(self._run_id, key) for key in run.data.metrics]
        self._logged = {(point.key, point.step) for history in known for point in history}
        if resumed:
            client.update_run(self._run_id, RunStatus.to_string(RunStatus.RUNNING))
        else:
            lengths = {"max_epochs": engine.state.max_epochs, "epoch_length": engine.state.epoch_length}
            parameters = {**self.parameters, **lengths}
            client.log_batch(self._run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
            if self.datalist is not None:
                use = "training" if isinstance(engine, Trainer) else "evaluation"
                client.log_inputs(self._run_id, [_dataset(self.datalist, use)])
        engine.state.run_id = self._run_id
        if self.id_file:
            write_text_atomically(self.id_file, self._run_id)

    def _close(self, status: int) -> None:
        self._client.set_terminated(self._run_id, RunStatus.to_string(status))
        self._run_id = ""

    def iteration_completed(self, engine: Workflow) -> None:
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        for key, value in _scalars(output).items():
            if math.isfinite(value):  # a step that was skipped is not
                total, count = self._finite.get(key, (0.0, 0))
                self._finite[key] = total + value, count + 1

    def epoch_completed(self, engine: Workflow) -> None:
        metrics = {f"train_{key}": total / count for key, (total, count) in self._finite.items()}
        self._finite = {}
        if hasattr(engine, "optimizer"):
            metrics["learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        self.log_metrics(engine, metrics)
        self.upload_folders()

    def log_metrics(self, engine: Workflow, metrics: Mapping[str, float] | None = None) -> None:
        """Log an engine's scalar metrics, and further ones, at its epoch; values that are not finite are left out.

        MLflow does not take every character that the name of a variable or method may have; others become "_".
        """
        if not self._run_id:
            return  # the validator also runs on its own
        now = int(1000 * time.time())
        found = {**(metrics or {}), **_scalars(engine.state.metrics)}
        entities = [
            Metric(key, value, now, engine.state.epoch)
            for key, value in ((re.sub(r"[^\w\-./ ]", "_", name), value) for name, value in found.items())
            if math.isfinite(value) and (key, engine.state.epoch) not in self._logged
        ]
        self._client.log_batch(self._run_id, metrics=entities)

    def complete(self, engine: Workflow) -> None:
        self.upload_folders()
        for path in self.artifacts:
            if path.is_file():
                self._client.log_artifact(self._run_id, str(path))
        self._close(RunStatus.FINISHED)

    def upload_folders(self) -> None:
        """Upload the files in the artifacts' folders that have not been uploaded yet."""
        for folder in self.artifacts:
            for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
                if file.is_file() and file not in self._uploaded:
                    self._uploaded.add(file)
                    place = Path(folder.name, file.relative_to(folder).parent)
                    self._client.log_artifact(self._run_id, str(file), artifact_path=place.as_posix())

    def fail(self, engine: Workflow, error: BaseException) -> None:
        if self._run_id:
            status = RunStatus.KILLED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED
            try:
                self._client.set_tag(self._run_id, "error", f"{type(error).__name__}: {error}"[:5000])
                self._close(status)
            except MlflowException as refusal:  # the store may be what has failed, or on the same full disk
                LOGGER.warning("the MLflow run cannot be closed: %s", refusal)
        raise error  # ignite leaves it to the handlers of this event to raise


def _existing(client: MlflowClient, run_id: str | None) -> Run | None:
    """The run with this id, if the store has it and it is not deleted."""
    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException:
        return None
    return run if run and run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _dataset(datalist: Datalist, use: str) -> DatasetInput:
    source = json.dumps({"uri": str(datalist.path.absolute())})
    cases = json.dumps({split: len(entries) for split, entries in datalist.entries.items()})
    dataset = Dataset(datalist.name, datalist.digest()[:8], "local", source, profile=cases)
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, use)])


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], "torch": torch.__version__, "monai": monai.__version__}


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers among the values, except what belongs to a case: image, label and prediction."""
    return {
        key: float(value.detach() if isinstance(value, torch.Tensor) else value)
        for key, value in values.items()
        if key not in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
        and (isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1))
    }
