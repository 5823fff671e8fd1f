"""Axioms that every counterfactual must obey (Galles & Pearl 1998; Monteiro et al. 2023).

* composition: setting variables to the values that they have changes nothing, whether done once or ten times;
* reversibility: do(k = v) followed by do(k = pa_k) gives the factual image back.

Both are measured as mean absolute differences in intensity (L1) of images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segcft_ext.evaluation.methods import Method

__all__ = ["REPEATS", "composition", "l1", "reversibility"]

REPEATS = (1, 10)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of two batches of images, shape (B,)."""
    return (a - b).abs().flatten(1).double().mean(1)


@torch.no_grad()
def composition(
    method: Method,
    image: Tensor,
    values: Tensor,
    variables: Sequence[str],
    temperature: float = 0.0,
) -> dict[int, Tensor]:
    """L1 distance to the factual image after repeated null interventions.

    A null intervention sets ``variables`` to the values they have. It is a real pass through abduction, action and
    prediction, each time from the last image and the last variables.

    Args:
        method: what makes the counterfactuals.
        image: factual images, shape (B, 1, *spatial).
        values: factual variables in the method's order, shape (B, K).
        variables: those that are set; none of them missing.
        temperature: of the latents' posterior.

    Returns:
        The L1 after each number of :data:`REPEATS`, shape (B,).
    """
    columns = [method.variables.names.index(name) for name in variables]
    found: dict[int, Tensor] = {}
    now, now_values = image, values
    for count in range(1, max(REPEATS) + 1):
        null = {name: now_values[:, column] for name, column in zip(variables, columns)}
        result = method.counterfactual(now, now_values, null, temperature)
        # What one pass leaves as it is to the last bit, it leaves so whatever latents are drawn.
        done = torch.equal(result.image, now) and torch.equal(result.values, now_values)
        now, now_values = result.image, result.values
        found |= {repeat: l1(now, image) for repeat in REPEATS if repeat == count or (done and repeat > count)}
        if done:
            break
    return found


@torch.no_grad()
def reversibility(
    method: Method, image: Tensor, counterfactual: Tensor, values: Tensor, back: Mapping[str, Tensor]
) -> Tensor:
    """L1 between the factual image and what the counterfactual becomes when the intervention is taken back.

    Args:
        method: what made the counterfactual.
        image: factual images, shape (B, 1, *spatial).
        counterfactual: images after the intervention, same shape.
        values: variables after the intervention, shape (B, K).
        back: factual value of each intervened variable, shape (B,).
    """
    return l1(method.counterfactual(counterfactual, values, back).image, image)
