"""Seeding each epoch by its number, so that a resumed training draws the same numbers as an uninterrupted one."""

from __future__ import annotations

import random

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Workflow

from segcft_ext.seeding import mixed

__all__ = ["EpochSeed", "seed_epoch"]


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed Python, NumPy and PyTorch from (seed, epoch, rank); near seeds give unrelated streams."""
    state = mixed(seed, epoch, rank)
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


class EpochSeed:
    """Seeds every epoch of a trainer, before its data loader shuffles.

    Args:
        seed: seed of the whole training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Workflow) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        seed_epoch(self.seed, engine.state.epoch, engine.state.rank)
