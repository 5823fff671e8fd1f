"""Guides: frozen networks that predict the variables of a counterfactual image during fine-tuning.

The trainer sees only a guide: Reg-CFT, Seg-CFT and Pos-Seg-CFT are the same to it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcft_ext.checkpoints import CheckpointError, SelfDescribing, load_model
from segcft_ext.compatibility import check_compatible, require_checkpoint
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM
from segcft_ext.freezing import freeze
from segcft_ext.measurements import Area, Measurement, measure
from segcft_ext.networks.regressor import Regressor
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.provenance import upstream

__all__ = ["Guide", "GuidePrediction", "RegressorGuide", "SegmentorGuide", "load_guide", "prepare_fine_tuning"]


@dataclass(frozen=True)
class GuidePrediction:
    """What a guide sees in a batch of images.

    Attributes:
        values: its variables in physical units, shape (B, J).
        support: soft mask of where each variable lives, shape (B, J, *spatial), in [0, 1].
        log_odds: log-odds that a pixel counts for the variable, shape (B, J, *spatial), minus infinity where no pixel
            can; None from a guide that does not count pixels.
        pixel: what a pixel that counts adds to the value, shape (B, J), zero for a variable that is not a count of
            pixels; None from a guide that does not count pixels.
    """

    values: Tensor
    support: Tensor
    log_odds: Tensor | None = None
    pixel: Tensor | None = None


class Guide(nn.Module, ABC):
    """A frozen predictor of variables through which gradients flow into the image.

    Attributes:
        names: the variables it predicts, in the order of its columns.
        network: the frozen network.
        measurements: the measurements of its variables on label maps; empty for a guide that predicts no label maps.
    """

    names: list[str]
    network: nn.Module
    measurements: dict[str, Measurement]

    def see(self, image: Tensor) -> Tensor:
        """The network's output in full precision even if the trainer's is mixed, since a guide measures."""
        with torch.autocast(image.device.type, enabled=False):
            return self.network(image.float())

    @abstractmethod
    def forward(self, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None) -> GuidePrediction:
        """Predict the variables of images.

        Args:
            image: shape (B, 1, \\*spatial), in [-1, 1].
            spacing: pixel spacing in mm, shape (B, D), if it is known.
            reference: class probabilities or one-hot label map of the factual images, shape (B, C, \\*spatial), for
                regions (see :class:`~segcft_ext.measurements.Measurement`); by default the images are the factual ones.
        """


class SegmentorGuide(Guide):
    """Seg-CFT: measurements of a frozen segmentor's probabilities (Xia et al. 2025).

    With measurements of regions this is Pos-Seg-CFT (Xia et al. 2026): nothing else differs.

    Args:
        segmentor: image -> logits; frozen here.
        measurements: the measurement of each variable.
    """

    def __init__(self, segmentor: nn.Module, measurements: Mapping[str, Measurement]) -> None:
        super().__init__()
        self.network = freeze(segmentor)
        self.measurements = dict(measurements)
        self.names = list(measurements)

    def forward(self, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None) -> GuidePrediction:
        logits = self.see(image)
        probabilities = torch.softmax(logits, dim=1)
        values = measure(self.measurements, probabilities, image, spacing, reference)
        measurements = self.measurements.values()
        support = torch.cat([m.support(probabilities, reference) for m in measurements], dim=1)
        log_odds, pixel = torch.full_like(support, -torch.inf), torch.zeros_like(values)
        for j, measurement in enumerate(measurements):
            if isinstance(measurement, Area):
                log_odds[:, j : j + 1] = measurement.log_odds(logits, reference)
                pixel[:, j] = measurement.pixel(probabilities, spacing)
        return GuidePrediction(values, support, log_odds, pixel)


class RegressorGuide(Guide):
    """Reg-CFT: a frozen regressor. It cannot say where a variable lives, so its support is the whole image."""

    def __init__(self, regressor: Regressor) -> None:
        super().__init__()
        self.network = freeze(regressor)
        self.names = list(regressor.names)
        self.measurements = {}

    def forward(self, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None) -> GuidePrediction:
        support = image.new_ones(()).expand(len(image), len(self.names), *image.shape[2:])
        return GuidePrediction(self.see(image), support)


def load_guide(
    checkpoint: str | os.PathLike[str] | None,
    datalist: Datalist,
    device: str | torch.device,
    variables: Sequence[str] | None = None,
) -> Guide | None:
    """The guide in a checkpoint: a segmentor's gives Seg-CFT, a regressor's Reg-CFT, none No-CFT.

    Args:
        checkpoint: a segmentor's or a regressor's ``model.pt``, or None.
        datalist: defines the measurements; the checkpoint must have been trained for the same kind of data.
        device: device of the guide.
        variables: the DSCM's variables; a segmentor measures no others. None for all measured ones.

    Raises:
        CheckpointError: when the checkpoint is missing, is neither of the two, was trained for other data, or is a
            judge.
        ValueError: when a segmentor is left with no variable to measure.
    """
    if not checkpoint:
        return None
    bundles = "lung_heart_segmentor, plaque_lumen_segmentor or seg_cft_finetuning (a regressor)"
    model = load_model(require_checkpoint(checkpoint, "guide", bundles), (Segmentor, Regressor))
    check_compatible(model, datalist)
    if model.data.get("use") == "judge":
        raise CheckpointError(
            f"{model.origin}: data.use: found 'judge', expected 'guide': a judge that has guided can judge nothing"
        )
    if isinstance(model, Regressor):
        return RegressorGuide(model).to(device)
    measurements = {n: m for n, m in datalist.measurements().items() if variables is None or n in variables}
    if not measurements:
        raise ValueError(f"{datalist.path}: none of the variables {variables} is measured, so a segmentor cannot guide")
    return SegmentorGuide(model, measurements).to(device)


def prepare_fine_tuning(dscm: DSCM, guide: Guide | None, datalist: Datalist) -> None:
    """Refuse what cannot be fine-tuned, and record the guide in the DSCM's ``data``, so that it cannot be its judge.

    The training cases are recorded beside those of the pretraining. With a guide that measures no label maps, the
    deformation head measures none either: in Reg-CFT it would play the part of a segmentor.

    Raises:
        CheckpointError: when the DSCM is untrained, was trained for other data, or has had a guide already.
    """
    if not dscm.variables.fitted or not dscm.data:
        raise CheckpointError("dscm: found no pretrained model, expected the path of a DSCM's model.pt")
    check_compatible(dscm, datalist)
    if dscm.data.get("guide") is not None:
        raise CheckpointError(
            f"{dscm.origin}: data.guide: the checkpoint was fine-tuned with a {dscm.data['guide']['class']} already, "
            "expected a pretrained DSCM"
        )
    if not isinstance(guide, SegmentorGuide):
        dscm.measure_nothing()
    network = None if guide is None else guide.network
    dscm.data["guide"] = upstream(network) if isinstance(network, SelfDescribing) else None
    dscm.data["cases"] = sorted({*dscm.data["cases"], *datalist.fingerprints("training")})
