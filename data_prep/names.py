"""Names of cases, sources and folders, as they follow from those of the user's files."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["real_path", "source_name", "strip_suffix"]

SUFFIXES = (".nii.gz", ".nii", ".dicom", ".dcm", ".png", ".tiff", ".tif")
"""Suffixes taken off a file's name to get the case's name. Others belong to the name (DICOM UIDs have dots)."""


def strip_suffix(name: str) -> str:
    """The name without its suffix, if that is one of :data:`SUFFIXES`."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def source_name(name: str) -> str:
    """A folder's or a file's name as that of a source: one whose bytes are not UTF-8 could be written to no output."""
    return name.encode("utf-8", "replace").decode()


def real_path(path: Path) -> Path:
    """The path without links; in a circle of links as far as possible (pathlib raises there before Python 3.13)."""
    return Path(os.path.realpath(path))
