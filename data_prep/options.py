"""Reading the values of the options of ``python -m data_prep``.

Values come as text. What cannot be read raises a ValueError that names the option, what was found and what is expected.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from data_prep.masks import LabelMaps, MaskFolders, Masks, MaskTable
from data_prep.regions import region_definition
from data_prep.splits import FRACTIONS, check_fractions
from segcft_ext.command_line import read_sizes, read_whole

__all__ = [
    "read_boundaries",
    "read_flag",
    "read_fractions",
    "read_image_size",
    "read_json",
    "read_label_values",
    "read_list",
    "read_mapping",
    "read_masks",
    "read_numbers",
    "read_vessel_regions",
    "read_vessel_size",
    "read_workers",
]

EXAMPLES = {
    "fractions": json.dumps(FRACTIONS),
    "labels": '{"heart": 3}',
    "missing": '{"age": 0}',
    "units": '{"age": "years"}',
}


def read_masks(masks: Any, structures: Any, labels: Any, table: str | None, id_column: str) -> Masks:
    """The masks that --masks, --structures, --labels and --mask_table (with --id_column) describe together."""
    masks, structures, labels = read_json("masks", masks), _structures(structures), read_mapping("labels", labels)
    if isinstance(masks, dict) and not all(isinstance(place, str) for place in masks.values()):
        raise ValueError(f"masks: found {masks!r}, expected the name of a folder, or column, for each structure")
    if table is not None and labels is not None:
        raise ValueError("labels: masks are either label maps or in a --mask_table")
    if labels is not None:
        if isinstance(masks, dict):
            raise ValueError(f"masks: found {masks!r}, expected with --labels a folder")
        return LabelMaps(masks, labels)
    if table is not None:
        return MaskTable(Path(table), masks if isinstance(masks, dict) else {n: n for n in structures}, id_column)
    return MaskFolders(masks if isinstance(masks, dict) else {name: f"{masks}/{name}" for name in structures})


def _structures(given: Any) -> list[str]:
    names = read_list(given)
    if len(set(names)) < len(names):
        raise ValueError(f"structures: found {','.join(names)}, expected each of them once")
    return names


def read_json(option: str, given: Any) -> Any:
    """Parse a text that looks like a JSON object or list; anything else is returned unchanged."""
    if not isinstance(given, str) or given.lstrip()[:1] not in ("{", "["):
        return given
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option}: {given!r} is no JSON: {error}") from error


def read_mapping(option: str, given: Any) -> dict[str, Any] | None:
    """A JSON mapping, or None."""
    found = read_json(option, given)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{option}: found {given!r}, expected JSON as '{EXAMPLES[option]}'")
    return found


def read_fractions(given: Any) -> dict[str, float]:
    """The share of each split, from JSON; the default ones for None."""
    return check_fractions(read_mapping("fractions", given))


def read_list(given: Any) -> list[str]:
    """Names from "a,b", a JSON list or a sequence."""
    given = read_json("names", given)
    parts = given.split(",") if isinstance(given, str) else given
    return [name for name in (str(part).strip() for part in parts) if name]


def read_workers(given: Any) -> int | None:
    """A number of processes, or None."""
    return None if given is None else read_whole("workers", given)


def read_boundaries(given: Any) -> list[float] | None:
    """Numbers from "0,0.5,1", a JSON list or a sequence, or None."""
    return None if given is None else [_boundary(part) for part in read_list(given)]


def _boundary(given: str) -> float:
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"boundaries: found {given!r}, expected numbers from 0 to 1") from None


def read_vessel_size(given: Any, dims: int) -> tuple[int, ...]:
    """Number of samples along a vessel and across it, one for each dimension; 256x64 by default."""
    if dims not in (2, 3):
        raise ValueError(f"dims: found {dims}, expected 2 or 3")
    numbers = read_sizes("256x64" if given is None else given)
    if len(numbers) == 2 and dims == 3:
        numbers.append(numbers[1])
    if len(numbers) != dims:
        raise ValueError(f"size: found {given!r}, expected samples along and across, such as 256x64")
    if numbers[0] <= max(numbers[1:]):  # inference tells the axes apart by their lengths
        raise ValueError(f"size: found {given!r}, expected more samples along the vessel than across, such as 256x64")
    return tuple(numbers)


def read_vessel_regions(names: Any, boundaries: Any) -> dict[str, Any] | None:
    """The regions of vessels, thirds by default; None for "none"."""
    if names is not None and str(names).strip().lower() == "none":
        if boundaries is not None:
            raise ValueError(f"boundaries: found {boundaries!r}, expected none for whole vessels (--regions none)")
        return None
    return region_definition(read_list(names or []), read_boundaries(boundaries))


def read_numbers(option: str, given: Any, count: int | None = None) -> tuple[float, ...]:
    """Numbers from "0,90", a list or a number alone."""
    try:
        found = tuple(float(part) for part in (read_list(given) if isinstance(given, (str, list, tuple)) else [given]))
    except ValueError:
        found = ()
    if not found or count not in (None, len(found)) or not all(map(math.isfinite, found)):
        raise ValueError(f"{option}: found {given!r}, expected {count or 'one or several'} finite number(s)")
    return found


def read_label_values(given: Any) -> dict[str, list[int]]:
    """Values by structure from "lumen=1-14,calcified_plaque=20" or from JSON."""
    found = read_json("labels", given)
    if isinstance(found, dict):
        listed = {name: values if isinstance(values, list) else [values] for name, values in found.items()}
        if all(listed.values()) and all(type(value) is int for values in listed.values() for value in values):
            return listed
    values: dict[str, list[int]] = {}
    for part in found.split(",") if isinstance(found, str) else [given]:
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", str(part), re.ASCII)
        if match is None or int(match[2]) > int(match[3] or match[2]):
            raise ValueError(f"labels: found {part!r}, expected structures and their values, as lumen=1 or lumen=1-14")
        values.setdefault(match[1], []).extend(range(int(match[2]), int(match[3] or match[2]) + 1))
    return values


def read_flag(option: str, given: Any) -> bool:
    """Whether a flag, an option that stands alone, is given."""
    if str(given) not in ("True", "False"):
        raise ValueError(f"{option}: found {given!r}, expected --{option} alone, behind the folders")
    return str(given) == "True"


def read_image_size(given: Any) -> tuple[int, int]:
    """Height and width from 64 or "96x64"."""
    numbers = read_sizes(given)
    if len(numbers) not in (1, 2) or min(numbers) < 8:
        raise ValueError(f"size: found {given!r}, expected a whole number of pixels from 8 on, or two of them (96x64)")
    return numbers[0], numbers[-1]
