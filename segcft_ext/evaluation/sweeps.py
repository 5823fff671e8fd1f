"""Counterfactuals for the figures: sweeps of one variable by one method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segcft_ext.evaluation.cases import Cases
from segcft_ext.evaluation.methods import Method, abducted
from segcft_ext.figures import Panel, picture
from segcft_ext.ruler import Ruler
from segcft_ext.seeding import mixed, same_draws
from segcft_ext.wording import quantity

__all__ = ["factual_panel", "panels", "sweep"]


def panels(images: Tensor, masks: Tensor, titles: Sequence[str], measured: Tensor, unit: str, by: str) -> list[Panel]:
    """Panels of counterfactuals (B, 1, *spatial) with label maps and measured values (B,).

    ``by`` says how these were measured, such as "judged".
    """
    return [
        Panel(picture(image), picture(mask), title, f"{by} {quantity(value, unit)}")
        for image, mask, title, value in zip(images, masks, titles, measured.tolist())
    ]


def factual_panel(case: Cases, variable: str, unit: str) -> Panel:
    """The factual image of one case with its own label map and the value of a variable."""
    value = float(case.of([variable])[0, 0])
    return Panel(picture(case.image[0]), picture(case.label[0]), "factual", quantity(value, unit))


@torch.no_grad()
def sweep(method: Method, judge: Ruler, case: Cases, variable: str, targets: Sequence[float], unit: str) -> list[Panel]:
    """Counterfactuals of one case for several targets of a variable, all with the same exogenous noise."""
    answer, made = abducted(method, case.image, case.of_method(method)), []
    for target in targets:
        with same_draws(mixed(0, 0)):
            made.append(answer({variable: case.image.new_full((1,), target)}).image)
    images, cases = torch.cat(made), case.repeat(len(targets))
    masks = judge.segment(images)
    measured = judge.measure(masks, images, cases.spacing, cases.label)[:, judge.names.index(variable)]
    return panels(images, masks, [f"do({quantity(target, unit)})" for target in targets], measured, unit, "judged")
