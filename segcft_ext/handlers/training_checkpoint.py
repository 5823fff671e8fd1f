"""Resuming a training: everything that it needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events
from monai.engines import Workflow
from torch.optim.swa_utils import AveragedModel

from segcft_ext.checkpoints import CheckpointError, SelfDescribing, load_checkpoint, plain, save_atomically
from segcft_ext.folders import writable_folder

__all__ = ["TrainingCheckpoint"]

LOGGER = logging.getLogger(__name__)

RUN = "run_id"
"""Attribute of the trainer's state with the id of its MLflow run, if it has one."""
PROGRESS = ("epoch", "iteration", "metrics", "best_metric", "best_metric_epoch", RUN)
LENGTH = ("max_epochs", "epoch_length")


class TrainingCheckpoint:
    """Saves the state of a training after every epoch, atomically, and restores it when the training is resumed.

    Attach it after the handlers that change the state at the end of an epoch (schedule, validation). With
    :class:`~segcft_ext.handlers.epoch_seed.EpochSeed`, which makes the randomness a function of the epoch, a training
    that was killed at any moment and resumed ends with the same weights as an uninterrupted one. The number of epochs
    and their length must not change, since the schedule of the learning rate depends on them.

    A training that starts anew removes the file of an earlier one, so that it is not resumed by mistake. If the file is
    damaged, the training starts anew with a warning.

    Args:
        path: the file.
        objects: what to save besides the trainer's own progress, by name: anything with ``state_dict``, or the
            validator, whose progress and best metric are saved.
        resume: restore from the file, if it exists, when the training starts.

    Raises:
        CheckpointError: at the start, when the file belongs to a training with other objects, networks, data or length.
        OSError: at the start, when the file's folder cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], objects: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.objects = objects
        self.resume = resume

    def attach(self, engine: Workflow) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def start(self, engine: Workflow) -> None:
        if engine.state.rank == 0:
            writable_folder(self.path.parent)
        if self.resume and self.path.exists():
            self.path.open("rb").close()  # what cannot be opened is an error: it need not be damaged
            try:
                checkpoint = load_checkpoint(self.path)
            except CheckpointError as error:
                LOGGER.warning("%s; the training starts from the beginning", error)
            else:
                self.restore(engine, checkpoint)
                epoch, epochs = engine.state.epoch, engine.state.max_epochs
                done = ": the training is over" if epoch == epochs else ""
                LOGGER.info("resumed after epoch %s of %s from %s%s", epoch, epochs, self.path, done)
                return
        elif self.resume:
            LOGGER.info("%s does not exist: the training starts from the beginning", self.path)
        self.start_anew(engine)

    def start_anew(self, engine: Workflow) -> None:
        idist.barrier()  # until every process has looked for the file
        if engine.state.rank == 0:
            self.path.unlink(missing_ok=True)

    def save(self, engine: Workflow) -> None:
        if engine.state.rank == 0:
            states = {name: _state(item) for name, item in self._all(engine).items()}
            save_atomically(states | {"length": _length(engine)}, self.path)

    def restore(self, engine: Workflow, checkpoint: Any) -> None:
        objects = self._all(engine)
        found = sorted(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        if found != (expected := sorted([*objects, "length"])):
            raise CheckpointError(f"{self.path}: the checkpoint holds {found}, asked for {expected}")
        for key, asked in _length(engine).items():
            if (held := checkpoint["length"][key]) != asked:
                raise CheckpointError(
                    f"{self.path}: {key}: the checkpoint holds {held}, asked for {asked}; a training goes on with the "
                    "length that it was started with"
                )
        for name, item in objects.items():
            try:
                _restore(item, checkpoint[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{self.path}: {name}: {error}") from error

    def _all(self, engine: Workflow) -> dict[str, Any]:
        return {"trainer": engine, **self.objects}


def _length(engine: Workflow) -> dict[str, int]:
    return plain({key: getattr(engine.state, key) for key in LENGTH})


def _state(item: Any) -> Any:
    if isinstance(item, Workflow):
        return plain({key: getattr(item.state, key, None) for key in PROGRESS})
    return item.state_dict()


def _restore(item: Any, state: Any) -> None:
    if isinstance(item, Workflow):
        if set(state) != set(PROGRESS):
            raise CheckpointError(f"the checkpoint holds {sorted(state)}, asked for {sorted(PROGRESS)}")
        for key in PROGRESS:
            setattr(item.state, key, state[key])
        return
    network: Any = item.module if isinstance(item, AveragedModel) else item
    asked = network.data if isinstance(network, SelfDescribing) else None
    item.load_state_dict(state)
    if asked:
        for key in sorted({*asked, *network.data}):
            found, expected = network.data.get(key, "nothing"), asked.get(key, "nothing")
            if found != expected:
                raise CheckpointError(f"data.{key}: the checkpoint holds {found!r:.300}, asked for {expected!r:.300}")
