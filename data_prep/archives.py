"""Finding files by name in folders, in zip archives, and in zip archives within folders.

A file's place is plain text, so that it can be sent to worker processes; each process opens an archive once and reads
the files from it without unpacking.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

__all__ = ["Place", "files_below", "find_files", "open_place"]


@dataclass(frozen=True)
class Place:
    """A file: its path, or the path of a zip archive and the member's name within."""

    path: str
    member: str = ""


def find_files(roots: Sequence[Path], suffix: str) -> tuple[dict[str, list[Place]], list[Path]]:
    """Find files with this suffix, except hidden ones, by their name without folders.

    An unpacked file takes precedence over files of the same name in archives: both exist after unpacking an archive.

    Args:
        roots: folders, searched with all below them, and zip archives.
        suffix: such as ".png"; upper and lower case do not matter.

    Returns:
        The places of each name, more than one where a name is ambiguous; and the archives that cannot be opened.

    Raises:
        ValueError: when a root does not exist or is neither a folder nor a zip archive.
    """
    loose: dict[str, list[Place]] = {}
    packed: dict[str, list[Place]] = {}
    broken: list[Path] = []
    for root in roots:
        if not root.is_dir() and not (root.is_file() and _has_suffix(root.name, ".zip")):
            raise ValueError(f"{root}: no such folder or zip archive")
        for path in [root] if root.is_file() else files_below(root):
            if _has_suffix(path.name, suffix):
                loose.setdefault(path.name, []).append(Place(str(path)))
            elif _has_suffix(path.name, ".zip"):
                try:
                    with zipfile.ZipFile(path) as archive:
                        members = archive.namelist()
                except Exception:  # damaged archives raise errors of many types
                    broken.append(path)
                    continue
                for member in members:
                    name = PurePosixPath(member).name
                    if _has_suffix(member, suffix) and not member.startswith("__MACOSX/"):
                        packed.setdefault(name, []).append(Place(str(path), member))
    return {**packed, **loose}, broken


def open_place(place: Place) -> Path | zipfile.Path:
    """Where a file can be read."""
    # One archive per process: a forked process that used its parent's would share the position in the file.
    return zipfile.Path(_archive(place.path, os.getpid()), place.member) if place.member else Path(place.path)


@lru_cache(maxsize=64)
def _archive(path: str, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _has_suffix(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and not PurePosixPath(name).name.startswith(".")


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted. Links to folders are followed, except links to a folder that contains them.

    Raises:
        OSError: when a folder cannot be read, which would hide its files.
    """
    found = []
    ways = {str(folder): {os.path.realpath(folder)}}  # real paths of each folder and of those that lead to it
    for root, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        way = ways.pop(root)
        real = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in way]
        ways |= {os.path.join(root, name): way | {real[name]} for name in folders}
        found += [Path(root, file) for file in files]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise error
