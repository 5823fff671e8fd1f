"""Regional variables for any datalist: the areas of structures divided into bands, measured on the stored label maps.

Images and label maps are referred to where they are, not copied.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils.module import optional_import
from tqdm import tqdm

from data_prep.measured import measured_values, regional_variables
from data_prep.names import real_path
from segcft_ext.datalist import Datalist, read_datalist, write_datalist
from segcft_ext.datalist_format import SPLITS, validate_regions
from segcft_ext.measurements import Area, Measurement, RegionArea, instantiate_measurement

__all__ = ["derive_regions", "region_definition"]

NAMES = {
    ("image", 2): ["proximal", "distal"],
    ("image", 3): ["proximal", "mid", "distal"],
    ("structure", 2): ["upper", "lower"],
    ("structure", 3): ["upper", "middle", "lower"],
}


def region_definition(
    names: Sequence[str] | None = None, boundaries: Sequence[float] | None = None, of: str = "image", axis: int = 0
) -> dict[str, Any]:
    """The header's ``regions``: thirds by default; equal parts where only names are given.

    Raises:
        ValueError: when there is not one more boundary than there are names, these are not all different, the
            boundaries do not rise from 0 to 1, ``of`` is neither "image" nor "structure", or ``axis`` is no axis.
    """
    count = len(names) if names else max(1, len(boundaries) - 1) if boundaries else 3
    names = list(names or NAMES.get((of, count), [f"region{i + 1}" for i in range(count)]))
    # six decimals are a ten-thousandth of a pixel
    boundaries = list(boundaries or [round(i / count, 6) for i in range(count + 1)])
    definition = {"axis": axis, "of": of, "names": names, "boundaries": boundaries}
    validate_regions(definition, 3, _wrong_option)
    return definition


def derive_regions(
    datalist: str | os.PathLike[str],
    out: str | os.PathLike[str],
    regions: Mapping[str, Any],
    structures: Sequence[str] | None = None,
) -> Datalist:
    """Write a datalist in which each area of a structure is replaced by its areas in the regions.

    Areas that are divided already are divided anew. Everything else stays: other variables and their values, splits,
    ids, use, noise. The renderer of true counterfactuals stays if it takes ``regions``; any other one cannot know what
    a regional variable means.

    Args:
        datalist: the datalist to start from.
        out: the new file, in a folder of its own.
        regions: as the header has them, see :func:`region_definition`.
        structures: structures whose areas are divided; all by default.

    Raises:
        ValueError: when ``out`` is no JSON file or lies beside the datalist, a structure is unknown or has no area, or
            a structure that is not divided anew has other regions.
        DatalistError: when the datalist or a label map cannot be read, or the regions contradict its format.
    """
    target = Path(out).absolute()
    if target.suffix != ".json" or target.is_dir():
        raise ValueError(f"out: found {out}, expected a file, as {Path(out, 'datalist.json')}")
    if target.parent.resolve() == Path(datalist).absolute().parent.resolve():
        raise ValueError(f"out: {target} lies in the folder of {datalist}; choose another folder")
    source = read_datalist(datalist)
    content = json.loads(source.path.read_text(encoding="utf-8"))
    divided = _areas(source, structures)
    variables: list[dict[str, Any]] = []
    measurements: dict[str, Measurement] = {}
    for variable in content["variables"]:
        name = variable["name"]
        if name not in divided:
            variables.append(variable)
            continue
        whole = {**variable, "name": name.removesuffix(f"_{variable.get('region')}")}
        parts = regional_variables(whole, divided[name], regions)
        if parts[0]["name"] not in measurements:  # of what is divided anew, the first part stands for all
            variables += parts
            measurements |= {part["name"]: instantiate_measurement(part["measurement"]) for part in parts}
    target.parent.mkdir(parents=True, exist_ok=True)
    content |= {"regions": dict(regions), "variables": variables, "truth": _truth(source, regions)}
    entries, reader = [entry for split in SPLITS for entry in content[split]], source.reader()
    origin, place = real_path(source.path.parent), real_path(target.parent)  # ".." leads out of a link's target
    for entry in tqdm(entries, desc="measuring", unit="case"):
        label, _ = reader.get_data(source.path.parent / entry["label"])
        values = measured_values(measurements, label, source.num_classes, entry.get("spacing"))
        kept = {name: value for name, value in entry["variables"].items() if name not in divided}
        ordered = {v["name"]: ({**kept, **values}).get(v["name"]) for v in variables}
        entry["variables"] = ordered
        for key in ("image", "label"):
            entry[key] = Path(os.path.relpath(origin / entry[key], place)).as_posix()
    return write_datalist(target, content)


def _areas(datalist: Datalist, structures: Sequence[str] | None) -> dict[str, str]:
    """The structure of each variable that is to be divided."""
    wanted = list(structures or datalist.structures)
    unknown = [name for name in wanted if name not in datalist.structures]
    if unknown:
        raise ValueError(f"structures: found {unknown}, expected some of {datalist.structures}")
    found = {}
    for name, measurement in datalist.measurements().items():
        if not isinstance(measurement, Area):
            continue
        structure = next(s for s, value in datalist.labels.items() if value == measurement.label)
        if structure not in wanted:
            if isinstance(measurement, RegionArea):
                raise ValueError(f"{datalist.path}: {name} is of other regions: {measurement!r}; divide all structures")
            continue
        found[name] = structure
    lacking = [name for name in wanted if name not in found.values()]
    if lacking and (structures or not found):
        raise ValueError(f"{datalist.path}: structures: {lacking} have no area among {datalist.variable_names}")
    return found


def _truth(datalist: Datalist, regions: Mapping[str, Any]) -> dict[str, Any] | None:
    if datalist.truth is None:
        return None
    module, _, name = str(datalist.truth["_target_"]).rpartition(".")
    renderer: Any = optional_import(module, name=name)[0]
    if "regions" not in inspect.signature(renderer).parameters:
        return None
    return {**datalist.truth, "regions": dict(regions)}


def _wrong_option(key: str, found: Any, expected: str) -> ValueError:
    return ValueError(f"{key.removeprefix('regions.')}: found {found!r}, expected {expected}")
