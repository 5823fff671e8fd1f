"""Reading the values of the options of ``python -m data_prep``.

Values come as text. What cannot be read raises a ValueError that names the option, what was found and what is expected.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from data_prep.collect import Run
from data_prep.masks import LabelMaps, MaskFolders, Masks, MaskTable
from data_prep.names import real_path
from data_prep.regions import region_definition
from data_prep.splits import FRACTIONS, check_fractions
from segcft_ext.command_line import read_names, read_sizes, read_whole

__all__ = [
    "read_chest_size",
    "read_flag",
    "read_image_size",
    "read_label_values",
    "read_mapping",
    "read_masks",
    "read_numbers",
    "read_region_definition",
    "read_run",
    "read_variables",
    "read_vessel_regions",
    "read_vessel_size",
]

EXAMPLES = {"fractions": json.dumps(FRACTIONS), "missing": '{"age": 0}', "units": '{"age": "years"}'}


def read_run(out: str, *, names: bool = True, mapping: str | None = None, strict: Any = False, **given: Any) -> Run:
    """The options that all sources have in common.

    Args:
        out: the output folder.
        names: whether case names may identify patients, so that they are kept in a file, ``mapping``.
        mapping: this file, by default beside the output folder.
        strict: whether to stop at a rejected case.
        given: other options of :class:`~data_prep.collect.Run`, as they were typed.
    """
    folder = Path(out)
    beside = folder.absolute().with_name(f"{real_path(folder).name}.mapping.json") if names else None
    given["seed"] = read_whole("seed", given["seed"], 0)
    given["fractions"] = check_fractions(read_mapping("fractions", given["fractions"]))
    if given["workers"] is not None:
        given["workers"] = read_whole("workers", given["workers"])
    return Run(folder, mapping=Path(mapping) if mapping else beside, strict=read_flag("strict", strict), **given)


def read_masks(masks: Any, structures: Any, labels: Any, table: str | None, id_column: str) -> Masks:
    """The masks that --masks, --structures, --labels and --mask_table (with --id_column) describe together."""
    masks, names = _read_json("masks", masks), read_names("structures", structures)
    if len(set(names)) < len(names):
        raise ValueError(f"structures: found {','.join(names)}, expected each of them once")
    if isinstance(masks, dict) and not all(isinstance(place, str) for place in masks.values()):
        raise ValueError(f"masks: found {masks!r}, expected the name of a folder, or column, for each structure")
    if table is not None and labels is not None:
        raise ValueError("labels: masks are either label maps or in a --mask_table")
    if labels is not None:
        if isinstance(masks, dict):
            raise ValueError(f"masks: found {masks!r}, expected with --labels a folder")
        return LabelMaps(masks, read_label_values(labels))
    if table is not None:
        return MaskTable(Path(table), masks if isinstance(masks, dict) else {n: n for n in names}, id_column)
    return MaskFolders(masks if isinstance(masks, dict) else {name: f"{masks}/{name}" for name in names})


def _read_json(option: str, given: Any) -> Any:
    """Parse a text that looks like a JSON object or list; anything else is returned unchanged."""
    if not isinstance(given, str) or given.lstrip()[:1] not in ("{", "["):
        return given
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option}: {given!r} is no JSON: {error}") from error


def read_mapping(option: str, given: Any) -> dict[str, Any] | None:
    """A JSON mapping, or None."""
    found = _read_json(option, given)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{option}: found {given!r}, expected JSON as '{EXAMPLES[option]}'")
    return found


def read_variables(given: Any) -> dict[str, Any] | list[str]:
    """A JSON mapping from each variable to its kind, or names alone."""
    found = _read_json("variables", given)
    return found if isinstance(found, dict) else read_names("variables", found)


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
    return read_region_definition("regions", names, boundaries)


def read_region_definition(
    option: str, names: Any, boundaries: Any, of: str = "image", axis: int = 0
) -> dict[str, Any]:
    """The header's ``regions`` from their names, which the option gives, and boundaries; None stands for a default."""
    named = None if names is None else read_names(option, names)
    return region_definition(named, None if boundaries is None else read_numbers("boundaries", boundaries), of, axis)


def read_numbers(option: str, given: Any, count: int | None = None) -> list[float]:
    """Numbers from "0,90", a JSON list, a sequence or a number alone."""
    found = _read_json(option, given)
    parts = found.split(",") if isinstance(found, str) else found if isinstance(found, (list, tuple)) else [found]
    try:
        found = [float(part) for part in parts]
    except (TypeError, ValueError):
        found = []
    if not found or count not in (None, len(found)) or not all(map(math.isfinite, found)):
        raise ValueError(f"{option}: found {given!r}, expected {count or 'one or several'} finite number(s)")
    return found


def read_label_values(given: Any) -> dict[str, list[int]]:
    """Values by structure from "lumen=1-14,calcified_plaque=20", or from JSON: a value, or a list of them, for each."""
    found = _read_json("labels", given)
    if isinstance(found, dict):
        listed = {name: values if isinstance(values, list) else [values] for name, values in found.items()}
        if (
            listed
            and all(listed.values())
            and all(type(value) is int for values in listed.values() for value in values)
        ):
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


def read_chest_size(given: Any) -> int:
    """Height, which is also the width, of a chest phantom, from 64 or "64x64"."""
    height, width = read_image_size(given)
    if height != width:
        raise ValueError(f"size: found {given!r}, expected one number or the same twice: a chest is square")
    return height
