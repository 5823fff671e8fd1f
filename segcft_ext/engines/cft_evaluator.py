"""Validation of counterfactual fine-tuning by the guide, to monitor the training; it is no evaluation."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from segcft_ext.engines.case_evaluator import CaseEvaluator
from segcft_ext.guides import Guide

__all__ = ["CFTEvaluator"]

LOGGER = logging.getLogger(__name__)

LEVELS = (0.1, 0.5, 0.9)


class CFTEvaluator(CaseEvaluator):
    """Effectiveness on validation cases as the guide sees it, and what it costs.

    In each case, each of the guide's variables in turn is set to its 10, 50 and 90 % quantile; a zero-inflated one is
    set to zero and to the 50 and 90 % quantiles of its positive values, and its errors and drift are in percent of its
    mean in the training data.

    - ``effectiveness_<k>``: the guide's absolute error from the target under do(k), in percent of the target; its
      mean over k is ``effectiveness``, the key metric;
    - ``drift_<k>``: mean absolute change of the guide's other variables under do(k), beyond what the mechanisms
      predict, in percent of the values expected (the guide's factual ones plus the predicted change);
    - ``negative_elbo``: of the factual images, in nats per dimension;
    - ``folding``: share of the cells between pixels in which the deformation folds, in percent.

    These figures are too good, since the models are optimised against the guide; do not choose a checkpoint by them.

    Args:
        guide: the guide; with None, only the negative ELBO is computed.
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
        self.columns = [self.dscm.variables.index(name) for name in self.guided]

    def figures(
        self, image: Tensor, values: Tensor, spacing: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        dscm, columns = self.dscm, self.columns
        output = {"negative_elbo": dscm.negative_elbo(image, values)}
        if self.guide is None:
            return output
        abduction = dscm.abduct(image, values)
        before = self.guide(image, spacing, reference).values
        folding = []
        for j, name in enumerate(self.guided):
            errors, drifts = [], []
            others = [i for i in range(len(self.guided)) if i != j]
            for target in self._targets(columns[j]):
                wanted = dscm.scm.counterfactual(values, {name: target.expand(len(image))})
                counterfactual = dscm.predict(abduction, wanted)
                after = self.guide(counterfactual.image, spacing, reference).values
                errors.append(100 * (after[:, j] - target).abs() / self._sizes(wanted[:, columns])[:, j])
                expected = before + wanted[:, columns] - values[:, columns]
                drift = 100 * (after - expected)[:, others].abs() / self._sizes(expected)[:, others]
                drifts.append(drift.sum(1) / max(len(others), 1))
                folding.append(100 * counterfactual.folded)
            output[f"effectiveness_{name}"] = torch.stack(errors).mean(0)
            output[f"drift_{name}"] = torch.stack(drifts).mean(0)
        output["effectiveness"] = torch.stack([output[f"effectiveness_{name}"] for name in self.guided]).mean(0)
        output["folding"] = torch.stack(folding).mean(0)
        return output

    def _sizes(self, values: Tensor) -> Tensor:
        """What errors of the guide's variables are in percent of, (B, J): their values, or for plaques their means."""
        variables = self.dscm.variables
        inflated = torch.tensor([variables.zero_inflated[k] for k in self.columns], device=values.device)
        return torch.where(inflated, variables.quantiles[self.columns].mean(1), values.abs())

    def _targets(self, k: int) -> Tensor:
        quantiles = self.dscm.variables.quantiles[k]
        if self.dscm.variables.zero_inflated[k]:
            positive = torch.quantile(quantiles[quantiles > 0], quantiles.new_tensor(LEVELS[1:]))
            return torch.cat([quantiles.new_zeros(1), positive])
        return quantiles[[round(level * (len(quantiles) - 1)) for level in LEVELS]]
