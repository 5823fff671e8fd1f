"""A schedule of the learning rate for trainers that are run several times, as in federated learning."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import OneCycleLR

__all__ = ["ScheduleInRounds"]


class ScheduleInRounds(LrScheduleHandler):
    """MONAI's ``LrScheduleHandler`` with steps after every iteration; a schedule that is over starts anew with the run.

    MONAI's ``MonaiAlgo`` runs the same trainer in every round of federated learning.

    Args:
        lr_scheduler: a schedule as long as one run of the trainer.
    """

    def __init__(self, lr_scheduler: OneCycleLR) -> None:
        schedule: Any = lr_scheduler  # MONAI's annotation asks for a class that PyTorch no longer derives its own from
        super().__init__(schedule, print_lr=False, epoch_level=False)
        self.schedule = lr_scheduler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        super().attach(engine)

    def start(self) -> None:
        if self.schedule.last_epoch == self.schedule.total_steps:
            self.schedule.last_epoch = -1
            self.schedule.step()
