"""One MLflow run for one stage, on top of MONAI's handler."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import mlflow
import monai
import torch
from ignite.engine import Engine, Events
from mlflow.entities import RunStatus
from monai.engines import Workflow
from monai.handlers import MLFlowHandler

from segcft_ext.tracking import artifact_location, default_tracking_uri, unique_run_name

__all__ = ["MLflowRun"]


class MLflowRun(MLFlowHandler):
    """Record a stage as one MLflow run: parameters, versions, metrics, artifacts, and how it ended.

    Differs from MONAI's handler where that is needed: the run is always a new one, the given URI wins over the
    environment, numbers are averaged over the epoch instead of written at every iteration (a database transaction
    each), the validator's metrics stand in the trainer's run, and a run that ends by an error is closed as FAILED.

    Attached to a trainer, every scalar of its output (``loss`` and what else it has) is logged as its mean over the
    epoch, as ``train_<name>``, with the learning rate. The metrics of the engine and of ``validator`` are logged under
    their own names. Place it last, so that files which other handlers write at the end are there.

    Args:
        tracking_uri: the store; :func:`~segcft_ext.tracking.default_tracking_uri` by default.
        experiment: name of the experiment.
        run_name: name of the run, made unique if there is such a run already.
        parameters: what to record about the settings, flat.
        artifacts: files and folders to upload at the end; those that do not exist are left out.
        validator: the engine whose metrics belong to this run too.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "segcft",
        run_name: str = "run",
        parameters: Mapping[str, Any] | None = None,
        artifacts: Sequence[str | os.PathLike[str]] = (),
        validator: Workflow | None = None,
    ) -> None:
        # creating the database logs a line for each of dozens of migrations
        logging.getLogger("alembic").setLevel(logging.WARNING)
        uri = tracking_uri or default_tracking_uri()
        super().__init__(
            tracking_uri=uri,
            experiment_name=experiment,
            run_name=run_name,
            experiment_param={**_versions(), **(parameters or {})},
            artifact_location=artifact_location(uri),
        )
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.paths = [Path(path) for path in artifacts]
        self.validator = validator
        self._sums: dict[str, float] = {}
        self._count = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self.log_metrics)

    def start(self, engine: Engine) -> None:
        self._set_experiment()
        assert self.experiment is not None and self.run_name is not None  # for the type checker
        experiment = self.experiment.experiment_id
        if self.client.search_runs(experiment, f"attributes.run_name = '{self.run_name}'", max_results=1):
            self.run_name = unique_run_name(self.run_name)
        # MONAI's start searches for a run to adopt unless there is one
        self.cur_run = self.client.create_run(experiment, run_name=self.run_name)
        super().start(engine)

    def iteration_completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        output = output[0] if isinstance(output, list) else output
        scalars = {
            key: float(value)
            for key, value in output.items()
            if isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.ndim == 0)
        }
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1

    def epoch_completed(self, engine: Engine) -> None:
        metrics = {f"train_{key}": total / self._count for key, total in self._sums.items()}
        self._sums, self._count = {}, 0
        if hasattr(engine, "optimizer"):
            metrics["learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        self.log_metrics(engine, metrics)

    def log_metrics(self, engine: Engine, metrics: Mapping[str, float] | None = None) -> None:
        """Log the scalar metrics of an engine, and more, at the engine's epoch."""
        scalars = {key: float(value) for key, value in engine.state.metrics.items() if _is_scalar(value)}
        self._log_metrics({**(metrics or {}), **scalars}, step=engine.state.epoch)

    def complete(self) -> None:
        assert self.cur_run is not None  # for the type checker
        run = self.cur_run.info.run_id
        for path in self.paths:
            if path.is_dir():
                self.client.log_artifacts(run, str(path), artifact_path=path.name)
            elif path.exists():
                self.client.log_artifact(run, str(path))
        self.close()

    def fail(self, engine: Engine, error: BaseException) -> None:
        if self.cur_run is not None:
            self.client.set_tag(self.cur_run.info.run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            self.run_finish_status = RunStatus.to_string(RunStatus.FAILED)
            self.close()
        # ignite leaves it to the handlers of this event to raise
        raise error


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], "torch": torch.__version__, "monai": monai.__version__}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)
