r"""Mechanisms: the structural equation of one variable, :math:`v = f(u; pa)`, with noise that can be abducted.

A mechanism works on what the network sees: a continuous value is scaled to [-1, 1] by the training range, a binary
value is 0 or 1, a categorical one the index of its category; parents are encoded. (See
:class:`segcft_ext.variables.Variables`.) Noise is held in double precision: where a flow is steep or flat, rounding to
single precision would come back from the inverse a thousand times larger.

References:
    | Deep Structural Causal Models for Tractable Counterfactual Inference (Pawlowski et al., 2020)
    | https://arxiv.org/abs/2006.06485
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from zuko.transforms import MonotonicRQSTransform

__all__ = ["BernoulliMechanism", "CategoricalMechanism", "FlowMechanism", "Mechanism", "ZeroInflatedMechanism"]


class Mechanism(nn.Module, ABC):
    """Abstract mechanism :math:`v = f(u; pa)` of one variable.

    Random draws take an optional generator; without one they follow PyTorch's global seed. Shapes: values (B,),
    encoded parents (B, Pp), noise (B, …) in float64.
    """

    @abstractmethod
    def log_prob(self, value: Tensor, parents: Tensor) -> Tensor:
        r""":math:`\log p(v \mid pa)` in nats, shape (B,); differentiable in everything continuous."""

    @abstractmethod
    def abduct(self, value: Tensor, parents: Tensor, generator: Generator | None = None) -> Tensor:
        r"""Noise :math:`u \sim p(u \mid v, pa)`, shape (B, …); :meth:`predict` gives the value back from it."""

    @abstractmethod
    def predict(self, noise: Tensor, parents: Tensor) -> Tensor:
        """:math:`f(u; pa)`, shape (B,), of the parents' dtype."""

    @abstractmethod
    def sample_noise(self, count: int, generator: Generator | None = None) -> Tensor:
        """Noise of ``count`` cases from its prior, shape (count, …)."""

    def sample(self, parents: Tensor, generator: Generator | None = None) -> Tensor:
        r"""Values :math:`v \sim p(v \mid pa)`, shape (B,)."""
        return self.predict(self.sample_noise(len(parents), generator), parents)


class FlowMechanism(Mechanism):
    r"""Continuous variable by an affine map and a monotonic rational-quadratic spline, both conditioned on the parents.

    .. math:: u = \text{spline}_{pa}\left( \frac{s - m(pa)}{b(pa)} \right), \qquad u \sim \mathcal{N}(0, 1)

    where s is the scaled value. The affine part standardises, so that nearly all of the data lie in the spline's box
    [-4, 4]; outside of it the spline is the identity, and the whole stays a bijection of the real line with Gaussian
    tails. It begins as :math:`\mathcal{N}(0, 0.4^2)`, about the spread of a variable that is scaled by its range.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Args:
        parent_channels: Pp, number of encoded channels of the parents; 0 for a root.
    """

    bins = 8
    bound = 4.0
    # Bounds the spline's slopes: its inverse divides by them.
    min_slope = 1e-2
    initial_scale = 0.4
    # |log b - log initial_scale| stays below this, so that no outlying parent makes the scale overflow.
    max_log_scale = 4.0

    def __init__(self, parent_channels: int) -> None:
        super().__init__()
        self.conditioner = Conditioner(parent_channels, 2 + 3 * self.bins - 1)

    def log_prob(self, value: Tensor, parents: Tensor) -> Tensor:
        location, log_scale, spline = self._transforms(parents, value.dtype)
        noise, log_slope = spline.call_and_ladj((value - location) * torch.exp(-log_scale))
        return -0.5 * (noise**2 + math.log(2 * math.pi)) + log_slope - log_scale

    def abduct(self, value: Tensor, parents: Tensor, generator: Generator | None = None) -> Tensor:
        location, log_scale, spline = self._transforms(parents, torch.float64)
        return spline((value.double() - location) * torch.exp(-log_scale))

    def predict(self, noise: Tensor, parents: Tensor) -> Tensor:
        location, log_scale, spline = self._transforms(parents, torch.float64)
        return (spline.inv(noise) * torch.exp(log_scale) + location).to(parents.dtype)

    def sample_noise(self, count: int, generator: Generator | None = None) -> Tensor:
        like = self.conditioner.bias
        device = generator.device if generator is not None else like.device
        return torch.randn(count, generator=generator, device=device, dtype=torch.float64).to(like.device)

    def _transforms(self, parents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, MonotonicRQSTransform]:
        """Location (B,), logarithm of the scale (B,) and spline."""
        outputs = self.conditioner(parents).to(dtype)
        location, raw, widths, heights, derivatives = outputs.split([1, 1, self.bins, self.bins, self.bins - 1], dim=-1)
        log_scale = math.log(self.initial_scale) + self.max_log_scale * torch.tanh(raw / self.max_log_scale)
        spline = MonotonicRQSTransform(widths, heights, derivatives, bound=self.bound, slope=self.min_slope)
        return location.squeeze(-1), log_scale.squeeze(-1), spline


class BernoulliMechanism(Mechanism):
    r"""Binary variable by logistic noise.

    .. math:: v = [\ell(pa) + u > 0], \qquad u \sim \text{Logistic}(0, 1), \qquad p(v = 1) = \sigma(\ell)

    Abduction draws u from the logistic distribution cut off at :math:`-\ell`, on the side that the value is on: this is
    the Gumbel-max mechanism of two categories, as the difference of two Gumbels is logistic.

    Args:
        parent_channels: Pp, number of encoded channels of the parents; 0 for a root.
    """

    def __init__(self, parent_channels: int) -> None:
        super().__init__()
        self.conditioner = Conditioner(parent_channels, 1)

    def log_prob(self, value: Tensor, parents: Tensor) -> Tensor:
        return F.logsigmoid((2 * value - 1) * self._logit(parents).to(value.dtype))

    def abduct(self, value: Tensor, parents: Tensor, generator: Generator | None = None) -> Tensor:
        sign = 2 * value.double() - 1
        # On the side of the value the tail holds sigma(sign * logit); a uniform share of it is inverted in logarithms.
        log_tail = F.logsigmoid(sign * self._logit(parents)) + self._uniform(len(value), generator).log()
        return sign * (torch.log(-torch.expm1(log_tail)) - log_tail)

    def predict(self, noise: Tensor, parents: Tensor) -> Tensor:
        return (self._logit(parents) + noise > 0).to(parents.dtype)

    def sample_noise(self, count: int, generator: Generator | None = None) -> Tensor:
        return torch.logit(self._uniform(count, generator))

    def _logit(self, parents: Tensor) -> Tensor:
        return self.conditioner(parents).squeeze(-1).double()

    def _uniform(self, count: int, generator: Generator | None) -> Tensor:
        return _uniform((count,), self.conditioner.bias, generator)


class CategoricalMechanism(Mechanism):
    r"""Categorical variable by the Gumbel-max trick.

    .. math:: v = \arg\max_c \, (\ell_c(pa) + u_c), \qquad u_c \sim \text{Gumbel}(0, 1), \qquad
        p(v) = \text{softmax}(\ell)_v

    Abduction draws from the posterior of the Gumbels top-down: the maximum Z, a Gumbel located at the logsumexp of the
    logits, stands at the observed category, and all others are Gumbels cut off at Z. The mechanism is counterfactually
    stable: the category does not change to one whose odds against the observed one have not risen.

    References:
        | Counterfactual Off-Policy Evaluation with Gumbel-Max Structural Causal Models (Oberst & Sontag, 2019)
        | https://arxiv.org/abs/1905.05824
        | A* Sampling (Maddison et al., 2014)
        | https://arxiv.org/abs/1411.0030

    Args:
        parent_channels: Pp, number of encoded channels of the parents; 0 for a root.
        num_categories: C.
    """

    def __init__(self, parent_channels: int, num_categories: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.conditioner = Conditioner(parent_channels, num_categories)

    def log_prob(self, value: Tensor, parents: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(self.conditioner(parents).to(value.dtype), dim=-1)
        return log_probabilities.gather(-1, value.long()[:, None]).squeeze(-1)

    def abduct(self, value: Tensor, parents: Tensor, generator: Generator | None = None) -> Tensor:
        logits = self.conditioner(parents).double()
        maximum = torch.logsumexp(logits, dim=-1, keepdim=True) + self._gumbel((len(value), 1), generator)
        others = -torch.logaddexp(-maximum, -(logits + self.sample_noise(len(value), generator)))
        # Strictly below the maximum, also after the rounding of "- logits + logits": a tie would be another category.
        others = torch.minimum(others, maximum - 1e-9)
        observed = F.one_hot(value.long(), self.num_categories).bool()
        return torch.where(observed, maximum, others) - logits

    def predict(self, noise: Tensor, parents: Tensor) -> Tensor:
        return (self.conditioner(parents).double() + noise).argmax(dim=-1).to(parents.dtype)

    def sample_noise(self, count: int, generator: Generator | None = None) -> Tensor:
        return self._gumbel((count, self.num_categories), generator)

    def _gumbel(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        return -torch.log(-torch.log(_uniform(shape, self.conditioner.bias, generator)))


class ZeroInflatedMechanism(Mechanism):
    r"""Continuous variable, never negative, that is exactly zero in many cases: the area of a plaque.

    .. math:: v = [\ell(pa) + u_1 > 0] \; \tau \, \text{softplus}(f(u_2; pa) / \tau), \qquad
        u_1 \sim \text{Logistic}(0, 1), \quad u_2 \sim \mathcal{N}(0, 1)

    where v is in shares of the training maximum (zero is -1 on the scale of the networks) and f a
    :class:`FlowMechanism`: the scale of the positive part is logarithmic below :math:`\tau = 0.1`, so that nothing
    positive comes close to zero, and linear above, so that its tail is a Gaussian's.

    The density is a mixed one: for a zero, :math:`\log p` is the logarithm of a probability; for a positive value, that
    of a probability times a density.

    Abduction knows on which side of :math:`-\ell` the noise :math:`u_1` lies, and draws it from there. From a positive
    value :math:`u_2` follows exactly. A zero says nothing about it, so it is drawn from its prior: how large an absent
    plaque would be is unknown, and the generator fixes it.

    Args:
        parent_channels: Pp, number of encoded channels of the parents; 0 for a root.
    """

    zero = -1.0
    bend = 0.1
    # Smaller positive shares are raised to this one, so that none is rounded to zero on the scale from -1 to 1.
    smallest = 1e-6

    def __init__(self, parent_channels: int) -> None:
        super().__init__()
        self.presence = BernoulliMechanism(parent_channels)
        self.amount = FlowMechanism(parent_channels)

    def log_prob(self, value: Tensor, parents: Tensor) -> Tensor:
        present = value > self.zero
        share = self._share(value, present)
        log_slope = -torch.log(-2 * torch.expm1(-share / self.bend))
        amount = self.amount.log_prob(self._level(share), parents) + log_slope
        return self.presence.log_prob(present.to(value.dtype), parents) + torch.where(present, amount, 0)

    def abduct(self, value: Tensor, parents: Tensor, generator: Generator | None = None) -> Tensor:
        present = value > self.zero
        presence = self.presence.abduct(present.to(value.dtype), parents, generator)
        prior = self.amount.sample_noise(len(value), generator)
        amount = self.amount.abduct(self._level(self._share(value.double(), present)), parents)
        return torch.stack([presence, torch.where(present, amount, prior)], dim=1)

    def predict(self, noise: Tensor, parents: Tensor) -> Tensor:
        presence, amount = noise.unbind(dim=1)
        share = self.bend * F.softplus(self.amount.predict(amount, parents) / self.bend)
        value = 2 * share.clamp_min(self.smallest) - 1
        return torch.where(self.presence.predict(presence, parents) > 0, value, self.zero)

    def sample_noise(self, count: int, generator: Generator | None = None) -> Tensor:
        drawn = [mechanism.sample_noise(count, generator) for mechanism in (self.presence, self.amount)]
        return torch.stack(drawn, dim=1)

    def _share(self, value: Tensor, present: Tensor) -> Tensor:
        """Share of the training maximum; where absent, a dummy value, so that its gradient is not NaN."""
        return ((value.masked_fill(~present, 0) + 1) / 2).clamp_min(self.smallest)

    def _level(self, share: Tensor) -> Tensor:
        """Inverse of the softplus."""
        return share + self.bend * torch.log(-torch.expm1(-share / self.bend))


class Conditioner(nn.Module):
    """Parameters of a mechanism from its parents, (B, Pp) -> (B, outputs): one hidden layer; for a root, constants.

    All outputs are zero in the beginning.
    """

    hidden_channels = 32

    def __init__(self, parent_channels: int, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.network: nn.Sequential | None = None
        if parent_channels:
            last = nn.Linear(self.hidden_channels, outputs, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(nn.Linear(parent_channels, self.hidden_channels), nn.SiLU(), last)

    def forward(self, parents: Tensor) -> Tensor:
        if self.network is None:
            return self.bias.expand(len(parents), -1)
        return self.bias + self.network(parents)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    """Float64 numbers on the open interval (0, 1), drawn where the generator is and moved to ``like``'s device."""
    device = generator.device if generator is not None else like.device
    numbers = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    return numbers.clamp(1e-12, 1 - 1e-12).to(like.device)
