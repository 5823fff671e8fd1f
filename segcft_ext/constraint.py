"""The constraint of counterfactual fine-tuning (docs/method.md): real images keep their ELBO."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Lagrangian"]


class Lagrangian(nn.Module):
    """The damped multiplier of FE(x) <= c (Platt and Barr 1987), FE being the negative ELBO of real images.

    .. math:: L = L_{cf} - (\\lambda - damping \\cdot sg(c - FE)) (c - FE), \\qquad \\lambda \\ge 0

    Args:
        initial: lambda at the start. Starting from zero with strong damping was seen to deadlock: batch noise in the
            ELBO times the damping swamps the gradient.
        learning_rate: of the gradient ascent on lambda.
        damping: strength of the damping.
        slack: by how much FE may exceed that of the pretrained model, in nats per dimension.
    """

    multiplier: Tensor
    bound: Tensor

    def __init__(
        self, initial: float = 1.0, learning_rate: float = 0.1, damping: float = 0.0, slack: float = 0.1
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.damping = damping
        self.slack = slack
        self.register_buffer("multiplier", torch.tensor(float(initial)))
        self.register_buffer("bound", torch.tensor(torch.nan))

    @property
    def bounded(self) -> bool:
        """Whether the bound c has been measured."""
        return bool(self.bound.isfinite())

    def set_bound(self, pretrained: Tensor | float) -> None:
        """Set c to the pretrained model's negative ELBO, measured on (augmented) training data, plus the slack."""
        self.bound.fill_(float(pretrained) + self.slack)

    def penalty(self, negative_elbo: Tensor) -> Tensor:
        """What the constraint adds to the loss."""
        room = self.bound - negative_elbo
        return -(self.multiplier - self.damping * room.detach()) * room

    @torch.no_grad()
    def ascend(self, negative_elbo: Tensor) -> None:
        """One step of gradient ascent on lambda, kept at zero or above."""
        self.multiplier.add_(self.learning_rate * (negative_elbo.detach() - self.bound)).clamp_(min=0)
