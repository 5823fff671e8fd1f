"""Validation every few epochs and after the last one, whose weights would otherwise never be saved."""

from __future__ import annotations

from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler

__all__ = ["FinalValidationHandler"]


class FinalValidationHandler(ValidationHandler):
    """MONAI's ``ValidationHandler``, which also validates after the last epoch if the interval does not divide it."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self.due), self)

    def due(self, engine: Engine, epoch: int) -> bool:
        """Whether to validate after this epoch."""
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs
