"""The scalar variables of a model: names, kinds, and the conversion of physical units to network input.

Everywhere else a batch of variables is a float32 tensor of shape (B, K) in physical units, NaN where missing.

Example:
    >>> variables = Variables([{"name": "age", "kind": "continuous"}, {"name": "sex", "kind": "binary"}])
    >>> variables.fit(torch.tensor([[20.0, 0.0], [80.0, 1.0]]), units=["years", ""])
    >>> variables.encode(torch.tensor([[35.0, 1.0], [math.nan, 0.0]]))
    tensor([[-0.5000,  1.0000],
            [ 0.0000, -1.0000]])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segcft_ext.extra_state import pack, unpack

__all__ = ["KINDS", "Variables"]

KINDS = ("continuous", "binary", "categorical")
KEYS = {"name", "kind", "num_categories", "zero_inflated"}


class Variables(nn.Module):
    r"""Scalar variables with their scaling to [-1, 1] by the range of the training split.

    .. math:: s_k = 2 \frac{v_k - low_k}{high_k - low_k} - 1

    The range, the quantiles, the units and the names of categories come from :meth:`fit` and are saved in the
    ``state_dict``; before that they are NaN and empty.

    Args:
        definitions: one plain mapping for each variable: ``name``, ``kind`` ("continuous", "binary" or "categorical")
            and, for a categorical one only, ``num_categories``. A continuous one that is never negative and exactly
            zero in many cases (the area of a plaque) says ``zero_inflated: True``.

    Attributes:
        names: the K names, in the order of the columns of every ``values`` tensor.
        kinds: the kind of each variable.
        num_categories: number of categories of each variable; 0 for a continuous one.
        zero_inflated: whether each variable has a point mass at zero.
        units: the physical unit of each variable; "" until fitted and for a variable without one.
        categories: names of the categories of each variable; empty where not known.
        encoded_channels: P, number of channels of the encoding: 1 for a continuous or binary variable, C for a
            categorical one.
        low, high: range of the training split, shape (K,); 0 and C - 1 where not continuous.
        quantiles: quantiles of the training split at 0, 1, …, 100 %, shape (K, 101).
        fitted: whether the range of every variable is known, from :meth:`fit` or from a ``state_dict``.

    Raises:
        ValueError: when a definition is malformed; names the definition and the key.
    """

    low: Tensor
    high: Tensor
    quantiles: Tensor
    is_continuous: Tensor

    def __init__(self, definitions: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if not definitions:
            raise ValueError("variables: found none, expected at least one definition")
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.num_categories: list[int] = []
        self.zero_inflated: list[bool] = []
        for position, definition in enumerate(definitions):
            name, kind, num_categories = _validate_definition(definition, f"variables[{position}]")
            if name in self.names:
                raise ValueError(f"variables[{position}].name: found {name!r} again, expected each name once")
            self.names.append(name)
            self.kinds.append(kind)
            self.num_categories.append(num_categories)
            self.zero_inflated.append(bool(definition.get("zero_inflated")))
        size = len(self.names)
        self.units: list[str] = [""] * size
        self.categories: list[list[str]] = [[] for _ in range(size)]
        self.fitted = False  # a flag, since reading the buffers would synchronise with the device
        self.register_buffer("low", torch.full((size,), math.nan))
        self.register_buffer("high", torch.full((size,), math.nan))
        self.register_buffer("quantiles", torch.full((size, 101), math.nan))
        # Follows from the definitions, so it has no place in a checkpoint.
        self.register_buffer("is_continuous", torch.tensor([k == "continuous" for k in self.kinds]), persistent=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def encoded_channels(self) -> int:
        return sum(self._width(k) for k in range(len(self)))

    @property
    def encoded_columns(self) -> list[int]:
        """The column of the variable that each channel of the encoding belongs to, length P."""
        return [k for k in range(len(self)) for _ in range(self._width(k))]

    def index(self, name: str) -> int:
        """The column of this variable.

        Raises:
            ValueError: when there is no variable of this name; lists the names.
        """
        if name not in self.names:
            raise ValueError(f"no variable {name!r}; the variables are {self.names}")
        return self.names.index(name)

    def encoded_slice(self, name: str) -> slice:
        """The channels of this variable in the encoding."""
        k = self.index(name)
        start = sum(self._width(j) for j in range(k))
        return slice(start, start + self._width(k))

    def fit(self, values: Tensor, units: Sequence[str], categories: Sequence[Sequence[str]] | None = None) -> None:
        """Take range, quantiles, units and names of categories from the training split.

        Args:
            values: the training split in physical units, shape (N, K), NaN where missing. Categories by index.
            units: the unit of each variable.
            categories: the names of the categories of each variable, empty for a continuous one.

        Raises:
            ValueError: when a variable is constant, missing in every case, infinite, not an index of a category, or
                zero-inflated with a smallest value other than zero; names the variable.
        """
        values = values.detach().to(self.low)
        if values.ndim != 2 or values.shape[1] != len(self):
            raise ValueError(f"values: found shape {tuple(values.shape)}, expected (N, {len(self)}) for {self.names}")
        if len(units) != len(self):
            raise ValueError(f"units: found {list(units)}, expected one for each of {self.names}")
        names_of_categories = [list(c) for c in categories] if categories is not None else [[] for _ in self.names]
        if [len(c) or n for c, n in zip(names_of_categories, self.num_categories)] != self.num_categories:
            raise ValueError(
                f"categories: found {names_of_categories}, expected names of {self.num_categories} categories"
            )
        low, high, quantiles = self.low.clone(), self.high.clone(), self.quantiles.clone()
        levels = torch.linspace(0, 1, 101, device=values.device)
        for k, (name, kind, count) in enumerate(zip(self.names, self.kinds, self.num_categories)):
            known = values[:, k][~values[:, k].isnan()]
            if known.numel() == 0:
                raise ValueError(f"variable {name!r}: missing in all {len(values)} training cases; leave it out")
            if not known.isfinite().all():
                raise ValueError(f"variable {name!r}: found an infinite value, expected finite numbers or NaN")
            if known.min() == known.max():
                raise ValueError(
                    f"variable {name!r}: constant at {known[0].item():g} in all {known.numel()} training cases "
                    "where it is known; leave it out"
                )
            if kind == "continuous":
                low[k], high[k] = known.min(), known.max()
                if self.zero_inflated[k] and low[k] != 0:
                    raise ValueError(
                        f"variable {name!r}: zero_inflated, but its smallest training value is {low[k].item():g}, "
                        "expected 0"
                    )
                quantiles[k] = torch.quantile(known, levels)
                continue
            bad = known[(known != known.round()) | (known < 0) | (known >= count)]
            if bad.numel():
                raise ValueError(
                    f"variable {name!r}: found {bad[0].item():g}, expected a whole number in 0 … {count - 1}"
                )
            low[k], high[k] = 0, count - 1
            quantiles[k] = torch.quantile(known, levels, interpolation="nearest")
        self.low.copy_(low)
        self.high.copy_(high)
        self.quantiles.copy_(quantiles)
        self.units, self.categories = [str(unit) for unit in units], names_of_categories
        self.fitted = True

    def scale(self, values: Tensor) -> Tensor:
        """Continuous variables to [-1, 1] by the training range, not clipped; others unchanged: (B, K) -> (B, K)."""
        return torch.where(self.is_continuous, 2 * (values - self.low) / (self.high - self.low) - 1, values)

    def unscale(self, scaled: Tensor) -> Tensor:
        """The inverse of :meth:`scale`: (B, K) -> (B, K) in physical units."""
        return torch.where(self.is_continuous, (scaled + 1) / 2 * (self.high - self.low) + self.low, scaled)

    def encode(self, values: Tensor) -> Tensor:
        """Physical values (B, K) as network input (B, P), differentiable in the continuous and binary variables.

        Continuous variables are scaled, binary ones become -1 and +1, categorical ones one-hot. A missing value
        becomes 0 (continuous, binary) or 1 / C (categorical): it tells the network nothing, and its gradient is 0.
        """
        missing = values.isnan()
        # NaN is replaced before anything is computed from it: 0 * NaN in the backward pass would be NaN again.
        values = values.masked_fill(missing, 0)
        scaled = self.scale(values)
        channels = []
        for k, (kind, count) in enumerate(zip(self.kinds, self.num_categories)):
            if kind == "categorical":
                grid = torch.arange(count, device=values.device)
                one_hot = (values[:, k, None].round() == grid).to(values.dtype)
                channels.append(one_hot.masked_fill(missing[:, k, None], 1 / count))
            else:
                column = scaled[:, k, None] if kind == "continuous" else 2 * values[:, k, None] - 1
                channels.append(column.masked_fill(missing[:, k, None], 0))
        return torch.cat(channels, dim=1)

    def get_extra_state(self) -> Tensor:
        return pack({"names": self.names, "units": self.units, "categories": self.categories})

    def set_extra_state(self, state: Any) -> None:
        state = unpack(state)
        if list(state["names"]) != self.names:
            raise ValueError(f"variables: the checkpoint holds {list(state['names'])}, expected {self.names}")
        self.units = list(state["units"])
        self.categories = [list(names) for names in state["categories"]]
        self.fitted = bool(self.quantiles.isfinite().all())  # the buffers are loaded before the extra state

    def extra_repr(self) -> str:
        return ", ".join(f"{name} ({kind})" for name, kind in zip(self.names, self.kinds))

    def _width(self, k: int) -> int:
        return self.num_categories[k] if self.kinds[k] == "categorical" else 1


def _validate_definition(definition: Mapping[str, Any], where: str) -> tuple[str, str, int]:
    if not isinstance(definition, Mapping) or not set(definition) <= KEYS:
        raise ValueError(f"{where}: found {definition!r}, expected a mapping with keys among {sorted(KEYS)}")
    name, kind = definition.get("name"), definition.get("kind")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.name: found {name!r}, expected a name")
    if kind not in KINDS:
        raise ValueError(f"{where}.kind: found {kind!r} for {name!r}, expected one of {list(KINDS)}")
    inflated = definition.get("zero_inflated", False)
    if not isinstance(inflated, bool) or (inflated and kind != "continuous"):
        raise ValueError(
            f"{where}.zero_inflated: found {inflated!r} for {kind} {name!r}, expected true or false, and true only if "
            "continuous"
        )
    count = definition.get("num_categories")
    if kind != "categorical":
        if count is not None:
            raise ValueError(
                f"{where}.num_categories: found {count!r} for {kind} {name!r}, expected it only if categorical"
            )
        return name, kind, 2 if kind == "binary" else 0
    if not isinstance(count, int) or count < 2:
        raise ValueError(f"{where}.num_categories: found {count!r} for {name!r}, expected a whole number of 2 or more")
    return name, kind, count
