"""Exponential moving average of a network's weights, which is what is validated and saved as the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["WeightAverage", "warmed_up_average"]

Weights = tuple[Tensor, ...] | list[Tensor]


def warmed_up_average(decay: float = 0.999) -> Callable[[Weights, Weights, Tensor | int], None]:
    """An exponential moving average whose decay grows with the number n of updates: min(decay, (1 + n) / (10 + n)).

    The average then spans about the last tenth of a short training instead of remembering its untrained start.

    Returns:
        A ``multi_avg_fn`` of :class:`~torch.optim.swa_utils.AveragedModel`.
    """

    @torch.no_grad()
    def update(averaged: Weights, current: Weights, count: Tensor | int) -> None:
        n = int(count)  # synchronises with the device
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


class WeightAverage:
    """Updates an :class:`~torch.optim.swa_utils.AveragedModel` after every iteration.

    When the training starts, the average becomes an exact copy of the network, including what was fitted or described
    after it was built (the range of the variables, the description of the data).

    The network may hold the description of another site's data, as in federated learning, where the weights come from a
    server. ``describe`` gives the average, which is what is saved, that of its own.

    Args:
        network: the network that is trained, without ``DistributedDataParallel`` around it.
        average: the averaged model of that network.
        describe: records in the averaged network what it is trained on, whenever the training starts.
    """

    def __init__(
        self, network: nn.Module, average: AveragedModel, describe: Callable[[nn.Module], None] | None = None
    ) -> None:
        self.network = network
        self.average = average
        self.describe = describe

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def start(self) -> None:
        if self.average.n_averaged == 0:  # otherwise it was restored from a checkpoint
            self.average.module.load_state_dict(self.network.state_dict())
        if self.describe is not None:
            self.describe(self.average.module)

    def update(self) -> None:
        self.average.update_parameters(self.network)
