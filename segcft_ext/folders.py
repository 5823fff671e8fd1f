"""Folders and files for results."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["remove", "writable_folder", "write_text_atomically"]


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder if needed and check that it can be written to, before its content is computed.

    Raises:
        OSError: when files cannot be written there; names the folder.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(f"{path}: cannot be written to ({error.strerror})") from error
    return path


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, whatever happens in between."""
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
