"""Reductions over the processes of a distributed training."""

from __future__ import annotations

import ignite.distributed as idist
import torch
from torch import Tensor

__all__ = ["mean_over_processes"]


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the value itself where there is one process."""
    if idist.get_world_size() == 1:
        return value
    return torch.as_tensor(idist.all_reduce(value.detach().clone())) / idist.get_world_size()
