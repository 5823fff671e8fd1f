"""The journal of an unfinished run: one line for each finished case, so that a killed run can be resumed.

It lies in the output folder and is removed when the run is complete. A line holds a case's id, a digest of everything
that its outcome depends on (the source's files with size and time of change, the table's row, the settings, the
program), and the outcome. A line whose digest has changed is not used, so a run with other settings never takes over
anything from this one.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import segcft_ext.measurements
import segcft_ext.presentation

__all__ = ["Journal", "input_digest", "open_journal", "stamp"]

SYNC_SECONDS = 5.0
"""Seconds between syncs to the disk: a power cut costs about as much work; the kill of a process costs none."""


def stamp(path: Path) -> list[Any]:
    """A file's path, size and time of change, which differ when the file was replaced.

    For a folder with the slices of a series: the stamp of each file, since a folder's own size and time do not show
    that a file was replaced.
    """
    try:
        status = path.stat()
        if path.is_dir():
            return [os.path.abspath(path), *(stamp(file) for file in sorted(path.iterdir()) if file.is_file())]
    except OSError:
        return [os.path.abspath(path)]
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def input_digest(salt: str, *inputs: Any) -> str:
    """Digest of plain values and of the program; salted, since the values may name a file."""
    text = json.dumps([_program_digest(), *inputs], sort_keys=True, default=str)
    return hmac.new(salt.encode(), text.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:32]


@cache
def _program_digest() -> str:
    shared = (segcft_ext.measurements, segcft_ext.presentation)
    files = [*sorted(Path(__file__).parent.glob("*.py")), *(Path(str(module.__file__)) for module in shared)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


class Journal:
    """Append-only records of finished cases; built by :func:`open_journal`.

    Attributes:
        records: the records that an earlier run has left, by id.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: dict[str, Mapping[str, Any]] = {}
        path.touch()
        with path.open("r+b") as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut off when the process was killed
                end += len(line)
                try:
                    record = json.loads(line)
                    self.records[record["id"]] = record
                except (ValueError, KeyError, TypeError):
                    continue  # a power cut can leave anything
            file.truncate(end)
        # Unbuffered, so that a written line is in the file at once, and a full disk is reported at once and only once.
        self._file = path.open("ab", buffering=0)
        self._synced = time.monotonic()

    def append(self, line: str) -> Mapping[str, Any]:
        """Append one record, given as JSON, and return it as a resumed run will read it.

        Raises:
            OSError: when the disk is full.
        """
        data = line.encode() + b"\n"
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        return json.loads(line)

    def remove(self) -> None:
        """Forget everything: the run is complete."""
        self._path.unlink()

    def close(self) -> None:
        self._file.close()


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """The journal in an output folder, which is locked meanwhile.

    Raises:
        ValueError: when another run is writing to the folder.
        OSError: when the folder cannot be written to.
    """
    lock = FileLock(folder / "journal.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another run is writing there") from None
    try:
        journal = Journal(folder / "journal.jsonl")
        try:
            yield journal
        finally:
            journal.close()
    finally:
        (folder / "journal.lock").unlink(missing_ok=True)
        lock.release()
