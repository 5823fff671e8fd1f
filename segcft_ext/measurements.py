"""Measurements: from class probabilities to the value of a variable.

There is one ruler. The same measurement turns a hard label map (one-hot) into the factual variables during data
preparation, a segmentor's soft prediction into the guide's variables during fine-tuning, and the judge's prediction
into the figures of the evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.utils import one_hot
from monai.utils.module import optional_import
from torch import Tensor

__all__ = ["Area", "Measurement", "instantiate_measurement", "measure", "measure_label_map"]


class Measurement(ABC):
    """A differentiable functional of class probabilities (and, where it must be, of the image).

    Subclasses state the unit of their value in :attr:`unit`.
    """

    unit: str

    @abstractmethod
    def __call__(self, probabilities: Tensor, image: Tensor | None = None, spacing: Tensor | None = None) -> Tensor:
        """Measure a batch.

        Args:
            probabilities: class probabilities, shape (B, C, *spatial), non-negative, summing to one over C.
            image: images, shape (B, 1, *spatial); measurements of geometry do not look at it.
            spacing: pixel spacing in mm along each spatial axis, shape (B, D), or None where it is unknown.

        Returns:
            One value per image in :attr:`unit`, shape (B,).
        """

    @abstractmethod
    def support(self, probabilities: Tensor) -> Tensor:
        """Where the variable lives: the soft mask, shape (B, 1, *spatial), outside of which it does not look."""


class Area(Measurement):
    """Area (2-D) or volume (3-D) of one structure: the sum of its class probability over the pixels.

    On a one-hot label map this is exactly the area of the hard mask.

    Args:
        label: value of the structure in the label map, i.e. its channel in the probabilities.
        unit: ``"percent"`` of the image, or ``"mm2"`` / ``"mm3"``, which need the pixel spacing.

    Raises:
        ValueError: when the unit is unknown, or needs a spacing that is not given.
    """

    def __init__(self, label: int, unit: str = "percent") -> None:
        if unit not in ("percent", "mm2", "mm3"):
            raise ValueError(f"Area: unit is {unit!r}, expected 'percent', 'mm2' or 'mm3'")
        self.label = int(label)
        self.unit = unit

    def __call__(self, probabilities: Tensor, image: Tensor | None = None, spacing: Tensor | None = None) -> Tensor:
        if not 0 <= self.label < probabilities.shape[1]:
            raise ValueError(
                f"Area: label {self.label} is asked of probabilities with {probabilities.shape[1]} classes"
            )
        share = probabilities[:, self.label].flatten(1)
        if self.unit == "percent":
            return 100 * share.mean(1)
        dims = probabilities.ndim - 2
        if spacing is None or self.unit != f"mm{dims}":
            raise ValueError(
                f"Area: unit {self.unit!r} needs {dims}-D images with a known pixel spacing "
                f"(found {dims}-D, spacing {'unknown' if spacing is None else 'known'})"
            )
        return share.sum(1) * spacing.to(share).prod(1)

    def support(self, probabilities: Tensor) -> Tensor:
        return probabilities[:, self.label : self.label + 1]

    def __repr__(self) -> str:
        return f"Area(label={self.label}, unit={self.unit!r})"


def instantiate_measurement(config: Mapping[str, Any]) -> Measurement:
    """Build a measurement from ``{"_target_": "package.Class", **arguments}``.

    Only subclasses of :class:`Measurement` are built: a datalist is data, and must not be able to call anything else.

    Raises:
        ValueError: when ``_target_`` is missing, cannot be found or is not a measurement.
    """
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    target = str(config.get("_target_", ""))
    module, _, name = target.rpartition(".")
    found, exists = optional_import(module, name=name) if module else (None, False)
    if not (exists and isinstance(found, type) and issubclass(found, Measurement)):
        raise ValueError(
            f"measurement: _target_ is {target!r}, expected a subclass of segcft_ext.measurements.Measurement"
        )
    return found(**arguments)


def measure(
    measurements: Mapping[str, Measurement],
    probabilities: Tensor,
    image: Tensor | None = None,
    spacing: Tensor | None = None,
) -> Tensor:
    """All measurements side by side, shape (B, K), in the mapping's order and each in its own unit."""
    return torch.stack([m(probabilities, image, spacing) for m in measurements.values()], dim=1)


def measure_label_map(
    measurements: Mapping[str, Measurement],
    label: Tensor,
    num_classes: int,
    image: Tensor | None = None,
    spacing: Tensor | None = None,
) -> Tensor:
    """The factual variables of hard label maps of shape (B, 1, *spatial): shape (B, K)."""
    return measure(measurements, one_hot(label.float(), num_classes=num_classes), image, spacing)
