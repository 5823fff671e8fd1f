"""One progress bar for a whole training."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.engines import Workflow

__all__ = ["Progress"]


class Progress:
    """A progress bar over the epochs of a trainer, with the last loss and the last values of the named metrics.

    Ignite's own log messages about every epoch would interrupt the bar; only its warnings are shown.

    Args:
        description: text in front of the bar.
        validator: the validator whose metrics are shown.
        metrics: names of the validator's metrics to show.
    """

    def __init__(
        self, description: str = "training", validator: Workflow | None = None, metrics: list[str] | None = None
    ) -> None:
        self.bar = ProgressBar(persist=True, desc=description, mininterval=1.0)
        self.validator = validator
        self.metrics = metrics or []

    def attach(self, engine: Workflow) -> None:
        def postfix(output: Any) -> dict[str, float]:
            first = output[0] if isinstance(output, list) else output
            shown = {"loss": float(torch.as_tensor(first["loss"]).detach())}
            known = self.validator.state.metrics if self.validator is not None else {}
            return shown | {name: float(known[name]) for name in self.metrics if name in known}

        self.bar.attach(
            engine, output_transform=postfix, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED
        )
        for quiet in (engine, self.validator):
            if quiet is not None:
                quiet.logger.setLevel(logging.WARNING)
