"""Measurements: from class probabilities to the value of a variable.

There is one ruler. The same measurement turns a hard label map (one-hot) into the factual variables during data
preparation, a segmentor's soft prediction into the guide's variables during fine-tuning, and the judge's prediction
into the figures of the evaluation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from operator import index
from typing import Any

import torch
from monai.networks.utils import one_hot
from monai.utils.module import optional_import
from torch import Tensor

__all__ = [
    "Area",
    "Measurement",
    "RegionArea",
    "band_share",
    "instantiate_measurement",
    "measure",
    "measure_label_map",
    "value_limits",
]

PHYSICAL_UNITS = ("mm2", "mm3")  # in 2-D and 3-D; they need the pixel spacing

# Share of a structure beyond each end of its extent: a stray pixel must not move a region.
STRAY = 0.005


class Measurement(ABC):
    """A differentiable functional of class probabilities (and, where it must be, of the image).

    Subclasses state the unit of their value in :attr:`unit`.
    """

    unit: str

    @abstractmethod
    def __call__(
        self,
        probabilities: Tensor,
        image: Tensor | None = None,
        spacing: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Measure a batch.

        Args:
            probabilities: class probabilities, shape (B, C, *spatial), non-negative, summing to one over C.
            image: images, shape (B, 1, *spatial); measurements of geometry do not look at it.
            spacing: pixel spacing in mm along each spatial axis, shape (B, D), or None where it is unknown.
            reference: class probabilities, or one-hot label map, of the *factual* image, same shape: a region that is
                defined by a structure is that of the factual one, so that it does not move with an edit. By default
                the image measured is the factual one.

        Returns:
            One value per image in :attr:`unit`, shape (B,).
        """

    @abstractmethod
    def support(self, probabilities: Tensor, reference: Tensor | None = None) -> Tensor:
        """Where the variable lives: the soft mask, shape (B, 1, *spatial), outside of which it does not look."""


class Area(Measurement):
    """Area (2-D) or volume (3-D) of one structure: the sum of its class probability over the pixels.

    On a one-hot label map this is exactly the area of the hard mask.

    Args:
        label: value of the structure in the label map, i.e. its channel in the probabilities.
        unit: ``"percent"`` of the image, or ``"mm2"`` / ``"mm3"``, which need the pixel spacing.

    Raises:
        ValueError: when the label is no whole number, or the unit is unknown or needs a spacing that is not given.
    """

    def __init__(self, label: int, unit: str = "percent") -> None:
        if unit not in ("percent", *PHYSICAL_UNITS):
            raise ValueError(f"{type(self).__name__}: unit is {unit!r}, expected 'percent', 'mm2' or 'mm3'")
        try:
            self.label = index(label)
        except TypeError:
            raise ValueError(f"{type(self).__name__}: label is {label!r}, expected a whole number") from None
        self.unit = unit

    def __call__(
        self,
        probabilities: Tensor,
        image: Tensor | None = None,
        spacing: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        return self.support(probabilities, reference).flatten(1).sum(1) * self.pixel(probabilities, spacing)

    def pixel(self, probabilities: Tensor, spacing: Tensor | None = None) -> Tensor:
        """What one pixel of the structure adds to the value, in :attr:`unit`, shape (B,)."""
        if self.unit == "percent":
            return probabilities.new_full((len(probabilities),), 100 / probabilities[0, 0].numel())
        dims = probabilities.ndim - 2
        if spacing is None or self.unit != f"mm{dims}":
            raise ValueError(
                f"{type(self).__name__}: unit {self.unit!r} needs {dims}-D images with a known pixel spacing "
                f"(found {dims}-D, spacing {'unknown' if spacing is None else 'known'})"
            )
        return spacing.to(probabilities).prod(1)

    def log_odds(self, logits: Tensor, reference: Tensor | None = None) -> Tensor:
        """Log-odds that a pixel is counted, given a segmentor's logits (B, C, *spatial): shape (B, 1, *spatial).

        Minus infinity where no pixel is counted, whatever its class. The reference may be logits too, and by default is
        ``logits``.
        """
        others = torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], dim=1)
        log_odds = logits[:, self.label : self.label + 1] - others.logsumexp(1, keepdim=True)
        everywhere = self.support(torch.ones_like(logits), logits if reference is None else reference)
        return log_odds.masked_fill(everywhere < 0.5, -torch.inf)

    def support(self, probabilities: Tensor, reference: Tensor | None = None) -> Tensor:
        if not 0 <= self.label < probabilities.shape[1]:
            raise ValueError(
                f"{type(self).__name__}: label {self.label} is asked of probabilities with "
                f"{probabilities.shape[1]} classes"
            )
        return probabilities[:, self.label : self.label + 1]

    def __repr__(self) -> str:
        return f"Area(label={self.label}, unit={self.unit!r})"


class RegionArea(Area):
    """Area or volume of one structure inside one region: a band across one axis (Positional Seg-CFT, Xia et al. 2026).

    A pixel on a boundary belongs to both neighbours by its share, so the regions of a partition always add up to the
    whole area. The first and the last region (``low`` 0, ``high`` 1) are open-ended: what grows beyond the factual
    structure counts.

    Args:
        label: value of the structure in the label map.
        axis: spatial axis that the band lies across, from 0.
        low: lower boundary as a fraction of the extent along the axis.
        high: upper boundary.
        of: whose extent: ``"image"`` (straightened vessels: the fraction is one of arc length), or ``"structure"``, the
            factual one (lung zones). The extent of a structure is that of its most probable pixels in the reference,
            without half a percent of them at either end; a structure that is absent there has the image's extent.
        unit: ``"percent"`` of the image, ``"mm2"`` or ``"mm3"``.

    Raises:
        ValueError: as :class:`Area`, and when the band is invalid or the image has no such axis.
    """

    def __init__(
        self, label: int, axis: int, low: float, high: float, of: str = "image", unit: str = "percent"
    ) -> None:
        super().__init__(label, unit)
        if of not in ("image", "structure"):
            raise ValueError(f"RegionArea: of is {of!r}, expected 'image' or 'structure'")
        if not 0 <= low < high <= 1:
            raise ValueError(f"RegionArea: found the band from {low} to {high}, expected 0 <= low < high <= 1")
        self.axis, self.low, self.high, self.of = int(axis), float(low), float(high), of

    def support(self, probabilities: Tensor, reference: Tensor | None = None) -> Tensor:
        return super().support(probabilities, reference) * self.band(probabilities if reference is None else reference)

    def band(self, reference: Tensor) -> Tensor:
        """Share of each pixel that lies in the region, shape (B, 1, *spatial) with size 1 across the band's axis."""
        dims = reference.ndim - 2
        if not 0 <= self.axis < dims:
            raise ValueError(f"RegionArea: axis is {self.axis}, expected one of 0 … {dims - 1} of a {dims}-D image")
        size = reference.shape[2 + self.axis]
        start = reference.new_zeros(len(reference), 1)
        stop = start + size
        if self.of == "structure":
            start, stop = self._extent(reference)
        low = start + self.low * (stop - start) if self.low > 0 else torch.zeros_like(start)
        high = start + self.high * (stop - start) if self.high < 1 else torch.full_like(stop, size)
        share = band_share(torch.arange(size, device=reference.device), low, high)
        return share.view(-1, 1, *[size if axis == self.axis else 1 for axis in range(dims)])

    def _extent(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """First and last edge of the factual structure along the axis in pixels, (B, 1) each."""
        mask = reference[:, self.label] == reference.amax(1)  # on a CPU a hundred times as fast as argmax
        across = [axis for axis in range(1, mask.ndim) if axis != 1 + self.axis]
        profile = mask.sum(across, dtype=torch.float64)
        share = profile.cumsum(1) / profile.sum(1, keepdim=True)  # NaN where the structure is absent
        before, after = share <= STRAY, share - profile / profile.sum(1, keepdim=True) >= 1 - STRAY
        absent = profile.sum(1, keepdim=True) == 0
        start = before.sum(1, keepdim=True).masked_fill(absent, 0)
        stop = (profile.shape[1] - after.sum(1, keepdim=True)).masked_fill(absent, profile.shape[1])
        return start.to(reference), stop.to(reference)

    def __repr__(self) -> str:
        return (
            f"RegionArea(label={self.label}, axis={self.axis}, low={self.low:g}, high={self.high:g}, of={self.of!r}, "
            f"unit={self.unit!r})"
        )


def band_share(pixel: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Share of each pixel that lies between two edges along an axis.

    Args:
        pixel: numbers of the pixels from 0, shape (size,).
        low: the lower edge in pixels, a number or shape (B, 1).
        high: the upper edge, likewise.

    Returns:
        Shape (size,) or (B, size).
    """
    return ((pixel + 1).clamp(max=high) - pixel.clamp(min=low)).clamp(0, 1)


def value_limits(unit: str) -> tuple[float, float, str]:
    """Lowest and highest possible value of what is measured in this unit, and the range as text for messages.

    Areas and volumes have limits; other measurements may have any value.
    """
    if unit == "percent":
        return 0, 100, "0 … 100 percent"
    return (0, math.inf, f"zero or more {unit}") if unit in PHYSICAL_UNITS else (-math.inf, math.inf, "any value")


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
    reference: Tensor | None = None,
) -> Tensor:
    """All measurements side by side, shape (B, K), in the mapping's order and each in its own unit."""
    return torch.stack([m(probabilities, image, spacing, reference) for m in measurements.values()], dim=1)


def measure_label_map(
    measurements: Mapping[str, Measurement],
    label: Tensor,
    num_classes: int,
    image: Tensor | None = None,
    spacing: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """The variables of hard label maps of shape (B, 1, *spatial): shape (B, K).

    ``reference`` holds the label maps of the factual images; by default it is ``label`` itself.
    """
    probabilities = one_hot(label.float(), num_classes=num_classes)
    factual = None if reference is None else one_hot(reference.float(), num_classes=num_classes)
    return measure(measurements, probabilities, image, spacing, factual)
