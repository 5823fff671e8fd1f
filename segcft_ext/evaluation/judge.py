"""The judge: a segmentor that took no part in the training, and the measurements of what it predicts.

The judge's label map is the most probable class of each pixel, measured like any label map. Hard masks are used
because they are what a reader would outline: a faint haze over the image adds to soft areas, but to no mask unless it
changes a pixel's class. The judge's own error on real images is the *floor*: errors near it are indistinguishable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.utils import one_hot
from torch import Tensor, nn

from segcft_ext.checkpoints import CheckpointError, SelfDescribing
from segcft_ext.evaluation.effectiveness import error, slope
from segcft_ext.measurements import Measurement, measure_label_map
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.provenance import fingerprint

__all__ = ["Judge", "check_independent", "floor", "structure_scores", "summarise_structures"]


class Judge(nn.Module):
    """Image -> label map -> measured variables.

    Args:
        segmentor: image (B, 1, *spatial) in [-1, 1] -> logits (B, C, *spatial).
        measurements: the measurement of each of the J variables.
        num_classes: C.
        inferer: how the segmentor is applied, ``inferer(image, network)``; by default to the whole batch at once.
    """

    def __init__(
        self,
        segmentor: nn.Module,
        measurements: Mapping[str, Measurement],
        num_classes: int,
        inferer: Callable[[Tensor, nn.Module], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.measurements = dict(measurements)
        self.inferer = inferer
        self.num_classes = num_classes

    @property
    def names(self) -> list[str]:
        """The measured variables, in the order of :meth:`measure`."""
        return list(self.measurements)

    @torch.no_grad()
    def segment(self, image: Tensor) -> Tensor:
        """Label maps, integers of shape (B, 1, *spatial)."""
        logits = self.inferer(image, self.segmentor) if self.inferer else self.segmentor(image)
        return logits.max(1, keepdim=True).indices  # on a CPU ten times as fast as argmax

    def measure(
        self, label: Tensor, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None
    ) -> Tensor:
        """The variables of label maps, shape (B, J), in the datalist's units.

        ``reference`` holds the label maps of the factual images, which define the regions.
        """
        return measure_label_map(self.measurements, label, self.num_classes, image, spacing, reference)

    def masks(self, label: Tensor, reference: Tensor) -> Tensor:
        """Where each variable lives in label maps (B, 1, *spatial): boolean, shape (B, J, *spatial)."""
        probabilities, factual = (one_hot(maps.float(), self.num_classes) for maps in (label, reference))
        return torch.cat([m.support(probabilities, factual) > 0 for m in self.measurements.values()], dim=1)


def structure_scores(judged: Tensor, label: Tensor, labels: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Dice and relative area error of the judge on real images.

    Args:
        judged: the judge's label maps, shape (B, 1, *spatial).
        label: the true label maps, same shape.
        labels: value of each structure; the background is left out.

    Returns:
        For each structure its Dice and its absolute area error in percent of the true area, two tensors of shape (B,),
        NaN where the structure is absent from the true label map.
    """
    found = {}
    for name, value in labels.items():
        if value == 0:
            continue
        true, seen = ((maps == value).flatten(1) for maps in (label, judged))
        area, overlap = true.sum(1).double(), (true & seen).sum(1).double()
        dice = 2 * overlap / (area + seen.sum(1))
        percent = 100 * (seen.sum(1) - area).abs() / area
        present = area > 0
        found[name] = (torch.where(present, dice, torch.nan), torch.where(present, percent, torch.nan))
    return found


def summarise_structures(scores: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """``{structure: {"dice", "area_mape"}}``, means over the cases that show the structure; NaN if none does."""
    return {
        name: {
            "dice": _known_mean([dice for dice, _ in rows]),
            "area_mape": _known_mean([percent for _, percent in rows]),
        }
        for name, rows in scores.items()
    }


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def floor(
    measured: np.ndarray, factual: np.ndarray, cases: Sequence, names: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The judge's own error on real images, in the same figures as the effectiveness; both arrays of shape (N, J).

    ``slope`` is the slope of the measured on the true values of the cases: a judge that shrinks every heart towards the
    mean sees less change than there is.
    """
    floors = {}
    for j, name in enumerate(names):
        line = slope(measured[:, j], factual[:, j], cases, seed)
        floors[name] = error(measured[:, j], factual[:, j], cases, seed)
        floors[name] |= {"slope": line["slope"], "slope_ci95": line["ci95"]}
    return floors


def check_independent(judge: Segmentor, methods: Mapping[str, Any]) -> None:
    """Refuse a judge that is, or resembles, the network that guided a method.

    Judging with the guide rewards whatever fools the guide. The judge must have other weights, another architecture and
    other training cases than each guide recorded in the checkpoints (``data["guide"]``, see
    :mod:`segcft_ext.provenance`). Both must say which part of the training cases they used (``use``): None stands for
    all of them. The cases themselves are compared as well, since the data may have been split more than once.

    Raises:
        CheckpointError: names judge, method, key, and what both hold.
    """
    for name, method in methods.items():
        guide = method.data.get("guide") if isinstance(method, SelfDescribing) else None
        if guide is None:
            continue
        use, guided_use = judge.data.get("use"), guide["data"].get("use")
        pairs = [
            ("weights", fingerprint(judge), guide["fingerprint"], "another network"),
            ("data.use", use, guided_use, "other training cases"),
        ]
        if guide["class"] == type(judge).__name__:
            held, guided = judge.definition["architecture"], guide["definition"]["architecture"]
            pairs.append(("definition.architecture", held, guided, "another architecture"))
        for key, held, guided, expected in pairs:
            if held == guided:
                raise CheckpointError(
                    f"{judge.origin}: {key}: the judge holds {held!r}, and so does the guide of method {name!r} "
                    f"({method.origin}); an independent judge needs {expected}"
                )
        if use is None or guided_use is None:
            raise CheckpointError(
                f"{judge.origin}: data.use: the judge holds {use!r}, the guide of method {name!r} ({method.origin}) "
                f"{guided_use!r}, and None stands for all cases; an independent judge needs other training cases"
            )
        shared = sorted({*judge.data.get("cases", ())} & {*guide["data"].get("cases", ())})
        if shared:
            raise CheckpointError(
                f"{judge.origin}: data.cases: the judge was trained on {len(shared)} cases that the guide of method "
                f"{name!r} ({method.origin}) was trained on, such as that with the fingerprint {shared[0]}; an "
                "independent judge needs other training cases"
            )
