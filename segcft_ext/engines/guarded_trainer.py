"""Base of the trainers: gradients are clipped, and steps with an unsound loss or gradient are skipped and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from segcft_ext.dscm import unwrap
from segcft_ext.processes import mean_over_processes

__all__ = ["GuardedTrainer", "numbers"]


class GuardedTrainer(Trainer):
    """A MONAI trainer of a DSCM whose optimiser steps are guarded.

    The gradient norm is that of the optimiser's parameters, so frozen networks do not count. A step is skipped if its
    loss or norm is not finite; ``engine.state.metrics["skipped_steps"]`` counts these over the whole run. The output of
    a step is a list with one dict of numbers, the form in which MONAI's handlers expect the output of a trainer.

    Args:
        device: device to train on.
        max_epochs: number of epochs.
        train_data_loader: batches for ``prepare_batch``.
        network: the DSCM that is trained, in train mode during a step; may be wrapped in ``DistributedDataParallel``.
        optimizer: optimiser of the parameters that are trained.
        prepare_batch: ``(batch, device, non_blocking) -> (image, values, spacing, reference)``.
        clip_gradient_norm: gradient norm to which larger ones are clipped.
        train_handlers: ignite handlers.
        amp: whether to autocast to bfloat16 on a CUDA device.

    Attributes:
        dscm: the network without the wrapper.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        optimizer: Optimizer,
        prepare_batch: Callable[..., Any],
        clip_gradient_norm: float = 1.0,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            prepare_batch=prepare_batch,
            handlers=train_handlers,
        )
        self.network = network
        self.dscm = unwrap(network)
        self.optimizer = optimizer
        self.clip_gradient_norm = clip_gradient_norm
        self.bfloat16 = amp and torch.device(device).type == "cuda"
        self.state.metrics["skipped_steps"] = 0

    def autocast(self) -> torch.autocast:
        """The autocast context of a forward pass."""
        return torch.autocast(torch.device(self.state.device).type, torch.bfloat16, enabled=self.bfloat16)

    def forward_pass(self, terms: Callable[..., dict[str, Tensor]], *batch: Any) -> dict[str, Tensor]:
        """``terms(*batch)`` in train mode and under autocast, with gradients that will be averaged over the processes.

        ``DistributedDataParallel`` averages only gradients of what the module's ``forward`` computes. A DSCM's losses
        are computed elsewhere, so for this one call ``terms`` replaces its ``forward``.
        """
        self.dscm.train()
        with self.autocast():
            if not isinstance(self.network, DistributedDataParallel):
                return terms(*batch)
            with _redirected(self.dscm, terms):
                return self.network(*batch)

    def guarded_step(self, loss: Tensor) -> float:
        """Backward pass and optimiser step; returns the norm before clipping, NaN for a loss that is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        if not mean_over_processes(loss).isfinite():  # on a CPU, the gradient of sampling at NaN crashes the process
            self.state.metrics["skipped_steps"] += 1
            return math.nan
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip_gradient_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            self.state.metrics["skipped_steps"] += 1
        return norm


@contextmanager
def _redirected(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Replace ``module.forward`` by another function."""
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]


def numbers(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as plain numbers, in one transfer; to be called after the step, which it would make wait."""
    return dict(zip(terms, torch.stack([term.detach() for term in terms.values()]).tolist()))
