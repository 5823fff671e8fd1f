"""Folders and files for results."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

__all__ = [
    "remove",
    "writable_folder",
    "write_atomically",
    "write_csv_atomically",
    "write_json_atomically",
    "write_text_atomically",
]


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


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], mode: int = 0o666) -> None:
    """Write a file that is either the old one or the new one, whatever happens in between.

    Only one process may write the file at a time: the scratch file that a killed process leaves behind is overwritten
    by the next one.

    Args:
        path: the file.
        write: is given the scratch file and writes the content to it.
        mode: permissions of the file, less those that the umask takes away.

    Raises:
        OSError: when it cannot be written, as on a full disk; names the file.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with open(scratch, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch wraps it in an error of its own
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"{path}: cannot be written ({cause.strerror})") from error
    finally:
        scratch.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as :func:`write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json_atomically(path: Path, content: Any, mode: int = 0o666) -> None:
    """Write plain values as JSON, as :func:`write_atomically` does."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    # The bytes of a file's name that are no Unicode become JSON's own escapes.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")), mode)


def write_csv_atomically(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write the rows of a table, the first of them its header, as :func:`write_atomically` does."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_text_atomically(path, text.getvalue())


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
