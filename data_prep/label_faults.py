"""Cases whose label maps or measured values are unlike those of the other cases of their source.

Nothing here is proof: a rare anatomy is as unlike the others as a wrong mask is. It says where to look first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from monai.data import ImageReader
from scipy import ndimage
from tqdm import tqdm

from data_prep.cases import Rejected
from data_prep.displacement import LUNGS, Displacement, find_displacement
from data_prep.structures import check_label_map
from segcft_ext.datalist import Datalist
from segcft_ext.datalist_format import SPLITS
from segcft_ext.figures import picture
from segcft_ext.wording import words

__all__ = ["FAULTS", "Fault", "find_faults", "robust_z"]

FAULTS = {
    "swapped_sides": "a left structure lies where its right one belongs",
    "shifted": "both lungs' masks would fit the picture better if they were moved as stated",
    "absent": "a structure is missing that nearly all cases of the source have",
    "fragments": "a structure that is one piece elsewhere has parts that lie apart",
    "unusual_shape": "a structure hardly covers the mean shape of its source",
    "unusual_value": "a measured variable lies far from those of its source",
}

MAX_Z = 3.5
"""Modified z-score above which a value is called an outlier (Iglewicz and Hoaglin, 1993)."""
MIN_CASES = 10
"""A source with fewer cases has no distribution to compare a case with."""
NEARLY_ALL = 0.95
LOOSE = 0.05
"""Share of a structure's pixels outside its largest piece, above which they are more than a few stray pixels."""
LACKING_OVERLAP = 0.15
"""Dice below the source's median by which a shape counts as unusual, so that very uniform data are not all reported."""
GRID = 64
"""Shapes are compared on label maps of at most so many pixels along each axis."""


@dataclass(frozen=True)
class Fault:
    """Something unusual about a case.

    Attributes:
        kind: a key of :data:`FAULTS`.
        split: the case's split.
        entry: the case's entry in the datalist.
        severity: how bad it is, comparable within a kind.
        text: a short description.
    """

    kind: str
    split: str
    entry: Mapping[str, Any]
    severity: float
    text: str


@dataclass
class _Shapes:
    """What is kept of the label maps of a source; every list has one element for each case.

    Attributes:
        cases: split and datalist entry.
        loose: for each structure the share of its pixels outside its largest piece, NaN where it is absent.
        small: the label map at a small size.
        swapped: how sides are swapped, "" if they are not.
        shifted: where the masks of both lungs fit best, None where this is unknown.
    """

    cases: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    loose: list[list[float]] = field(default_factory=list)
    small: list[np.ndarray] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    shifted: list[Displacement | None] = field(default_factory=list)


def find_faults(datalist: Datalist) -> list[Fault]:
    """Everything unusual in a datalist, the worst of each kind first.

    Every label map is read once, and so is every radiograph; shapes of volumes are compared in the middle slice.

    Raises:
        DatalistError: when one of them cannot be read or is not as the datalist says.
    """
    of_source: dict[str, _Shapes] = {}
    reader = datalist.reader()
    cases = [(split, entry) for split in SPLITS for entry in datalist.entries[split]]
    for split, entry in tqdm(cases, desc="label maps", unit="case"):
        label, _ = reader.get_data(datalist.path.parent / entry["label"])
        shapes = of_source.setdefault(entry["source"], _Shapes())
        shapes.cases.append((split, entry))
        shapes.loose.append([_loose_share(label == datalist.labels[name]) for name in datalist.structures])
        shapes.small.append(_small(label))
        shapes.swapped.append(_swapped_sides(label, datalist))
        shapes.shifted.append(_shifted(label, datalist, entry, reader))
    faults = []
    for shapes in of_source.values():
        faults += [Fault("swapped_sides", *case, 0, text) for case, text in zip(shapes.cases, shapes.swapped) if text]
        for case, shift in zip(shapes.cases, shapes.shifted):
            if shift and shift.is_likely:
                faults.append(Fault("shifted", *case, 1 - shift.remaining, str(shift)))
        if len(shapes.cases) >= MIN_CASES:
            faults += _unusual_structures(shapes, datalist) + _unusual_values(shapes, datalist)
    kinds = list(FAULTS)
    return sorted(faults, key=lambda fault: (kinds.index(fault.kind), -fault.severity))


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median, divided by the median absolute deviation scaled to a standard deviation; zero where
    that deviation is zero."""
    distance = values - np.median(values)
    deviation = 1.4826 * np.median(np.abs(distance))
    return distance / deviation if deviation > 0 else np.zeros_like(distance)


def _unusual_structures(shapes: _Shapes, datalist: Datalist) -> list[Fault]:
    faults = []
    loose = np.array(shapes.loose)
    for column, name in enumerate(datalist.structures):
        present = np.isfinite(loose[:, column])
        if present.mean() > NEARLY_ALL:
            faults += [Fault("absent", *shapes.cases[i], 0, f"no {name}") for i in np.flatnonzero(~present)]
        pieces = present & (loose[:, column] > LOOSE)
        # A structure that often has several pieces, as plaques have, is not faulty for that.
        if pieces.sum() <= (1 - NEARLY_ALL) * present.sum():
            for i in np.flatnonzero(pieces):
                share = loose[i, column]
                faults.append(Fault("fragments", *shapes.cases[i], share, f"{name}: {100 * share:.0f} % apart"))
        masks = np.empty((np.count_nonzero(present), *shapes.small[0].shape), bool)
        for mask, i in zip(masks, np.flatnonzero(present)):
            np.equal(shapes.small[i], datalist.labels[name], out=mask)
        overlap = _overlap_with_mean(masks)
        z, typical = robust_z(overlap), np.median(overlap) if overlap.size else 0
        for i, value, score in zip(np.flatnonzero(present), overlap, z):
            if score < -MAX_Z and value < typical - LACKING_OVERLAP:
                text = f"{name}: Dice {value:.2f} ({typical:.2f})"
                faults.append(Fault("unusual_shape", *shapes.cases[i], typical - value, text))
    return faults


def _unusual_values(shapes: _Shapes, datalist: Datalist) -> list[Fault]:
    """Outliers of measured variables on a log scale, where half and double are equally far; zeros are left out."""
    faults = []
    for variable in datalist.variables:
        if variable.measurement is None:
            continue
        values = np.array([entry["variables"][variable.name] for _, entry in shapes.cases], float)
        known = np.flatnonzero(values > 0)
        if known.size < MIN_CASES:
            continue
        typical = np.median(values[known])
        for i, score in zip(known, robust_z(np.log(values[known]))):
            if abs(score) > MAX_Z:
                text = f"{words(variable.name)} {values[i]:.3g} ({typical:.3g}) {variable.unit}"
                faults.append(Fault("unusual_value", *shapes.cases[i], abs(score), text))
    return faults


def _overlap_with_mean(masks: np.ndarray) -> np.ndarray:
    """Dice of each mask (N, H, W) with the pixels that half of the masks have; 1 where no pixel is."""
    if not len(masks):
        return np.empty(0)
    mean = masks.mean(0) >= 0.5
    total = masks.sum((1, 2)) + mean.sum()
    return np.where(mean.any(), 2 * masks[:, mean].sum(1) / np.maximum(total, 1), 1.0)


def _loose_share(mask: np.ndarray) -> float:
    """Share of a mask's pixels outside its largest connected piece; NaN for an empty mask."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return np.nan
    inside = mask[boxes[0]]
    pieces, count = ndimage.label(inside, np.ones((3,) * mask.ndim))
    return 0.0 if count == 1 else 1 - np.bincount(pieces.ravel())[1:].max() / inside.sum()


def _small(label: np.ndarray) -> np.ndarray:
    """The label map, or a volume's middle slice, thinned out to at most :data:`GRID` pixels along each axis."""
    shown = picture(label)
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(int) for n in shown.shape for m in [min(n, GRID)])
    return shown[np.ix_(rows, columns)].astype(np.uint8)


def _swapped_sides(label: np.ndarray, datalist: Datalist) -> str:
    present = np.unique(label)
    try:
        check_label_map(label, {name: value for name, value in datalist.labels.items() if value in present})
    except Rejected as fault:
        return fault.text
    return ""


def _shifted(
    label: np.ndarray, datalist: Datalist, entry: Mapping[str, Any], reader: ImageReader
) -> Displacement | None:
    if label.ndim != 2 or not set(LUNGS) <= set(datalist.labels):
        return None
    image, _ = reader.get_data(datalist.path.parent / entry["image"])
    return find_displacement(image, label, datalist.labels)
