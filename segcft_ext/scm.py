r"""Structural causal model of the scalar variables: one mechanism for each, over a directed acyclic graph.

Counterfactuals in Pearl's three steps: *abduction* of the noise behind the factual values, *action* on some variables,
*prediction* of their descendants with the noise kept.

References:
    | Deep Structural Causal Models for Tractable Counterfactual Inference (Pawlowski et al., 2020)
    | https://arxiv.org/abs/2006.06485

Example:
    >>> scm = SCM(variables, parents={"heart_area": ["age", "sex"]})
    >>> scm.nll(values).backward()
    >>> scm.counterfactual(values, {"age": torch.full((len(values),), 80.0)})
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Generator, Tensor, nn

from segcft_ext.extra_state import pack, unpack
from segcft_ext.graph import topological_order
from segcft_ext.mechanisms import (
    BernoulliMechanism,
    CategoricalMechanism,
    FlowMechanism,
    Mechanism,
    ZeroInflatedMechanism,
)
from segcft_ext.variables import Variables

__all__ = ["SCM"]

Method = TypeVar("Method", bound=Callable[..., Any])


def _in_full_precision(method: Method) -> Method:
    """Run a method without autocast: in bfloat16 an area would have three digits."""

    @functools.wraps(method)
    def wrapped(self: SCM, *arguments: Any, **options: Any) -> Any:
        device = self.variables.low.device.type
        if not torch.amp.is_autocast_available(device):
            return method(self, *arguments, **options)
        with torch.autocast(device, enabled=False):
            return method(self, *arguments, **options)

    return cast("Method", wrapped)


class SCM(nn.Module):
    r"""Structural causal model :math:`v_k = f_k(u_k; pa_k)` with independent noise.

    .. math:: \log p(v) = \sum_k \log p(v_k \mid pa_k)

    All values are physical, (B, K) in the order of the variables, NaN where missing. Densities are those of the scaled
    values, so that nats can be compared between variables of different units.

    A *missing* value is not completed unnecessarily: a term of the likelihood counts only where the variable and all
    its parents are known, and a variable that is neither acted on nor a descendant of one that is stays missing. Where
    a value has to be completed, because the variable is a parent or its own parents change, its noise is drawn from the
    prior and its factual value follows from that noise and its parents; evidence from its children is not used.

    Args:
        variables: the variables, shared with the model that this SCM is part of.
        parents: the parents of each variable that has some; None means independent variables.

    Attributes:
        parents: the parents of every variable.
        order: the names, parents before children.

    Raises:
        ValueError: when the graph is no directed acyclic graph over the variables; see
            :func:`segcft_ext.graph.topological_order`.
    """

    def __init__(self, variables: Variables, parents: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__()
        parents = parents or {}
        self.variables = variables
        self.order = topological_order(variables.names, parents)
        self.parents: dict[str, list[str]] = {name: list(parents.get(name, [])) for name in variables.names}
        self._parent_columns = [[variables.index(p) for p in self.parents[name]] for name in variables.names]
        channels = range(variables.encoded_channels)
        self._parent_channels = [
            [c for p in self.parents[name] for c in channels[variables.encoded_slice(p)]] for name in variables.names
        ]
        # A list, not a dict: a ModuleDict refuses variables with names such as "type" or "lung.left".
        self.mechanisms = nn.ModuleList(
            _build_mechanism(kind, zero_inflated, len(parent_channels), num_categories)
            for kind, zero_inflated, parent_channels, num_categories in zip(
                variables.kinds, variables.zero_inflated, self._parent_channels, variables.num_categories
            )
        )

    @_in_full_precision
    def log_prob(self, values: Tensor) -> Tensor:
        """Log-density of each variable given its parents, (B, K) -> (B, K), in nats; 0 where it or a parent is missing.

        Raises:
            RuntimeError: when the variables are not fitted.
        """
        self._require_fitted()
        missing = values.isnan()
        # Filled before anything is computed from it, so that no NaN enters the backward pass.
        filled = torch.where(missing, self.variables.low, values)
        scaled, encoded = self.variables.scale(filled), self.variables.encode(filled)
        terms = []
        for k, mechanism in enumerate(self._mechanisms()):
            term = mechanism.log_prob(scaled[:, k], encoded[:, self._parent_channels[k]])
            terms.append(term.masked_fill(missing[:, [k, *self._parent_columns[k]]].any(dim=1), 0))
        return torch.stack(terms, dim=1)

    def nll(self, values: Tensor) -> Tensor:
        """Negative log-likelihood in nats for each case, mean over the batch: a scalar."""
        return -self.log_prob(values).sum(dim=1).mean()

    @_in_full_precision
    def abduct(self, values: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Noise behind factual values (B, K), by name, each (B, …); from the prior where the value is missing.

        Args:
            values: the factual values.
            generator: random generator for binary, categorical, zero-inflated and missing values; by default PyTorch's
                global one.

        Raises:
            RuntimeError: when the variables are not fitted.
        """
        return self._abduct(values, generator)[0]

    @_in_full_precision
    def predict(self, noise: Mapping[str, Tensor], do: Mapping[str, Tensor] | None = None) -> Tensor:
        """Values (B, K) that follow from the noise of all variables under an action.

        Args:
            noise: as :meth:`abduct` gives it.
            do: physical targets, each (B,), of the variables acted on.

        Raises:
            RuntimeError: when the variables are not fitted.
            ValueError: as :meth:`counterfactual`.
        """
        self._require_fitted()
        count = len(next(iter(noise.values())))
        target, acted = self._targets(do or {}, self.variables.low.new_empty(count, len(self.variables)))
        columns = list(torch.zeros_like(target).unbind(dim=1))
        for name in self.order:
            k = self.variables.index(name)
            columns[k] = torch.where(acted[:, k], target[:, k], self._equation(k, noise[name], columns))
        return torch.stack(columns, dim=1)

    def sample(self, count: int, generator: Generator | None = None) -> Tensor:
        """Values of ``count`` cases from the model: (count, K)."""
        return self.predict(
            {name: m.sample_noise(count, generator) for name, m in zip(self.variables.names, self._mechanisms())}
        )

    def counterfactual(self, values: Tensor, do: Mapping[str, Tensor], generator: Generator | None = None) -> Tensor:
        """The values these cases would have under an action: (B, K), differentiable in the targets.

        Args:
            values: factual values (B, K).
            do: physical targets, each (B,), of the variables acted on.
            generator: as of :meth:`abduct`.

        Raises:
            RuntimeError: when the variables are not fitted.
            ValueError: when a variable of ``do`` is unknown, its targets are not (B,) or one is not finite.
        """
        return self.counterfactual_rows(values, *self._targets(do, values), generator)

    @_in_full_precision
    def counterfactual_rows(
        self, values: Tensor, target: Tensor, mask: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Counterfactuals with a separate action for each case: (B, K).

        A value is recomputed only where a parent's value has changed. All others are copied, bit by bit: no action, or
        one that sets a variable to its factual value, gives the factual values back exactly.

        Args:
            values: factual values (B, K).
            target: physical targets (B, K).
            mask: which variables are acted on, boolean (B, K). A missing target is no action.
            generator: as of :meth:`abduct`.
        """
        self._require_fitted()
        acted = mask & ~target.isnan()
        if not any(self._parent_columns):
            return torch.where(acted, target, values)
        noise, factual = self._abduct(values, generator)
        columns, results = list(factual.unbind(dim=1)), list(values.unbind(dim=1))
        for name in self.order:
            k, its_parents = self.variables.index(name), self._parent_columns[self.variables.index(name)]
            new, replaced = target[:, k], acted[:, k]
            if its_parents:
                changed = torch.stack([columns[p] != factual[:, p] for p in its_parents]).any(dim=0)
                new = torch.where(replaced, new, self._equation(k, noise[name], columns))
                replaced = replaced | changed
            columns[k] = torch.where(replaced, new, columns[k])
            results[k] = torch.where(replaced, new, results[k])
        return torch.stack(results, dim=1)

    def get_extra_state(self) -> Tensor:
        return pack({"parents": self.parents})

    def set_extra_state(self, state: Any) -> None:
        state = unpack(state)
        if state["parents"] != self.parents:
            raise ValueError(f"parents: the checkpoint holds {state['parents']}, expected {self.parents}")

    def _mechanisms(self) -> list[Mechanism]:
        return cast("list[Mechanism]", list(self.mechanisms))

    def _equation(self, k: int, noise: Tensor, columns: Sequence[Tensor]) -> Tensor:
        """Physical value (B,) of variable k from its noise and the columns of its parents."""
        encoded = self.variables.encode(torch.stack(list(columns), dim=1))
        scaled = self._mechanisms()[k].predict(noise, encoded[:, self._parent_channels[k]])
        return self.variables.unscale(scaled[:, None].expand(-1, len(self.variables)))[:, k]

    def _abduct(self, values: Tensor, generator: Generator | None) -> tuple[dict[str, Tensor], Tensor]:
        """Noise by name, and the factual values with the missing ones completed, (B, K)."""
        self._require_fitted()
        noise: dict[str, Tensor] = {}
        columns = list(values.unbind(dim=1))
        for name in self.order:
            k, mechanism = self.variables.index(name), self._mechanisms()[self.variables.index(name)]
            completed = torch.stack(columns, dim=1)
            parents = self.variables.encode(completed)[:, self._parent_channels[k]]
            missing = values[:, k].isnan()
            filled = torch.where(missing[:, None], self.variables.low, values)
            noise[name] = mechanism.abduct(self.variables.scale(filled)[:, k], parents, generator)
            # Drawn whether or not a value is missing: the check would synchronise with the device.
            prior = mechanism.sample_noise(len(values), generator)
            noise[name] = torch.where(missing if prior.ndim == 1 else missing[:, None], prior, noise[name])
            columns[k] = torch.where(missing, self._equation(k, noise[name], columns), columns[k])
        return noise, torch.stack(columns, dim=1)

    def _targets(self, do: Mapping[str, Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
        """The action as targets and mask, both (B, K)."""
        columns = list(torch.full_like(values, math.nan).unbind(dim=1))
        for name, target in do.items():
            if not isinstance(target, Tensor) or target.shape != values.shape[:1]:
                found = f"shape {tuple(target.shape)}" if isinstance(target, Tensor) else repr(target)
                raise ValueError(f"do[{name!r}]: found {found}, expected a tensor of shape ({len(values)},)")
            if not target.isfinite().all():
                raise ValueError(f"do[{name!r}]: found {target.tolist()}, expected finite targets")
            columns[self.variables.index(name)] = target.to(values)
        targets = torch.stack(columns, dim=1)
        return targets, ~targets.isnan()

    def _require_fitted(self) -> None:
        if not self.variables.fitted:
            raise RuntimeError("SCM: the variables have no range yet; call variables.fit(…) or load a checkpoint first")


def _build_mechanism(kind: str, zero_inflated: bool, parent_channels: int, num_categories: int) -> Mechanism:
    if kind == "continuous":
        return ZeroInflatedMechanism(parent_channels) if zero_inflated else FlowMechanism(parent_channels)
    if kind == "binary":
        return BernoulliMechanism(parent_channels)
    return CategoricalMechanism(parent_channels, num_categories)
