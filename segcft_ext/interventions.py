"""What a user types as an intervention, and the physical targets that follow from it for each case.

An intervention is a mapping from variables to changes, or JSON text of one:

====================  ==================================================================================
``12.5``, ``"12.5"``  set to 12.5, in the variable's unit; a JSON number is absolute, with any sign
``"+20%"``            20 % more than the factual value, ``"-20%"`` less
``"+1.5"``            1.5 more than the factual value, in the variable's unit, ``"-1.5"`` less
``"q90"``             the 90 % quantile of the training split; ``"quantile:0.9"`` is the same
``"M"``, ``1``        a category by name or by index (binary and categorical variables); text is a name first
``["-20%", "+20%"]``  a sweep: one intervention for each
====================  ==================================================================================

An area or a volume cannot become negative, nor more than 100 where it is in percent: such a target is refused. Other
measurements may be below zero; a share of such a value is that of its magnitude, so that ``"+20%"`` is always more. A
zero-inflated variable stops at zero: ``"-3"`` of a plaque of 2 mm² makes it vanish. ``"+20%"`` of
zero is zero, which is logged; to make an absent structure appear, give ``"+3"`` or ``3``.

Example:
    >>> for intervention in expand_sweep('{"left_lung_area": ["-20%", "+20%"], "sex": "F"}'):
    ...     targets = resolve(intervention, variables, values)
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segcft_ext.measurements import value_limits
from segcft_ext.variables import Variables

__all__ = ["Change", "beyond_training", "expand_sweep", "parse_intervention", "resolve"]

LOGGER = logging.getLogger(__name__)
NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
PATTERNS = {
    "relative": re.compile(rf"([+-](?:{NUMBER}))\s*%"),
    "additive": re.compile(rf"([+-](?:{NUMBER}))"),
    "absolute": re.compile(rf"({NUMBER})"),
    "percentile": re.compile(rf"q({NUMBER})"),
    "quantile": re.compile(rf"quantile:\s*({NUMBER})"),
}
FORMS = {  # by option
    "intervention": '12.5, "+20%", "+1.5", "q90", "quantile:0.9" or the name of a category',
    "variables": "a number or the name of a category",
}
EXAMPLES = {"intervention": '{"heart_area": "+20%"}', "variables": '{"heart_area": 9.8}'}


@dataclass(frozen=True)
class Change:
    """How an intervention changes one variable.

    Attributes:
        form: "absolute" (``amount`` in the unit), "relative" (0.2 for +20 %), "additive" (in the unit), "quantile"
            (0 … 1) or "name" (of a category, in ``text``; ``amount`` is NaN).
        amount: the number.
        text: what was typed.
        number: whether a JSON number was typed; text is first looked up as the name of a category.
    """

    form: str
    amount: float
    text: str
    number: bool = False


def parse_intervention(intervention: str | Mapping[str, Any], option: str = "intervention") -> dict[str, Change]:
    """Read one intervention (not a sweep).

    Args:
        intervention: a mapping, or JSON text of one.
        option: the option that it was given by, for messages: "intervention", or "variables" for factual values.

    Raises:
        ValueError: when it cannot be read; names the option, the variable, what was found and what was expected.
    """
    changes = _read(intervention, option)
    return {name: _parse_change(change, name, option) for name, change in changes.items()}


def expand_sweep(intervention: str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """One intervention for each value of a list; for each combination of several lists, the last varying fastest.

    Without a list this is the intervention itself, alone.

    Raises:
        ValueError: when the intervention is no mapping, or a list in it is empty.
    """
    mapping = _read(intervention, "intervention")
    choices = [change if isinstance(change, (list, tuple)) else [change] for change in mapping.values()]
    for name, choice in zip(mapping, choices):
        if not choice:
            raise ValueError(f"{_where('intervention', name)}: found an empty list, expected the values of a sweep")
    return [dict(zip(mapping, combination)) for combination in itertools.product(*choices)]


def resolve(
    intervention: str | Mapping[str, Any],
    variables: Variables,
    values: Tensor,
    measured: Collection[str] = (),
    option: str = "intervention",
) -> dict[str, Tensor]:
    """The physical targets of an intervention, each (B,), as :meth:`segcft_ext.scm.SCM.counterfactual` takes them.

    Targets are not clipped to the training range; :func:`beyond_training` tells those outside of it.

    Args:
        intervention: one intervention (not a sweep).
        variables: fitted variables, for quantiles and names of categories.
        values: factual values (B, K).
        measured: the variables that are measured; their unit tells which values are possible.
        option: the option that it was given by, see :func:`parse_intervention`.

    Raises:
        ValueError: when the intervention cannot be read, a variable or category is unknown, the change does not suit
            the kind of the variable, the factual value is missing where the change needs it, or the target is
            impossible for an area.
    """
    targets = {}
    for name, change in parse_intervention(intervention, option).items():
        k, where = variables.index(name), _where(option, name)
        targets[name] = _resolve_change(change, variables, k, values, where)
        if name in measured:
            _check_possible(change, targets[name], where, variables.units[k])
    return targets


def beyond_training(targets: Mapping[str, Tensor], variables: Variables, called: str = "target") -> dict[str, str]:
    """A message for each continuous variable with a target outside of the training range.

    ``called`` is what the message calls the targets.
    """
    found = {}
    for name, target in targets.items():
        k = variables.index(name)
        low, high = variables.quantiles[k, [0, -1]].tolist()
        tolerance = 1e-6 * (high - low)
        outside = target[(target < low - tolerance) | (target > high + tolerance)]
        if variables.kinds[k] == "continuous" and len(outside):
            unit = f" {variables.units[k]}" if variables.units[k] else ""
            found[name] = f"{called} {outside[0]:.4g}, but it is {low:.4g} … {high:.4g}{unit} in the training data"
    return found


def _where(option: str, name: str) -> str:
    """The beginning of a message about the value of a variable."""
    return f"intervention on {name!r}" if option == "intervention" else f"{option}: {name}"


def _read(intervention: str | Mapping[str, Any], option: str) -> Mapping[str, Any]:
    found = intervention
    if isinstance(intervention, str):
        try:
            intervention = json.loads(intervention)
        except json.JSONDecodeError as error:
            raise ValueError(f"{option}: found {found!r}, expected JSON like {EXAMPLES[option]}: {error}") from None
    if not isinstance(intervention, Mapping) or not all(isinstance(name, str) for name in intervention):
        raise ValueError(f"{option}: found {found!r}, expected a mapping like {EXAMPLES[option]}")
    return intervention


def _parse_change(change: Any, name: str, option: str) -> Change:
    where = _where(option, name)
    if isinstance(change, (list, tuple)):
        raise ValueError(f"{where}: found the sweep {list(change)}, expected one value; see expand_sweep")
    if isinstance(change, (int, float)) and not isinstance(change, bool):
        if not math.isfinite(change):
            raise ValueError(f"{where}: found {change}, expected a finite number")
        return Change("absolute", float(change), str(change), number=True)
    if not isinstance(change, str) or not change.strip():
        raise ValueError(f"{where}: found {change!r}, expected {FORMS[option]}")
    text = change.strip()
    for form, pattern in PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        amount = float(match.group(1)) / (100 if form in ("relative", "percentile") else 1)
        if not math.isfinite(amount):
            raise ValueError(f"{where}: found {text!r}, expected a finite number")
        if form in ("percentile", "quantile"):
            if amount > 1:
                raise ValueError(f'{where}: found {text!r}, expected a quantile from "q0" to "q100" or "quantile:1"')
            form = "quantile"
        return Change(form, amount, text)
    return Change("name", math.nan, text)


def _resolve_change(change: Change, variables: Variables, k: int, values: Tensor, where: str) -> Tensor:
    if variables.kinds[k] != "continuous":
        return torch.full_like(values[:, k], _category(change, variables, k, where))
    if change.form == "name":
        expected = FORMS["intervention"].removesuffix(" or the name of a category")
        raise ValueError(f"{where}: found {change.text!r}, expected {expected}")
    if change.form == "absolute":
        if change.amount < 0 and variables.zero_inflated[k]:
            raise ValueError(f"{where}: found {change.text!r}, expected zero or more")
        return torch.full_like(values[:, k], change.amount)
    if change.form == "quantile":
        if not variables.fitted:
            raise ValueError(
                f"{where}: {change.text!r} needs fitted variables, but they have no training quantiles yet"
            )
        quantile = np.interp(100 * change.amount, range(101), variables.quantiles[k].tolist())
        return torch.full_like(values[:, k], float(quantile))
    missing = values[:, k].isnan().nonzero().flatten().tolist()
    if missing:
        raise ValueError(f"{where}: {change.text!r} needs the factual value, which is missing in rows {missing}")
    if change.form == "relative":
        changed = values[:, k] + change.amount * values[:, k].abs()
        absent = (values[:, k] == 0).nonzero().flatten().tolist()
        if absent and variables.zero_inflated[k]:
            LOGGER.warning(
                '%s: %r of zero is zero, so nothing changes in rows %s; an amount, such as 3 or "+3", makes it appear',
                where,
                change.text,
                absent,
            )
    else:
        changed = values[:, k] + change.amount
    return changed.clamp_min(0) if variables.zero_inflated[k] else changed


def _check_possible(change: Change, targets: Tensor, where: str, unit: str) -> None:
    """Refuse targets that no area can have, such as -20 where "-20%" was meant."""
    low, high, limits = value_limits(unit)
    impossible = targets[(targets < low) | (targets > high)]
    if not len(impossible):
        return
    hint = f'; a change is text with a sign, such as "{change.amount:+g}%"' if change.form == "absolute" else ""
    raise ValueError(f"{where}: found {change.text!r}, a target of {impossible[0]:.4g}, expected {limits}{hint}")


def _category(change: Change, variables: Variables, k: int, where: str) -> int:
    names, count = variables.categories[k], variables.num_categories[k]
    if change.text in names and not change.number:
        return names.index(change.text)
    if change.form != "absolute" or change.amount not in range(count):
        expected = f"one of {names} or an index" if names else "an index"
        raise ValueError(f"{where}: found {change.text!r}, expected {expected} in 0 … {count - 1}")
    return int(change.amount)
