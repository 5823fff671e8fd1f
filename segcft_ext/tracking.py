"""Where runs are recorded: one MLflow store, with the artifacts beside it and a unique name for each run."""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from monai.utils import path_to_uri
from sqlalchemy.exc import DBAPIError

__all__ = [
    "artifact_location",
    "default_tracking_uri",
    "opening",
    "sqlite_file",
    "sqlite_uri",
    "stage_of",
    "unique_run_name",
    "without_password",
]

SQLITE = "sqlite:///"


def default_tracking_uri() -> str:
    """``$MLFLOW_TRACKING_URI``, else an SQLite database ``mlflow.db`` in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path.cwd() / "mlflow.db")


def artifact_location(tracking_uri: str) -> str | None:
    """The folder ``mlruns`` beside an SQLite database; None, i.e. the server's choice, for any other store."""
    file = sqlite_file(tracking_uri)
    return None if file is None else path_to_uri(file.absolute().parent / "mlruns")


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of an SQLite database; None for any other store."""
    return Path(unquote(tracking_uri.removeprefix(SQLITE))) if tracking_uri.startswith(SQLITE) else None


def sqlite_uri(file: Path) -> str:
    """The address of an SQLite database.

    Raises:
        ValueError: when the path has characters with a special meaning in an address.
    """
    if wrong := [character for character in "?%" if character in str(file)]:
        raise ValueError(
            f"{file}: found {' and '.join(wrong)} in the path of an MLflow store, expected none of ? and %"
        )
    return f"{SQLITE}{file}"


def without_password(tracking_uri: str) -> str:
    """The address of a store without the user name and password in it, so that it can be shown."""
    return re.sub(r"//[^/@]*@", "//", tracking_uri)


@contextmanager
def opening(tracking_uri: str, experiment: str) -> Iterator[MlflowClient]:
    """A client for opening a run in an experiment of a store; creates the experiment if it is missing.

    When two runs start at the same time with a new store, MLflow makes one of them fail: both find no tables, or no
    experiment, and both create them. With an SQLite store they therefore wait for each other, by a lock that leaves an
    empty file ``*.db.lock``. A new one is made in a scratch file: a process that is killed meanwhile would leave tables
    that MLflow can neither use nor complete.

    Raises:
        OSError: when the store is a database that cannot be opened.
        ValueError: when the experiment is deleted.
    """
    for name in ("alembic", "mlflow.store.db.utils"):  # they log a line for each of dozens of migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    file = sqlite_file(tracking_uri)
    with nullcontext() if file is None else FileLock(f"{file}.lock"):
        shown = without_password(tracking_uri)
        try:
            if file is not None and not file.exists():
                scratch = file.with_name(f"{file.name}.tmp")
                scratch.unlink(missing_ok=True)
                MlflowClient(tracking_uri=f"{tracking_uri}.tmp").get_experiment_by_name(experiment)
                os.replace(scratch, file)
            client = MlflowClient(tracking_uri=tracking_uri)
            found = client.get_experiment_by_name(experiment)
        except DBAPIError as error:
            raise OSError(f"{shown}: cannot be opened as an MLflow store: {error.orig}") from error
        if found is not None and found.lifecycle_stage == LifecycleStage.DELETED:
            raise ValueError(
                f"{shown}: experiment {experiment!r} is deleted: give another with --experiment, or restore it with "
                f"MLFLOW_TRACKING_URI={shown} mlflow experiments restore -x {found.experiment_id}"
            )
        if found is None:
            try:
                client.create_experiment(experiment, artifact_location=artifact_location(tracking_uri))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another client of the server was faster
                    raise
        yield client


def unique_run_name(stage: str) -> str:
    """A run name: stage, time, and a random suffix that no seed repeats.

    MLflow lets runs share a name, and MONAI's handler would then continue an unfinished run, even a crashed one.
    """
    return f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def stage_of(run_name: str) -> str:
    """The stage of a run name that :func:`unique_run_name` made; other names are returned unchanged."""
    return re.sub(r"-\d{8}-\d{6}-[0-9a-f]{6}$", "", run_name)
