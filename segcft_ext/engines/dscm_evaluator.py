"""Validation of the DSCM's pretraining: the likelihood of images and variables that it was not trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segcft_ext.engines.case_evaluator import CaseEvaluator

__all__ = ["DSCMEvaluator"]


class DSCMEvaluator(CaseEvaluator):
    """Negative ELBO and KL in nats per dimension, and the mechanisms' negative log likelihood in nats.

    The key metric is ``negative_elbo``.

    Args:
        **arguments: see :class:`~segcft_ext.engines.case_evaluator.CaseEvaluator`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(names=["negative_elbo", "kl", "mechanisms"], **arguments)

    def figures(
        self, image: Tensor, values: Tensor, spacing: Tensor | None, reference: Tensor | None
    ) -> dict[str, Tensor]:
        dscm = self.dscm
        posterior = dscm.hvae.posterior(image, dscm.variables.encode(values))
        return {
            "negative_elbo": dscm.hvae.negative_elbo(image, posterior),
            "kl": posterior.kl / image[0].numel(),
            "mechanisms": -dscm.scm.log_prob(values).sum(dim=1),
        }
