"""The source ``ccta``: coronary CT angiographies, of which each vessel is straightened and becomes a case."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_prep.cases import Case, Item, Rejected, Source
from data_prep.centrelines import CONVENTIONS, Vessel, arc_length, check_centreline
from data_prep.coronary_vessel import LABELS
from data_prep.ct import WINDOW, to_window
from data_prep.journal import stamp
from data_prep.planning import check_files, plan_vessels
from data_prep.scans import Scan
from data_prep.straightening import make_frames, sample_grid, sample_image, sample_labels
from data_prep.territories import Axis, foreign, other_limb, trace_axes
from data_prep.volumes import AIR, Volume, align_axes, check_same_grid, read_ct, read_labels

__all__ = ["CctaSource", "Straightening"]

LUMEN_HU = (50.0, 1000.0)
"""Range of the median over a lumen that is filled with contrast medium."""

ENDS, WIDENING = 10.0, 1.25
"""A vessel whose last ``ENDS`` mm are wider than its first by the factor ``WIDENING`` may have been drawn backwards."""


@dataclass(frozen=True)
class Straightening:
    """How vessels are straightened; checked when it is built, before any volume is read.

    Attributes:
        structures: the values of each structure in the label volumes, by its name in
            :data:`~data_prep.coronary_vessel.LABELS`; values to be ignored are listed as ``background``.
        size: number of samples along and across, two numbers for longitudinal cuts and three for volumes.
        spacing: spacing of the samples across, mm.
        angles: angles of the cuts in degrees, from the direction that points most to superior at the ostium.
        window: HU that become 0 and 1.
        regions: the datalist's ``regions``.
        order: order of the interpolating splines, 1 (linear) or 3 (cubic).
        sigma: standard deviation of the Gaussian that smooths the centrelines, mm.
        shortest: length below which a centreline is rejected, mm.
        convention: convention of the centrelines' coordinates, LPS or RAS.

    Raises:
        ValueError: when one of them is wrong.
    """

    structures: Mapping[str, Sequence[int]]
    size: tuple[int, ...] = (256, 64)
    spacing: float = 0.25
    angles: tuple[float, ...] = (0.0,)
    window: tuple[float, float] = WINDOW
    regions: Mapping[str, Any] | None = None
    order: int = 1
    sigma: float = 1.0
    shortest: float = 20.0
    convention: str = "LPS"

    def __post_init__(self) -> None:
        _check_structures(self.structures)
        angles = self.angles
        for option, found, good, expected in (
            (
                "size",
                self.size,
                len(self.size) in (2, 3) and min(self.size) >= 8,
                "two or three whole numbers from 8 on",
            ),
            ("across", self.spacing, 0 < self.spacing < 5, "mm, above 0 and below 5"),
            ("angles", angles, 0 < len(angles) == len(set(angles)), "one or several, each once"),
            ("angles", angles, len(self.size) == 2 or angles == (0,), "0 alone, since a volume is not cut"),
            ("window", self.window, self.window[0] < self.window[1], "the lower before the higher"),
            ("order", self.order, self.order in (1, 3), "1 or 3"),
            ("smoothing", self.sigma, 0 <= self.sigma <= 5, "0 to 5 mm"),
            ("shortest", self.shortest, self.shortest >= 2, "2 mm or more"),
            ("coordinates", self.convention, self.convention in CONVENTIONS, " or ".join(CONVENTIONS)),
        ):
            if not good:
                raise ValueError(f"{option}: found {found}, expected {expected}")


@dataclass(frozen=True)
class _Opened:
    """The volumes of a scan, and all of its vessels within them."""

    image: Volume
    label: Volume
    axes: Sequence[Axis]


class CctaSource(Source):
    """Straightened vessels of coronary CT angiographies.

    Each vessel is a case; with longitudinal cuts, each vessel at each angle. Lumen and plaques of other vessels that
    the image shows are background in the label map.

    Args:
        scans: the volumes with their label volumes and centrelines.
        options: how the vessels are straightened.
        workers: processes for finding centrelines in label volumes.

    Raises:
        ValueError: when there is no vessel.
    """

    def __init__(self, scans: Sequence[Scan], options: Straightening, workers: int = 1) -> None:
        self.size = options.size
        self.labels = {name: v for name, v in LABELS.items() if name == "background" or name in options.structures}
        self.may_lack = [name for name in self.labels if name.endswith("plaque")]
        self.window = (*options.window, "HU")
        self.regions = options.regions
        self._options = options
        self._values = {LABELS[name]: tuple(values) for name, values in options.structures.items()}
        self._scans = list(scans)
        self._plans = plan_vessels(self._scans, self._values, options.convention, options.shortest, workers)
        self._cases: list[tuple[int, int, float]] = []
        self.items = []
        for s, (scan, plan) in enumerate(zip(self._scans, self._plans)):
            for p, planned in enumerate(plan):
                for angle in options.angles:
                    name = f"{scan.name}/{planned.name}" + (f"@{angle:g}" if len(options.angles) > 1 else "")
                    self.items.append(Item(scan.source, name, len(self._cases), scan.patient))
                    self._cases.append((s, p, angle))
        if not self.items:
            raise ValueError("no vessel in any volume")
        self._last: tuple[int, _Opened | Rejected] | None = None

    def fingerprint(self, item: Item) -> list[Any]:
        """The scan's files and vessels, which vessel and which cut the case is, and the options."""
        scan, position, angle = self._cases[item.index]
        planned = [(p.name, p.fault, p.vessel and _as_list(p.vessel)) for p in self._plans[scan]]
        digest = hashlib.sha256(repr(planned).encode("utf-8", "surrogateescape")).hexdigest()
        files = [stamp(path) for path in (*self._scans[scan].volumes, *self._scans[scan].labels)]
        return [files, digest, position, angle, asdict(self._options)]

    def load(self, item: Item) -> Case:
        """Straighten one vessel."""
        scan, position, angle = self._cases[item.index]
        planned = self._plans[scan][position]
        if planned.vessel is None:
            raise Rejected(*planned.fault)
        check_centreline(planned.vessel.points, self._options.shortest)
        opened = self._open(scan)
        own = sum(p.vessel is not None for p in self._plans[scan][:position])
        axis = opened.axes[own]
        self._check_place(axis, planned.vessel, opened)

        along = axis.length / self.size[0]
        # Samples farther apart than two voxels would alias, so each is the average of an odd number of image samples;
        # the label is taken at the middle one.
        each = 1 + 2 * int(np.ceil(max(0.0, along / (2 * opened.image.spacing.min()) - 1)))
        frames = make_frames(axis.points, each * self.size[0])
        across, spacing = self.size[1:], self._options.spacing
        grid = sample_grid(frames, across, spacing, angle, opened.image.affine)
        image = sample_image(opened.image.voxels, grid, self._options.order, AIR)
        image = image.reshape(self.size[0], each, *across).mean(1)
        grid = grid[:, each // 2 :: each]
        label = sample_labels(opened.label.voxels, grid)
        label[self._foreign(opened, own, grid, label)] = 0
        _check_image(image, label)
        return Case(
            image=to_window(image, self._options.window),
            label=label,
            spacing=(along, *[spacing] * len(across)),
            arc_length=(axis.start, axis.start + axis.length),
            notes=("centreline_reversed",) if _widens(axis, planned.vessel) else (),
        )

    def _open(self, scan: int) -> _Opened:
        """The volumes of a scan; those of the last one are kept, since a scan's vessels are loaded in succession."""
        last = self._last  # read once: the threads of a cluster's worker share the source
        if last is None or last[0] != scan:
            try:
                last = scan, self._read(scan)
            except Rejected as fault:
                last = scan, fault
            self._last = last
        if isinstance(last[1], Rejected):
            raise Rejected(last[1].reason, last[1].text)
        return last[1]

    def _read(self, scan: int) -> _Opened:
        check_files(self._scans[scan])
        image = read_ct(self._scans[scan].volumes[0])
        label = align_axes(read_labels(self._scans[scan].labels[0], self._values), image)
        check_same_grid(image, label)
        if not label.voxels.any():
            raise Rejected("empty_structure", "the label volume holds no vessel")
        vessels = [planned.vessel for planned in self._plans[scan] if planned.vessel is not None]
        return _Opened(image, label, trace_axes(vessels, label, self._options.sigma))

    def _check_place(self, axis: Axis, vessel: Vessel, opened: _Opened) -> None:
        outside = 1 - _share_inside(axis.points, opened.image)
        if outside > 0:
            other = next(name for name in CONVENTIONS if name != self._options.convention)
            mirrored = vessel.points * CONVENTIONS["LPS"]
            hint = f"; read as {other} it would lie inside" if _share_inside(mirrored, opened.image) == 1 else ""
            text = f"{100 * outside:.0f} % of the centreline lie outside the volume{hint}"
            raise Rejected("centreline_outside", text)
        within = float((axis.radii > 0).mean())
        if within < 0.5:
            text = f"{100 * within:.0f} % of the centreline run in the labelled vessel; are its coordinates"
            raise Rejected("centreline_off_vessel", f"{text} {self._options.convention}?")
        if axis.length < self._options.shortest:
            text = f"outside the vessel that it comes from the side branch is {axis.length:.1f} mm long"
            raise Rejected("centreline_short", f"{text}, less than {self._options.shortest:g} mm")

    def _foreign(self, opened: _Opened, own: int, grid: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Whether each sample's label is another vessel's or another limb's, boolean, of the shape of ``label``."""
        axis = opened.axes[own]
        labelled = np.nonzero(label)
        affine = opened.image.affine
        places = np.stack([axis_of[labelled] for axis_of in grid], axis=1) @ affine[:3, :3].T + affine[:3, 3]
        offsets = [
            (index - (count - 1) / 2) * self._options.spacing for index, count in zip(labelled[1:], label.shape[1:])
        ]
        at = (labelled[0] + 0.5) * axis.length / self.size[0]
        radius = np.interp(at, arc_length(axis.points), axis.radii)
        depth = radius - np.sqrt(sum(offset**2 for offset in offsets))
        found = np.zeros(label.shape, bool)
        found[labelled] = foreign(opened.axes, own, places, depth) | other_limb(axis, places, depth, at)
        return found


def _as_list(vessel: Vessel) -> list[Any]:
    return [vessel.points.tolist(), vessel.start, vessel.tree, vessel.marked]


def _check_structures(structures: Mapping[str, Sequence[int]]) -> None:
    unknown = [name for name in structures if name not in LABELS]
    if unknown or "lumen" not in structures:
        raise ValueError(f"labels: found {list(structures)}, expected lumen and perhaps others of {list(LABELS)}")
    counts = Counter(value for listed in structures.values() for value in listed)
    wrong = [value for value, count in counts.items() if count > 1 or not 0 < value < 65536]
    if wrong:
        raise ValueError(f"labels: found the values {wrong[:5]}, expected whole numbers from 1 to 65535, each once")


def _widens(axis: Axis, vessel: Vessel) -> bool:
    """Whether a vessel is clearly wider at its end than at an ostium that is known from the order of points alone."""
    arc = arc_length(axis.points)
    first, last = (float(axis.radii[part].mean()) for part in (arc <= ENDS, arc >= arc[-1] - ENDS))
    return vessel.start == 0 and not vessel.marked and last > WIDENING * first


def _check_image(image: np.ndarray, label: np.ndarray) -> None:
    if not np.isfinite(image).all():
        raise Rejected("not_finite", f"{int((~np.isfinite(image)).sum())} samples are NaN or infinite")
    lumen = image[label == LABELS["lumen"]]
    if lumen.size and not LUMEN_HU[0] <= (middle := float(np.median(lumen))) <= LUMEN_HU[1]:
        text = f"the median over the lumen is {middle:.0f}, expected {LUMEN_HU[0]:g} to {LUMEN_HU[1]:g} HU"
        raise Rejected("not_hounsfield", text)


def _share_inside(points: np.ndarray, volume: Volume) -> float:
    inverse = np.linalg.inv(volume.affine)
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    return float(((voxels >= -0.5) & (voxels <= np.array(volume.voxels.shape) - 0.5)).all(1).mean())
