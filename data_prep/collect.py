"""From a source's cases to a datalist: load, measure, write, split, draw. The same for every source.

Cases are independent: each is loaded, measured on its final label map and written by one call in one process, and only
its record (a few numbers) comes back. So memory stays flat, and several processes give the same result as one. A case
that cannot be used becomes a row of ``rejected.csv``; accepted and rejected cases always add up to the cases found.

Each record is written to a journal at once, so that a run can be resumed, whatever stopped it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.cases import Item, Source
from data_prep.executors import WorkersLost, default_workers, run_cases
from data_prep.identity import case_id, read_salt, write_mapping
from data_prep.intensity import INTENSITY_RANGE
from data_prep.journal import Journal, open_journal
from data_prep.measured import measured_variables
from data_prep.names import real_path
from data_prep.outcomes import Outcome, Worker
from data_prep.pictures import draw_contact_sheet, draw_variables
from data_prep.splits import check_fractions, split_cases
from data_prep.storage import SUFFIXES
from segcft_ext.datalist import Datalist, write_datalist
from segcft_ext.datalist_format import FORMAT_VERSION, SPLITS, validate
from segcft_ext.folders import writable_folder, write_csv_atomically

__all__ = ["Run", "Summary", "check_unit", "prepare"]

ENVIRONMENT = ("no_decoder", "unreadable")
"""Reasons that may lie in the machine (a decoder that is not installed, a file that may not be read) and not in the
case: a resumed run tries such cases again, since no file of theirs need have changed."""


@dataclass(frozen=True)
class Summary:
    """What a run of :func:`prepare` found.

    Attributes:
        datalist: the validated datalist.
        found: number of cases found, accepted or rejected.
        rejected: number of rejected cases by reason.
        notes: number of accepted cases that bear each note.
        resumed: number of cases that an interrupted run had finished.
    """

    datalist: Datalist
    found: int
    rejected: Counter[str]
    notes: Counter[str]
    resumed: int = 0


@dataclass(frozen=True)
class Run:
    """Where a run writes to, and its options; checked when it is built, before a source reads anything.

    Attributes:
        out: folder for ``datalist.json``, ``images/``, ``labels/``, ``rejected.csv`` and the two pictures.
        name: what the data are called in reports; by default the name of the folder ``out``.
        seed: seed of the splits.
        fractions: share of each split, :data:`~data_prep.splits.FRACTIONS` by default.
        unit: unit of the areas: "percent" of the image; "mm2" ("mm3" for volumes), which rejects cases of unknown
            spacing; or "auto", mm2 (mm3) when the spacing of every accepted case is known, else percent.
        workers: number of processes; the result does not depend on it. By default one for each core, at most four, and
            fewer for few cases (see :func:`~data_prep.executors.default_workers`).
        scheduler: address of a Dask scheduler, whose workers are used instead of processes of this machine.
        strict: stop at the first rejected case.
        salt: salt of the ids; by default that of ``mapping``, or a new random one; without a mapping, none.
        mapping: file, outside ``out``, for the salt and the names behind the ids; None writes no such file.

    Raises:
        ValueError: when an option is wrong, or the mapping of an earlier run holds no salt.
    """

    out: Path
    name: str | None = None
    seed: int = 0
    fractions: Mapping[str, float] | None = None
    unit: str = "auto"
    workers: int | None = None
    scheduler: str | None = None
    strict: bool = False
    salt: str | None = None
    mapping: Path | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: found {self.workers}, expected 1 or more")
        if self.mapping is not None and real_path(self.out) in real_path(self.mapping).parents:
            found = f"{self.mapping} lies in {self.out}"
            raise ValueError(f"mapping: {found}, which is to be free of names; choose another folder")
        if self.salt == "":
            raise ValueError("salt: found an empty text, expected another one, or none for a random salt")
        if self.salt is None and self.mapping is not None and self.mapping.is_file():
            read_salt(self.mapping)
        check_fractions(self.fractions)


def check_unit(unit: str, metric: str) -> None:
    """Check the unit of a run for a source of this metric unit.

    Raises:
        ValueError: when the areas cannot be in this unit.
    """
    if unit not in ("auto", "percent", metric):
        raise ValueError(f"unit: found {unit!r}, expected one of auto, percent, {metric}")


def prepare(source: Source, run: Run) -> Summary:
    """Prepare all cases of a source; after an interruption, those that are not finished or have changed since.

    Raises:
        ValueError: when the source's header or the unit is wrong, which is found before anything in ``run.out`` is
            touched; when too few cases are accepted to fill every split; or when a case is rejected and the run is
            strict.
        OSError: when something cannot be written; what is finished is kept.
        WorkersLost: when the processes die; what is finished is kept.
    """
    out, mapping, unit, metric, suffix = run.out, run.mapping, run.unit, source.metric, SUFFIXES[len(source.size)]
    check_unit(unit, metric)
    for possible in (metric, "percent") if unit == "auto" else (unit,):
        validate(_header(source, run.name or "", possible), out / "datalist.json", check_files=False)
    for folder in (out, out / "images", out / "labels", *([mapping.parent] if mapping else [])):
        writable_folder(folder)
    salt = run.salt if run.salt is not None else read_salt(mapping) if mapping else ""
    cases = _identify(source, salt)
    with open_journal(out) as journal:
        # An interrupted run must not look like a complete one, and must go on with the same salt.
        (out / "datalist.json").unlink(missing_ok=True)
        if mapping is not None:
            _write_names(mapping, salt, cases, {})
        worker = Worker(source, out, unit, salt)
        found = _take_over(journal, worker, cases)
        resumed = len(found)
        try:
            _work_off(worker, cases, found, journal, run)
        except (OSError, WorkersLost) as error:
            kept = f"{len(found)} of {len(cases)} cases are finished and kept, the same command goes on from there"
            place = getattr(error, "filename", None) or out
            text = f"{place}: {getattr(error, 'strerror', None) or error}; {kept}"
            raise (OSError(text) if isinstance(error, OSError) else WorkersLost(text)) from error
        outcomes = _reject_duplicates({identifier: found[identifier] for identifier in cases if identifier in found})
        if run.strict:
            _stop_at_rejected(cases, outcomes)
        _write_rejected(out / "rejected.csv", cases, outcomes)
        if mapping is not None:
            _write_names(mapping, salt, cases, outcomes)
        rejected = Counter(outcome.reason for outcome in outcomes.values() if outcome.reason)
        accepted = {identifier: outcome for identifier, outcome in outcomes.items() if not outcome.reason}
        if not accepted:
            none = f"none of {len(outcomes)} cases was accepted: {dict(rejected)}"
            raise ValueError(f"{none}; see {out / 'rejected.csv'}")
        _remove_strangers(out, accepted.keys(), suffix)

        parts = split_cases([cases[identifier] for identifier in accepted], run.seed, run.fractions)
        if unit == "auto":
            unit = metric if all(metric in outcome.measured for outcome in accepted.values()) else "percent"
        content = _header(source, run.name or real_path(out).name, unit)
        for (identifier, outcome), (split, use) in zip(accepted.items(), parts):
            content[split].append(_entry(identifier, cases[identifier].source, outcome, unit, use, suffix))
        datalist = write_datalist(out / "datalist.json", content)
        draw_contact_sheet(datalist, out / "contact_sheet.png")
        draw_variables(datalist, out / "variables.png")
        journal.remove()
    notes = Counter(note for outcome in accepted.values() for note in outcome.notes)
    return Summary(datalist, len(outcomes), rejected, notes, resumed)


def _header(source: Source, name: str, unit: str) -> dict[str, Any]:
    """A datalist without cases."""
    image: dict[str, Any] = {"size": list(source.size), "intensity_range": list(INTENSITY_RANGE)}
    if source.window is not None:
        *window, image["intensity_unit"] = source.window
        image["window"] = window
    header = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "image": image,
        "labels": dict(source.labels),
        "variables": [*measured_variables(source.labels, unit, source.regions), *source.variables],
        "truth": source.truth,
        **{split: [] for split in SPLITS},
    }
    return header if source.regions is None else header | {"regions": dict(source.regions)}


def _take_over(journal: Journal, worker: Worker, cases: Mapping[str, Item]) -> dict[str, Outcome]:
    """The outcomes of the interrupted run that still hold, by id."""
    outcomes = {}
    for identifier, item in cases.items():
        record = journal.records.get(identifier)
        if record and record["input"] == worker.input_digest(item):
            outcome = Outcome(**record["outcome"])
            kept = all(_size(worker.out / name) == size for name, size in outcome.written.items())
            if kept and outcome.reason not in ENVIRONMENT:
                outcomes[identifier] = outcome
    return outcomes


def _work_off(
    worker: Worker, cases: Mapping[str, Item], outcomes: dict[str, Outcome], journal: Journal, run: Run
) -> None:
    """Prepare the cases that have no outcome yet and add their outcomes; if strict, stop at a rejection."""
    if run.strict and any(outcome.reason for outcome in outcomes.values()):
        return
    todo = [(item, identifier) for identifier, item in cases.items() if identifier not in outcomes]
    with (
        tqdm(total=len(cases), initial=len(outcomes), desc="preparing", unit="case") as bar,
        closing(run_cases(worker, todo, run.workers or default_workers(len(todo)), run.scheduler)) as lines,
    ):
        for line in lines:
            record = journal.append(line)
            outcome = outcomes[record["id"]] = Outcome(**record["outcome"])
            bar.update()
            if run.strict and outcome.reason:
                return


def _stop_at_rejected(cases: Mapping[str, Item], outcomes: Mapping[str, Outcome]) -> None:
    """Refuse rejected cases, for ``strict``.

    Raises:
        ValueError: when a case is rejected, naming the first such case.
    """
    for identifier, outcome in outcomes.items():
        if outcome.reason:
            text = f"case {identifier} of {cases[identifier].source} is rejected as {outcome.reason}: {outcome.text}"
            raise ValueError(f"strict: {text}; what is finished is kept")


def _identify(source: Source, salt: str) -> dict[str, Item]:
    """The source's cases by id, in their order."""
    seen: Counter[tuple[str, str]] = Counter()
    cases = {}
    for item in source.items:
        key = (item.source, item.name)
        cases[case_id(item, salt, seen[key])] = item
        seen[key] += 1
    return cases


def _reject_duplicates(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Reject every accepted case whose prepared picture is the same as an earlier one's, whatever its file.

    It would count twice, and could lie in two splits.
    """
    first: dict[str, str] = {}
    checked = {}
    for identifier, outcome in outcomes.items():
        original = identifier if outcome.reason else first.setdefault(outcome.digest, identifier)
        text = f"the picture is that of case {original}"
        checked[identifier] = outcome if original == identifier else Outcome("duplicate_image", text)
    return checked


def _entry(identifier: str, source: str, outcome: Outcome, unit: str, use: str | None, suffix: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": identifier, "source": source}
    if use is not None:
        entry["use"] = use
    file = f"{identifier}{suffix}"
    entry |= {"image": f"images/{file}", "label": f"labels/{file}"}
    if outcome.spacing is not None:
        entry["spacing"] = [float(f"{s:.7g}") for s in outcome.spacing]
    if outcome.arc_length is not None:
        entry["arc_length"] = [float(f"{a:.7g}") for a in outcome.arc_length]
    if outcome.notes:
        entry["notes"] = list(outcome.notes)
    entry["variables"] = {**outcome.measured[unit], **outcome.variables}
    if outcome.exogenous is not None:
        entry["exogenous"] = dict(outcome.exogenous)
    return entry


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _remove_strangers(out: Path, ids: Collection[str], suffix: str) -> None:
    """Remove images and label maps that an earlier run has left: only files whose names have the form of an id."""
    for folder in ("images", "labels"):
        for path in (out / folder).iterdir():
            ours = re.fullmatch(r"([0-9a-f]{16})(\.png|\.nii\.gz|\.[0-9a-f]{8}\.tmp)", path.name)
            if ours and not (ours[1] in ids and ours[2] == suffix):
                path.unlink()


def _write_rejected(path: Path, cases: Mapping[str, Item], outcomes: Mapping[str, Outcome]) -> None:
    rows = [
        (identifier, cases[identifier].source, outcome.reason, outcome.text)
        for identifier, outcome in outcomes.items()
        if outcome.reason
    ]
    write_csv_atomically(path, [("id", "source", "reason", "text"), *rows])


def _write_names(mapping: Path, salt: str, cases: Mapping[str, Item], outcomes: Mapping[str, Outcome]) -> None:
    def text(outcome: Outcome | None) -> str:
        return "not finished" if outcome is None else f"rejected: {outcome.reason}" if outcome.reason else "accepted"

    names = {
        identifier: {
            "source": item.source,
            "name": item.name,
            "patient": item.patient,
            "outcome": text(outcomes.get(identifier)),
        }
        for identifier, item in cases.items()
    }
    write_mapping(mapping, salt, names)
