"""Folders for results."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["writable_folder"]


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
