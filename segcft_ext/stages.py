"""A stage: one command that turns files into files, and the record that tells whether it has to run again.

The record, ``stage.json`` in the stage's folder, holds what the stage was made from: its settings by value and its
inputs by content, without their paths. It is written when the stage starts and again when it has succeeded:

.. code-block:: python

    state = stage.state(digests)    # "complete", "interrupted" or "due: <reason>"

It also records a digest of the code. A change of the code alone makes no stage run again, since its results may still
be wanted, but it is reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from segcft_ext.datalist_format import SPLITS
from segcft_ext.folders import remove, write_json_atomically

__all__ = ["Digests", "Stage", "code_digest"]

RECORD = "stage.json"
Files = Path | Sequence[Path] | Mapping[str, Path]
MADE_FROM = ("program", "version", "settings", "inputs")
LISTS = ("datalist", "figures")
"""Inputs and products with these names list further files that belong to them: images and label maps, or pictures."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: name on the screen and of the log.
        program: the command between the interpreter and the options, e.g. ``("-m", "monai.bundle", "run")``.
        folder: folder that the stage writes to.
        products: files in the folder that a finished stage has written.
        inputs: options that are files, lists of files or mappings from names to files; the stage depends on their
            content, not on their paths.
        reads: further files that it reads and on whose content it depends, but which are not options.
        settings: options that are plain values.
        places: options that are paths on whose content it does not depend.
        folder_option: name of the option for ``folder``; None if there is none.
        version: version of the software; another one makes the stage run again.
        splits: splits of its datalist that it reads, if not all: what changes in the others does not make it run again.
        code: :func:`code_digest` of the software; another one does not, see :meth:`by_other_code`.
        progress: the file or folder in ``folder`` that an interrupted run leaves, from which the option ``resume``
            continues; "" if the stage cannot be resumed.
    """

    name: str
    program: tuple[str, ...]
    folder: Path
    products: tuple[str, ...]
    inputs: Mapping[str, Files] = field(default_factory=dict)
    reads: Mapping[str, Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Path] = field(default_factory=dict)
    folder_option: str | None = "output_dir"
    splits: tuple[str, ...] = ()
    version: str = ""
    code: str = ""
    progress: str = ""

    def arguments(self, resume: bool = False) -> list[str]:
        """The command after the interpreter."""
        options: dict[str, Any] = {**self.places, **self.inputs}
        if self.folder_option:
            options[self.folder_option] = self.folder
        options |= self.settings
        if resume:
            options["resume"] = True
        return [*self.program, *(text for key, value in options.items() for text in (f"--{key}", _as_text(value)))]

    def command(self, resume: bool = False) -> str:
        """The command as it would be typed."""
        return shlex.join(["python", *self.arguments(resume)])

    def files(self) -> list[Path]:
        """Every input file."""
        return [file for value in (*self.inputs.values(), *self.reads.values()) for file in _each(value).values()]

    def makes(self, file: Path) -> bool:
        """Whether a file is one of its products."""
        return file in [self.folder / name for name in self.products]

    def follows(self, other: Stage) -> bool:
        """Whether an input is the other stage's product."""
        return any(other.makes(file) for file in self.files())

    def state(self, digests: Digests) -> str:
        """Whether the stage is done: "complete", "interrupted" (it can be resumed) or "due: <reason>"."""
        record = self._record()
        if not record:
            return "due: not run yet"
        now = self._made_from(digests)
        if self.splits and record.get("splits") == now["splits"]:
            record["inputs"]["datalist"] = now["inputs"]["datalist"]
        changed = [key for key in MADE_FROM if record[key] != now[key]]
        if changed == ["inputs"]:
            changed = [key for key in now["inputs"] if record["inputs"].get(key) != now["inputs"][key]]
        if changed:
            return f"due: changed {', '.join(changed)}"
        if not record.get("products"):
            resumable = self.progress and (self.folder / self.progress).exists()
            return "interrupted" if resumable else "due: it was interrupted"
        for name in {**dict.fromkeys(self.products), **record["products"]}:
            path = self.folder / name
            if not path.is_file():
                return f"due: {name} is missing"
            if name in record["products"] and digests.of(path) != record["products"][name]:
                return f"due: {name} is not what it wrote"
        return "complete"

    def by_other_code(self) -> bool:
        """Whether the stage was made by other code."""
        return self._record()["code"] != self.code

    def start(self, digests: Digests, resume: bool) -> None:
        """Record that the stage runs; unless it is resumed, remove the files of an earlier run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in (RECORD, *self.products, *self._record().get("products", ())):
                (self.folder / name).unlink(missing_ok=True)
            if self.progress:
                remove(self.folder / self.progress)
        self._write(self._made_from(digests))

    def finish(self, digests: Digests, seconds: float) -> list[str]:
        """Record that the stage succeeded, or return the products that are missing; it then starts anew next time."""
        missing = [name for name in self.products if not (self.folder / name).is_file()]
        if missing and self.progress:  # a training that is over never writes the best model again
            remove(self.folder / self.progress)
        if not missing:
            written = [self.folder / name for name in self.products]
            written += [file for path in written if path.stem in LISTS for file in _listed(path)]
            products = {os.path.relpath(path, self.folder): digests.of(path) for path in written}
            self._write({**self._record(), "seconds": round(seconds, 1), "products": products})
        return missing

    def _made_from(self, digests: Digests) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for key, value in {**self.inputs, **self.reads}.items():
            found = {name: digests.of(file, key in LISTS) for name, file in _each(value).items()}
            inputs[key] = found[""] if isinstance(value, Path) else found
        settings = json.loads(json.dumps(self.settings))
        read = {"splits": digests.of_splits(_each(self.inputs["datalist"])[""], self.splits)} if self.splits else {}
        return {
            "program": list(self.program),
            "version": self.version,
            "code": self.code,
            "settings": settings,
            "inputs": inputs,
            **read,
        }

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return record if isinstance(record, dict) and {*MADE_FROM, "code"} <= set(record) else {}

    def _write(self, record: Mapping[str, Any]) -> None:
        write_json_atomically(self.folder / RECORD, {"stage": self.name, **record})


class Digests:
    """SHA-256 of files, computed only once while a file keeps its size and modification time."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, path: Path, with_listed: bool = False) -> str:
        """Digest of a file; ``with_listed``, for one of :data:`LISTS`, includes the files that it lists."""
        digest = self._of_file(path)
        if not with_listed:
            return digest
        return hashlib.sha256("".join([digest, *map(self._of_file, _listed(path))]).encode()).hexdigest()

    def of_splits(self, datalist: Path, splits: Sequence[str]) -> str:
        """Digest of some splits of a datalist, with its header and the files that these splits list."""
        content = json.loads(datalist.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in SPLITS or key in splits}
        digests = [json.dumps(kept, sort_keys=True), *map(self._of_file, _listed(datalist, splits))]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _of_file(self, path: Path) -> str:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._known:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._known[key] = digest.hexdigest()
        return self._known[key]


def code_digest(*packages: ModuleType) -> str:
    """SHA-256 of the sources of packages."""
    digest = hashlib.sha256()
    for folder in (Path(path) for package in packages for path in package.__path__):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder.parent).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _listed(path: Path, splits: Sequence[str] = SPLITS) -> list[Path]:
    """The images and label maps of a datalist, or the pictures of an evaluation's ``figures.json``."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return [path.parent / entry["file"] for entry in content]
    cases = [case for split in splits for case in content[split]]
    return [path.parent / case[key] for case in cases for key in ("image", "label")]


def _each(value: Files) -> Mapping[str, Path]:
    if isinstance(value, Path):
        return {"": value}
    return value if isinstance(value, Mapping) else {str(place): file for place, file in enumerate(value)}


def _as_text(value: Any) -> str:
    """An option's value as MONAI's command line reads it: Python's True and False, JSON for mappings and lists."""
    if isinstance(value, Mapping):
        parts = {key: str(part) if isinstance(part, Path) else part for key, part in value.items()}
        return json.dumps(parts, ensure_ascii=False)
    return json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, list) else str(value)
