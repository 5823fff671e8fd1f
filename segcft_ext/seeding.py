"""Random draws that are the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["mixed", "same_draws"]


def mixed(*numbers: int) -> int:
    """One seed from several numbers; near numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def same_draws(seed: int) -> Iterator[None]:
    """A context in which PyTorch's global generators draw the same numbers each time; their state is restored after."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
