"""Pretraining of the DSCM: the mechanisms by maximum likelihood, the HVAE by its ELBO, in one run."""

from __future__ import annotations

from typing import Any

from monai.utils.enums import CommonKeys
from torch import Tensor

from segcft_ext.engines.guarded_trainer import GuardedTrainer, numbers

__all__ = ["DSCMTrainer"]


class DSCMTrainer(GuardedTrainer):
    """Trains a :class:`~segcft_ext.dscm.DSCM` (``network``) on images and their variables.

    The loss is the negative ELBO in nats per dimension plus the mechanisms' negative log likelihood in nats; the two
    share no weights. The HVAE sees the values of the augmented image. The mechanisms are fitted to the datalist's
    values, which the batch holds as ``variables`` (B, K): an augmentation that scales an image multiplies all its
    areas, so that unrelated variables would look correlated. Output of a step: ``loss``, ``negative_elbo``, ``kl``
    (nats per dimension), ``mechanisms``, ``gradient_norm``.
    """

    def _iteration(self, engine: Any, batchdata: Any) -> list[dict[str, float]]:  # type: ignore[override]
        image, values, *_ = self.prepare_batch(batchdata, self.state.device, self.non_blocking)
        observed = batchdata["variables"].to(self.state.device, non_blocking=self.non_blocking)
        terms = self.forward_pass(self._terms, image, values, observed)
        loss = terms["negative_elbo"] + terms["mechanisms"]
        norm = self.guarded_step(loss)
        return [{**numbers({CommonKeys.LOSS: loss, **terms}), "gradient_norm": norm}]

    def _terms(self, image: Tensor, values: Tensor, observed: Tensor) -> dict[str, Tensor]:
        dscm = self.dscm
        posterior = dscm.hvae.posterior(image, dscm.variables.encode(values))
        return {
            "negative_elbo": dscm.hvae.negative_elbo(image, posterior).mean(),
            "kl": posterior.kl.mean() / image[0].numel(),
            "mechanisms": dscm.scm.nll(observed),
        }
