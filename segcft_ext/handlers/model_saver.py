"""Saving the model: the best one by the validation's key metric, or the newest one."""

from __future__ import annotations

import math
import os

from ignite.engine import Events
from monai.engines import Trainer, Workflow
from torch import nn

from segcft_ext.checkpoints import save_model

__all__ = ["ModelSaver"]


class ModelSaver:
    """Writes the bare ``state_dict`` of a network, atomically.

    Attached to a validator with a key metric, it writes when the metric is the best so far; any number is better than
    NaN. Attached to a trainer, it writes at the end of every epoch and of the training. Only the first process writes.

    Args:
        model: the network to save.
        path: the file.
    """

    def __init__(self, model: nn.Module, path: str | os.PathLike[str]) -> None:
        self.model = model
        self.path = path

    def attach(self, engine: Workflow) -> None:
        # a validator compares its metric at the end of the epoch, in a handler registered before this one
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if isinstance(engine, Trainer):
            engine.add_event_handler(Events.COMPLETED, self)  # there may have been no epoch, as in No-CFT

    def __call__(self, engine: Workflow) -> None:
        by_metric = engine.state.key_metric_name is not None
        if engine.state.rank == 0 and (not by_metric or engine.state.best_metric_epoch == engine.state.epoch):
            save_model(self.model, self.path)
        if by_metric and math.isnan(engine.state.best_metric):
            engine.state.best_metric_epoch = -1  # as before the first validation: the next metric is the best
