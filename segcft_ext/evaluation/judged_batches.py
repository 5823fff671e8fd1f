"""Resuming an evaluation: the judge's results for each batch of test cases are saved to a file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segcft_ext.checkpoints import CheckpointError, load_checkpoint, plain, save_atomically
from segcft_ext.evaluation.tally import Tally
from segcft_ext.folders import remove, writable_folder, write_json_atomically

__all__ = ["JudgedBatches"]

LOGGER = logging.getLogger(__name__)


class JudgedBatches:
    """Keeps the results of each batch until the evaluation is written.

    The noise of a batch depends on its cases only, so an evaluation that was killed at any moment and resumed has the
    same figures as an uninterrupted one. One that starts anew removes the files of an earlier one.

    Args:
        folder: folder of the files; removed when the evaluation is over.
        resume: whether to use the batches that are there.
    """

    def __init__(self, folder: str | os.PathLike[str], resume: bool = False) -> None:
        self.folder = Path(folder)
        self.resume = resume

    def start(self, made_from: Mapping[str, Any]) -> None:
        """Check the batches that are there when resuming; otherwise remove them.

        Args:
            made_from: everything that the figures depend on, as plain values.

        Raises:
            CheckpointError: when the batches that are there were made from something else; names the key. If their
                record is damaged, the evaluation starts anew with a warning.
            OSError: when the folder's parent cannot be written to.
        """
        record, made_from = self.folder / "made_from.json", plain(made_from)
        held = self._made_from(record) if self.resume else None
        if held is not None:
            for key in sorted({*held, *made_from}):
                if held.get(key) != made_from.get(key):
                    raise CheckpointError(
                        f"{record}: {key}: an evaluation was begun with {held.get(key)!r:.300}, asked for: "
                        f"{made_from.get(key)!r:.300}; without --resume it starts anew"
                    )
            LOGGER.info("resumed: %s batches are judged in %s", len(list(self.folder.glob("*.pt"))), self.folder)
            return
        writable_folder(self.folder.parent)
        self.remove()
        self.folder.mkdir()
        write_json_atomically(record, made_from)

    def read(self, number: int) -> Tally | None:
        """The results of a batch, or None where it has yet to be judged."""
        if not (path := self._path(number)).is_file():
            return None
        try:
            return Tally.of_state(load_checkpoint(path))
        except CheckpointError as error:
            LOGGER.warning("%s; the batch is judged again", error)
            return None

    def write(self, number: int, found: Tally) -> None:
        save_atomically(found.state_dict(), self._path(number))

    def remove(self) -> None:
        remove(self.folder)

    @staticmethod
    def _made_from(record: Path) -> dict[str, Any] | None:
        """What the batches that are there were made from, or None where that is not known."""
        try:
            held = json.loads(record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            LOGGER.warning("%s: cannot be read (%s); the evaluation starts anew", record, error)
            return None
        return held

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.pt"
