"""Base of the validations of a DSCM: figures of each case, and their means as the engine's metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter, lt
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.engines import Evaluator
from monai.utils import ForwardMode
from torch import Tensor, nn

from segcft_ext.dscm import unwrap
from segcft_ext.seeding import same_draws

__all__ = ["CaseEvaluator"]

EVERY_CASE = ("negative_elbo",)  # figures whose mean is NaN if that of any case is


class CaseEvaluator(Evaluator, ABC):
    """A MONAI evaluator of a DSCM whose metrics are means over cases; for all of them, lower is better.

    Each validation batch is seeded by its number, so that all epochs are compared on the same draws.

    Args:
        device: device to evaluate on.
        val_data_loader: batches for ``prepare_batch``.
        network: a DSCM, or a weight average of one.
        prepare_batch: ``(batch, device, non_blocking) -> (image, values, spacing, reference)``, see
            :class:`~segcft_ext.batches.PrepareVariables`.
        names: the figures that :meth:`figures` returns; the first one is the key metric.
        prefix: prefix of the names of the metrics, such as "val_" during a training.
        val_handlers: ignite handlers.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable[Any],
        network: nn.Module,
        prepare_batch: Callable[..., Any],
        names: Sequence[str],
        prefix: str = "",
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        metrics: dict[str, Metric] = {
            prefix + name: _CaseMean(every=name in EVERY_CASE, output_transform=itemgetter(name)) for name in names
        }
        key = prefix + names[0]
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            prepare_batch=prepare_batch,
            key_val_metric={key: metrics.pop(key)},
            additional_metrics=metrics,
            metric_cmp_fn=lt,
            val_handlers=val_handlers,
            decollate=False,
            mode=ForwardMode.EVAL,
        )
        self.network = network
        self.dscm = unwrap(network)

    @abstractmethod
    def figures(
        self, image: Tensor, values: Tensor, spacing: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        """The figures of a batch of cases, (B,) each."""

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Tensor]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        with same_draws(self.state.iteration), self.mode(self.network):
            return self.figures(*batch)


class _CaseMean(Metric):
    """The mean of a figure (B,) over all cases of all batches and processes.

    Args:
        every: whether a case without the figure (NaN) makes the mean NaN, which never counts as better than a number;
            otherwise such cases are left out.
        **arguments: see :class:`ignite.metrics.Metric`.
    """

    def __init__(self, every: bool = False, **arguments: Any) -> None:
        self.every = every
        super().__init__(**arguments)

    @reinit__is_reduced
    def reset(self) -> None:
        self._sum, self._count = 0.0, 0

    @reinit__is_reduced
    def update(self, output: Tensor) -> None:
        figures = output.detach().cpu().double()
        if not self.every:
            figures = figures[~figures.isnan()]
        self._sum += float(figures.sum())
        self._count += len(figures)

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        return self._sum / self._count if self._count else math.nan
