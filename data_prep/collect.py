"""From a source's cases to a datalist: load, measure, write, split, draw. The same for every source.

Cases are independent: each is loaded, measured on its final label map and written by one call in one process, and only
its record (a few numbers) comes back. So memory stays flat, and several processes give the same result as one. A case
that cannot be used becomes a row of ``rejected.csv``; accepted and rejected cases always add up to the cases found.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data_prep.cases import Case, Item, Rejected, Source
from data_prep.identity import case_id, read_salt, write_mapping
from data_prep.intensity import INTENSITY_RANGE, to_uint16
from data_prep.pictures import draw_contact_sheet, draw_variables
from data_prep.splits import split_cases
from data_prep.structures import check_label_map
from segcft_ext.datalist import FORMAT_VERSION, SPLITS, Datalist, write_datalist
from segcft_ext.measurements import instantiate_measurement, measure_label_map

__all__ = ["UNITS", "Summary", "prepare"]

UNITS = ("auto", "percent", "mm2")


@dataclass(frozen=True)
class Outcome:
    """What became of one case: a reason and a text when it was rejected, else what its entry needs.

    ``measured`` holds the measured variables for each unit in which the case can be measured; ``digest`` tells whether
    two cases are the same picture.
    """

    reason: str = ""
    text: str = ""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    spacing: tuple[float, float] | None = None
    variables: Mapping[str, float | int | None] = field(default_factory=dict)
    exogenous: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Summary:
    """What a run of :func:`prepare` found, the validated datalist, and how many accepted cases bear each note."""

    datalist: Datalist
    found: int
    rejected: Counter[str]
    notes: Counter[str]


def prepare(
    source: Source,
    out: Path,
    *,
    name: str | None = None,
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
    unit: str = "auto",
    workers: int = 1,
    salt: str | None = None,
    mapping: Path | None = None,
) -> Summary:
    """Prepare all cases of a source.

    Args:
        source: where the cases come from.
        out: folder for ``datalist.json``, ``images/``, ``labels/``, ``rejected.csv`` and the two pictures.
        name: what the data are called in reports; by default the folder's name.
        seed: seed of the splits.
        fractions: share of each split, :data:`~data_prep.splits.FRACTIONS` by default.
        unit: of the areas: "percent" of the image; "mm2", which rejects cases of unknown spacing; or "auto", mm2 when
            the spacing of every accepted case is known, else percent.
        workers: processes; the result does not depend on it.
        salt: salt of the ids; by default that of ``mapping``, or a random one.
        mapping: file, outside ``out``, for the salt and the names behind the ids; None writes no such file.

    Raises:
        ValueError: when an option is wrong, or too few cases are accepted to fill every split.
        OSError: when something cannot be written.
    """
    if unit not in UNITS:
        raise ValueError(f"unit: found {unit!r}, expected one of {', '.join(UNITS)}")
    if workers < 1:
        raise ValueError(f"workers: found {workers}, expected 1 or more")
    if mapping is not None and out.resolve() in mapping.resolve().parents:
        raise ValueError(f"mapping: {mapping} lies in {out}, which is to be free of names; choose another folder")
    for folder in (out, out / "images", out / "labels", *([mapping.parent] if mapping else [])):
        _make_writable(folder)
    # An interrupted run must not look like a complete one.
    (out / "datalist.json").unlink(missing_ok=True)

    salt = salt if salt is not None else read_salt(mapping) if mapping else ""
    ids = _case_ids(source, salt)
    outcomes = _reject_duplicates(list(_run(_Worker(source, out, unit), ids, workers)), ids)
    accepted = [i for i, outcome in enumerate(outcomes) if not outcome.reason]
    _remove_strangers(out, {ids[i] for i in accepted})
    _write_rejected(out / "rejected.csv", source, ids, outcomes)
    if mapping is not None:
        _write_names(mapping, salt, source, ids, outcomes)
    rejected = Counter(outcome.reason for outcome in outcomes if outcome.reason)
    if not accepted:
        raise ValueError(f"none of {len(outcomes)} cases was accepted: {dict(rejected)}; see {out / 'rejected.csv'}")

    parts = split_cases([source.items[i] for i in accepted], seed, fractions)
    if unit == "auto":
        unit = "mm2" if all("mm2" in outcomes[i].measured for i in accepted) else "percent"
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": name or out.resolve().name,
        "image": {"size": list(source.size), "intensity_range": list(INTENSITY_RANGE)},
        "labels": dict(source.labels),
        "variables": [*_measured_variables(source.labels, unit), *source.variables],
        "truth": source.truth,
        **{split: [] for split in SPLITS},
    }
    for i, (split, use) in zip(accepted, parts):
        content[split].append(_entry(ids[i], source.items[i], outcomes[i], unit, use))
    datalist = write_datalist(out / "datalist.json", content)
    draw_contact_sheet(datalist, out / "contact_sheet.png")
    draw_variables(datalist, out / "variables.png")
    return Summary(datalist, len(outcomes), rejected, Counter(note for i in accepted for note in outcomes[i].notes))


def _make_writable(folder: Path) -> None:
    """Make a folder and try to write there, so that a run does not find out after hours that it cannot.

    Raises:
        OSError: naming the folder, when it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror})") from error


class _Worker:
    """Loads, checks, measures and writes one case; pickled once to every process."""

    def __init__(self, source: Source, out: Path, unit: str) -> None:
        self.source, self.out, self.unit = source, out, unit

    def __call__(self, item: Item, identifier: str) -> Outcome:
        try:
            case = self.source.load(item)
            check_label_map(case.label, self.source.labels)
            if self.unit == "mm2" and case.spacing is None:
                raise Rejected("spacing_unknown")
        except Rejected as fault:
            return Outcome(fault.reason, fault.text)
        measured = {unit: self._measure(case, unit) for unit in ("percent", "mm2") if unit != "mm2" or case.spacing}
        pixels = to_uint16(case.image)
        _write_png(self.out / "images" / f"{identifier}.png", pixels)
        _write_png(self.out / "labels" / f"{identifier}.png", case.label)
        return Outcome(
            measured=measured,
            spacing=case.spacing,
            variables=case.variables,
            exogenous=case.exogenous,
            notes=case.notes,
            digest=hashlib.sha256(pixels.tobytes()).hexdigest(),
        )

    def _measure(self, case: Case, unit: str) -> dict[str, float]:
        variables = _measured_variables(self.source.labels, unit)
        measurements = {v["name"]: instantiate_measurement(v["measurement"]) for v in variables}
        values = measure_label_map(
            measurements,
            torch.from_numpy(case.label.astype(np.int64))[None, None],
            num_classes=max(self.source.labels.values()) + 1,
            spacing=torch.tensor([case.spacing], dtype=torch.float32) if case.spacing else None,
        )
        # Seven digits are what float32 holds; more would be noise in the file.
        return {name: float(f"{value:.7g}") for name, value in zip(measurements, values[0].tolist())}


_worker: _Worker | None = None


def _start_process(worker: _Worker) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = worker


def _run_in_process(item: Item, identifier: str) -> Outcome:
    assert _worker is not None
    return _worker(item, identifier)


def _run(worker: _Worker, ids: list[str], workers: int) -> Iterator[Outcome]:
    items = worker.source.items
    bar = {"total": len(items), "desc": "preparing", "unit": "case"}
    if workers == 1:
        yield from tqdm(map(worker, items, ids), **bar)
        return
    # Forking a process in which torch has started threads can hang; a server that has only imported it is safe to fork.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, initializer=_start_process, initargs=(worker,)) as pool:
        yield from tqdm(pool.map(_run_in_process, items, ids, chunksize=8), **bar)


def _case_ids(source: Source, salt: str) -> list[str]:
    seen: Counter[tuple[str, str]] = Counter()
    ids = []
    for item in source.items:
        key = (item.source, item.name)
        ids.append(case_id(item, salt, seen[key]))
        seen[key] += 1
    return ids


def _reject_duplicates(outcomes: list[Outcome], ids: list[str]) -> list[Outcome]:
    """Reject every accepted case whose prepared picture is an earlier one's, whatever its file's name and format.

    It would count twice, and could lie in two splits.
    """
    first: dict[str, str] = {}
    checked = []
    for outcome, identifier in zip(outcomes, ids):
        original = identifier if outcome.reason else first.setdefault(outcome.digest, identifier)
        text = f"the picture is that of case {original}"
        checked.append(outcome if original == identifier else Outcome("duplicate_image", text))
    return checked


def _measured_variables(labels: Mapping[str, int], unit: str) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{structure}_area",
            "kind": "continuous",
            "unit": unit,
            "measurement": {"_target_": "segcft_ext.measurements.Area", "label": value, "unit": unit},
        }
        for structure, value in labels.items()
        if value != 0
    ]


def _entry(identifier: str, item: Item, outcome: Outcome, unit: str, use: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": identifier, "source": item.source}
    if use is not None:
        entry["use"] = use
    entry |= {"image": f"images/{identifier}.png", "label": f"labels/{identifier}.png"}
    if outcome.spacing is not None:
        entry["spacing"] = [float(f"{s:.7g}") for s in outcome.spacing]
    if outcome.notes:
        entry["notes"] = list(outcome.notes)
    entry["variables"] = {**outcome.measured[unit], **outcome.variables}
    if outcome.exogenous is not None:
        entry["exogenous"] = dict(outcome.exogenous)
    return entry


def _write_png(path: Path, pixels: np.ndarray) -> None:
    scratch = path.with_suffix(".tmp")
    Image.fromarray(pixels).save(scratch, format="PNG")
    os.replace(scratch, path)


def _remove_strangers(out: Path, ids: set[str]) -> None:
    """Remove what an earlier run has left in the folder; only files that bear one of our ids."""
    for folder in ("images", "labels"):
        for path in (out / folder).iterdir():
            if re.fullmatch(r"[0-9a-f]{16}\.(png|tmp)", path.name) and not (path.suffix == ".png" and path.stem in ids):
                path.unlink()


def _write_rejected(path: Path, source: Source, ids: list[str], outcomes: list[Outcome]) -> None:
    scratch = path.with_suffix(".tmp")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "source", "reason", "text"])
        for item, identifier, outcome in zip(source.items, ids, outcomes):
            if outcome.reason:
                writer.writerow([identifier, item.source, outcome.reason, outcome.text])
    os.replace(scratch, path)


def _write_names(mapping: Path, salt: str, source: Source, ids: list[str], outcomes: list[Outcome]) -> None:
    cases = {
        identifier: {
            "source": item.source,
            "name": item.name,
            "patient": item.patient,
            "outcome": f"rejected: {outcome.reason}" if outcome.reason else "accepted",
        }
        for item, identifier, outcome in zip(source.items, ids, outcomes)
    }
    mapping.parent.mkdir(parents=True, exist_ok=True)
    write_mapping(mapping, salt, cases)
