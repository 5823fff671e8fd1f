"""Counterfactual fine-tuning: one trainer for No-, Reg-, Seg- and Pos-Seg-CFT; only the guide differs."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from ignite.engine import Events
from monai.utils.enums import CommonKeys
from torch import Tensor

from segcft_ext.constraint import Lagrangian
from segcft_ext.engines.guarded_trainer import GuardedTrainer, numbers
from segcft_ext.guides import Guide
from segcft_ext.objective import Asked, CFTObjective, draw_interventions
from segcft_ext.processes import mean_over_processes

__all__ = ["CFTTrainer"]

LOGGER = logging.getLogger(__name__)


class CFTTrainer(GuardedTrainer):
    """Fine-tunes the image mechanism of a DSCM (``network``) against a frozen guide.

    Each step draws one intervention for each case, on one of the guide's variables, makes the counterfactual, and has
    the guide predict its variables. If the HVAE's parameters require gradients, it is trained as well: the negative
    ELBO of the factual images is then constrained, with a bound measured on one epoch of the (augmented) training data,
    and ELBO and counterfactual use sampled latents. Otherwise the counterfactual uses the posterior's mean. Without a
    guide nothing is trained: No-CFT is the pretrained DSCM, unchanged.

    Output of a step: ``loss``, the terms of the objective, ``gradient_norm`` and, where the HVAE is trained,
    ``negative_elbo``, ``bound`` and ``lambda``.

    Args:
        guide: the guide, or None.
        objective: the terms of the loss and their weights.
        lagrangian: the constraint on the negative ELBO.
        growth: where the structures grow in the population, see :func:`~segcft_ext.population.growth_maps`; or None.
        **arguments: see :class:`~segcft_ext.engines.guarded_trainer.GuardedTrainer`.

    Raises:
        ValueError: when a variable of the guide is not in the DSCM.
    """

    def __init__(
        self,
        guide: Guide | None,
        objective: CFTObjective,
        lagrangian: Lagrangian,
        growth: Tensor | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        variables = self.dscm.variables
        self.guide = guide
        self.objective = objective
        self.growth = None if growth is None else growth.to(self.state.device)
        self.lagrangian = lagrangian.to(self.state.device)
        self.guided = [] if guide is None else [variables.index(name) for name in guide.names]
        self.constrained = any(p.requires_grad for p in self.dscm.hvae.parameters())
        if guide is None:
            self.add_event_handler(Events.STARTED, self._leave_as_it_is)
        elif self.constrained:
            self.add_event_handler(Events.STARTED, self._measure_bound)

    def _leave_as_it_is(self) -> None:
        LOGGER.warning("no guide: No-CFT, nothing is trained; --guide names the model.pt of a segmentor or a regressor")
        self.terminate()  # with COMPLETED, so the model is saved

    def _iteration(self, engine: Any, batchdata: Any) -> list[dict[str, float]]:  # type: ignore[override]
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        terms = self.forward_pass(self._terms, *batch)
        norm = self.guarded_step(terms[CommonKeys.LOSS])
        constraint = {"bound": self.lagrangian.bound, "lambda": self.lagrangian.multiplier} if self.constrained else {}
        output = numbers({**terms, **constraint})  # before lambda is updated: what the step used
        if self.constrained and math.isfinite(norm):  # a NaN would stay in lambda for good
            self.lagrangian.ascend(mean_over_processes(terms["negative_elbo"]))
        return [{**output, "gradient_norm": norm}]

    def _terms(self, image: Tensor, values: Tensor, spacing: Tensor | None, reference: Tensor) -> dict[str, Tensor]:
        assert self.guide is not None  # without one there is no iteration
        dscm = self.dscm
        targets, mask = draw_interventions(values, self.guided, dscm.variables.quantiles)
        with torch.no_grad():
            wanted = dscm.scm.counterfactual_rows(values, targets, mask)
            before = self.guide(image, spacing, reference)
        abduction = dscm.abduct(image, values, temperature=1.0 if self.constrained else 0.0)
        counterfactual = dscm.predict(abduction, wanted)
        after = self.guide(counterfactual.image, spacing, reference)
        asked = Asked.of(values, wanted, dscm.variables, self.guided, self.growth)
        terms = self.objective(image, reference, counterfactual, asked, before, after)
        output = {CommonKeys.LOSS: self.objective.total(terms, self._progress()), **vars(terms)}
        if self.constrained:
            output["negative_elbo"] = dscm.hvae.negative_elbo(image, abduction.posterior).mean()
            output[CommonKeys.LOSS] = output[CommonKeys.LOSS] + self.lagrangian.penalty(output["negative_elbo"])
        return output

    def _progress(self) -> float:
        return (self.state.iteration - 1) / max(1, (self.state.max_epochs or 1) * (self.state.epoch_length or 1))

    @torch.no_grad()
    def _measure_bound(self) -> None:
        if self.lagrangian.bounded:  # resumed
            return
        measured: list[Tensor] = []
        for batchdata in self.state.dataloader or ():
            image, values, *_ = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
            with self.autocast():
                measured.append(self.dscm.negative_elbo(image, values))
        cases = torch.cat(measured).float()
        total, count = mean_over_processes(torch.stack([cases.sum(), torch.full_like(cases[0], len(cases))]))
        self.lagrangian.set_bound(total / count)
