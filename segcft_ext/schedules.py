"""The schedule of the learning rate."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer, lr_scheduler

__all__ = ["OneCycleLR"]


class OneCycleLR(lr_scheduler.OneCycleLR):
    """PyTorch's schedule, made to work for a warm-up of exactly one step, where PyTorch's own divides by zero.

    The learning rate of that step is the highest one, as with shorter warm-ups.

    Args:
        optimizer: the optimizer.
        max_lr: the highest learning rate, or one for each parameter group.
        total_steps: number of steps of the training.
        pct_start: share of the steps that is the warm-up.
        kwargs: see PyTorch's class.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: float | list[float], total_steps: int, pct_start: float, **kwargs: Any
    ) -> None:
        if pct_start * total_steps == 1:
            pct_start *= 0.999
        super().__init__(optimizer, max_lr, total_steps, pct_start=pct_start, **kwargs)
