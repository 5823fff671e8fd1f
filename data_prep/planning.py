"""Which vessels a scan has: those of its centrelines' files or, without any, those found in its label volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from tqdm import tqdm

from data_prep.cases import Rejected, rejecting
from data_prep.centrelines import Vessel, arc_length, find_centrelines, join_lines, read_centrelines, split_vessels
from data_prep.polydata import Polylines
from data_prep.scans import Scan
from data_prep.volumes import read_labels

__all__ = ["Planned", "check_files", "plan_vessels"]


@dataclass(frozen=True)
class Planned:
    """A vessel that was found, or the fault (reason and text) because of which there is none."""

    name: str
    vessel: Vessel | None = None
    fault: tuple[str, str] = ("", "")


def plan_vessels(
    scans: Sequence[Scan], values: Mapping[int, Sequence[int]], convention: str, shortest: float, workers: int
) -> list[list[Planned]]:
    """The vessels of each scan, at least one of them with a vessel or a fault.

    Args:
        scans: the scans.
        values: values in the label volumes by new value, see :func:`~data_prep.volumes.read_labels`.
        convention: convention of the centrelines' coordinates.
        shortest: length in mm below which what is found in a label volume is a fragment and no vessel.
        workers: processes for finding vessels in label volumes.
    """
    plan = partial(_plan, values=values, convention=convention, shortest=shortest)
    bar = {"total": len(scans), "desc": "finding vessels", "unit": "volume"}
    if workers == 1 or all(scan.centrelines for scan in scans):
        return list(tqdm(map(plan, scans), **bar))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return list(tqdm(pool.map(plan, scans), **bar))


def check_files(scan: Scan) -> None:
    """Reject a scan that has not exactly one CT volume and one label volume."""
    if not scan.volumes:
        raise Rejected("missing_image", "there is a label volume or a centreline, but no CT volume")
    if not scan.labels:
        raise Rejected("missing_mask", "there is no label volume")
    if len(scan.volumes) > 1 or len(scan.labels) > 1:
        raise Rejected("duplicate_name", "there are several CT or label volumes of the same name")


def _plan(scan: Scan, values: Mapping[int, Sequence[int]], convention: str, shortest: float) -> list[Planned]:
    try:
        with rejecting("unreadable", "the vessels cannot be found"):
            return _from_files(scan, convention) if scan.centrelines else _from_label(scan, values, shortest)
    except Rejected as fault:
        return [Planned("vessel", fault=(fault.reason, fault.text))]


def _from_files(scan: Scan, convention: str) -> list[Planned]:
    files, unreadable = [], []
    for name, path in scan.centrelines:
        try:
            files.append((name, read_centrelines(path, convention)))
        except Rejected as fault:
            unreadable.append(Planned(name, fault=(fault.reason, fault.text)))
    return (_from_lines(files) if files else []) + unreadable


def _from_lines(files: Sequence[tuple[str, Polylines]]) -> list[Planned]:
    """The vessels of all files taken together, since they may share a stem; named after the files they end in."""
    owners = [owner for owner, (_, lines) in enumerate(files) for _ in lines.lines]
    vessels = split_vessels(join_lines([lines for _, lines in files]))
    of_file = [[v for v in vessels if owners[v.line] == owner] for owner in range(len(files))]
    planned = []
    for vessel in vessels:
        name, own = files[owners[vessel.line]][0], of_file[owners[vessel.line]]
        number = next(i for i, other in enumerate(own, start=1) if other is vessel)
        planned.append(Planned(name if len(own) == 1 else f"{name} {number}", vessel))
    fault = "centreline_short", "nothing of the centreline is left beside the others of the scan"
    return planned + [Planned(name, fault=fault) for (name, _), own in zip(files, of_file) if not own]


def _from_label(scan: Scan, values: Mapping[int, Sequence[int]], shortest: float) -> list[Planned]:
    check_files(scan)
    label = read_labels(scan.labels[0], values)
    found = split_vessels(find_centrelines(label.voxels > 0, label.affine))
    vessels = [vessel for vessel in found if arc_length(vessel.points)[-1] >= shortest]
    if not vessels:
        raise Rejected("centreline_missing", f"no vessel of {shortest:g} mm is labelled")
    return [Planned(f"vessel {i}", vessel) for i, vessel in enumerate(vessels, start=1)]
