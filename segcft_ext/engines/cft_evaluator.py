"""Validation of counterfactual fine-tuning, by the guide: it watches the training and judges nothing."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from segcft_ext.dscm import DSCM
from segcft_ext.engines.case_evaluator import CaseEvaluator
from segcft_ext.guides import Guide

__all__ = ["CFTEvaluator"]

LOGGER = logging.getLogger(__name__)

LEVELS = (0.1, 0.5, 0.9)


class CFTEvaluator(CaseEvaluator):
    """Effectiveness on validation cases as the guide sees it, and what it costs.

    Each case is intervened on at the 10, 50 and 90 % quantile of each of the guide's variables, one at a time; a
    zero-inflated one is set to zero and to the 50 and 90 % quantile of its positive values, and errors and drift of it
    are in percent of its mean in the training data.

    - ``effectiveness_<k>``: the guide's absolute error from the target under do(k), in percent of the target; its
      mean over k is ``effectiveness``, the key metric;
    - ``drift_<k>``: mean change of the guide's other variables under do(k), beyond what the mechanisms say, in
      percent of what the guide would see of them without it;
    - ``negative_elbo``: of the factual images, in nats per dimension;
    - ``folding``: share of the pixels at which the deformation folds, in percent.

    The guide has been optimised against, so these figures flatter; they are no ground for choosing a checkpoint.

    Args:
        guide: the guide; None gives the negative ELBO alone.
        **arguments: see :class:`~segcft_ext.engines.case_evaluator.CaseEvaluator`.
    """

    def __init__(self, guide: Guide | None, **arguments: Any) -> None:
        if guide is None:
            LOGGER.warning(
                "no guide: only the negative ELBO is evaluated; effectiveness, drift and folding need --guide, the "
                "model.pt of a segmentor or a regressor"
            )
        self.guide = guide
        self.guided = guide.names if guide is not None else []
        names = ["negative_elbo"]
        if self.guided:
            each = [f"{figure}_{name}" for figure in ("effectiveness", "drift") for name in self.guided]
            names = ["effectiveness", *names, "folding", *each]
        super().__init__(names=names, **arguments)

    def figures(
        self, image: Tensor, values: Tensor, spacing: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        dscm = self.dscm
        output = {"negative_elbo": dscm.negative_elbo(image, values)}
        if self.guide is None:
            return output
        abduction = dscm.abduct(image, values)
        columns = [dscm.variables.index(name) for name in self.guided]
        before = self.guide(image, spacing, reference).values
        folding = []
        for j, name in enumerate(self.guided):
            errors, drifts = [], []
            for target in self._targets(dscm, name):
                wanted = dscm.scm.counterfactual(values, {name: target.expand(len(image))})
                counterfactual = dscm.predict(abduction, wanted)
                after = self.guide(counterfactual.image, spacing, reference).values
                errors.append(100 * (after[:, j] - target).abs() / self._sizes(dscm, wanted[:, columns])[:, j])
                others = [i for i in range(len(self.guided)) if i != j]
                expected = (before + wanted[:, columns] - values[:, columns])[:, others]
                sizes = self._sizes(dscm, before + wanted[:, columns] - values[:, columns])[:, others]
                drifts.append((100 * (after[:, others] - expected).abs() / sizes).sum(1) / max(len(others), 1))
                determinant = counterfactual.jacobian_determinant
                folding.append(
                    torch.zeros_like(target).expand(len(image))
                    if determinant is None
                    else 100 * (determinant <= 0).float().flatten(1).mean(1)
                )
            output[f"effectiveness_{name}"] = torch.stack(errors).mean(0)
            output[f"drift_{name}"] = torch.stack(drifts).mean(0)
        output["effectiveness"] = torch.stack([output[f"effectiveness_{name}"] for name in self.guided]).mean(0)
        output["folding"] = torch.stack(folding).mean(0)
        return output

    def _sizes(self, dscm: DSCM, values: Tensor) -> Tensor:
        """What errors of the guide's variables (B, J) are in percent of."""
        columns = [dscm.variables.index(name) for name in self.guided]
        inflated = torch.tensor([dscm.variables.zero_inflated[k] for k in columns], device=values.device)
        return torch.where(inflated, dscm.variables.quantiles[columns].mean(1), values.abs())

    @staticmethod
    def _targets(dscm: DSCM, name: str) -> Tensor:
        k = dscm.variables.index(name)
        quantiles = dscm.variables.quantiles[k]
        if dscm.variables.zero_inflated[k]:
            positive = torch.quantile(quantiles[quantiles > 0], quantiles.new_tensor(LEVELS[1:]))
            return torch.cat([quantiles.new_zeros(1), positive])
        return quantiles[[round(level * (len(quantiles) - 1)) for level in LEVELS]]
