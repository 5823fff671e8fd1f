"""The format of a datalist: MONAI's datalist JSON with a header that describes the data to every stage.

.. code-block:: json

    {
      "format_version": 1,
      "name": "chest phantoms",
      "image": {"size": [64, 64], "intensity_range": [0, 65535]},
      "labels": {"background": 0, "left_lung": 1, "right_lung": 2, "heart": 3},
      "variables": [
        {"name": "left_lung_area", "kind": "continuous", "unit": "percent",
         "measurement": {"_target_": "segcft_ext.measurements.Area", "label": 1, "unit": "percent"}},
        {"name": "age", "kind": "continuous", "unit": "years"},
        {"name": "sex", "kind": "binary", "unit": "", "categories": ["F", "M"]}
      ],
      "truth": null,
      "training": [
        {"id": "3f0c…", "source": "phantom", "use": "guide", "image": "images/3f0c….png", "label": "labels/3f0c….png",
         "variables": {"left_lung_area": 12.1, "age": null, "sex": 1}}
      ],
      "validation": [], "test": []
    }

Paths are relative to the file. A missing value is ``null``; categories are given by their index. ``use`` divides the
training split: ``guide`` cases train the guiding segmentor and the regressor, ``judge`` cases the independent judge.
An entry may have ``spacing`` (mm, one number for each axis), and must have it where a variable is measured in ``mm2``
or ``mm3``. A measured variable has the unit of its measurement. ``truth`` names a renderer of true counterfactuals
(phantoms only) and ``exogenous`` in an entry is what that renderer needs to draw the same case again. ``image`` may say
what the stored range stands for: ``"window": [-150, 750], "intensity_unit": "HU"``.

A variable of one region of a structure names both, and the header defines the regions:

.. code-block:: json

    {
      "regions": {"axis": 0, "of": "image", "names": ["proximal", "mid", "distal"],
                  "boundaries": [0, 0.3333, 0.6667, 1]},
      "variables": [
        {"name": "lumen_area_proximal", "kind": "continuous", "unit": "mm2", "structure": "lumen", "region": "proximal",
         "measurement": {"_target_": "segcft_ext.measurements.RegionArea", "label": 1, "axis": 0, "low": 0,
                         "high": 0.3333, "of": "image", "unit": "mm2"}}
      ]
    }

(see :class:`segcft_ext.measurements.RegionArea`). ``arc_length`` in an entry is where a straightened vessel begins and
ends, in mm from the ostium.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcft_ext.measurements import PHYSICAL_UNITS, Area, RegionArea, instantiate_measurement, value_limits
from segcft_ext.variables import KINDS

__all__ = ["FORMAT_VERSION", "SPLITS", "DatalistError", "Regions", "Variable", "validate", "validate_regions"]

FORMAT_VERSION = 1
SPLITS = ("training", "validation", "test")
USES = ("guide", "judge")


class DatalistError(ValueError):
    """A datalist that contradicts the format; the message names the file, the entry and the key."""


@dataclass(frozen=True)
class Variable:
    """One scalar variable.

    Attributes:
        name: its name.
        kind: "continuous", "binary" or "categorical".
        unit: its physical unit; "" for none.
        categories: names of its categories; empty for a continuous variable.
        measurement: how it is measured, as ``{"_target_": …}``; None where it is not.
        structure: the structure that a variable of a region belongs to, or "".
        region: the region that it is measured in, or "".
    """

    name: str
    kind: str = "continuous"
    unit: str = ""
    categories: tuple[str, ...] = ()
    measurement: Mapping[str, Any] | None = None
    structure: str = ""
    region: str = ""


@dataclass(frozen=True)
class Regions:
    """Bands across an axis, which divide a structure into parts with variables of their own.

    Attributes:
        axis: spatial axis that the bands lie across.
        of: what the boundaries are fractions of: the extent of the ``"image"`` or of the factual ``"structure"``.
        names: the R regions along the axis.
        boundaries: R + 1 fractions, rising from 0 to 1.
    """

    axis: int
    of: str
    names: tuple[str, ...]
    boundaries: tuple[float, ...]

    def limits(self, region: str) -> tuple[float, float]:
        """Lower and upper boundary of a region."""
        place = self.names.index(region)
        return self.boundaries[place], self.boundaries[place + 1]


def validate(content: Any, path: Path, check_files: bool) -> dict[str, Any]:
    """Validate the content of a file; returns the fields of a :class:`~segcft_ext.datalist.Datalist` except its path.

    Args:
        content: the parsed JSON.
        path: the file, for messages and because paths in it are relative to it.
        check_files: also check that every image and label file exists.

    Raises:
        DatalistError: when the content contradicts the format; names the entry and the key.
    """

    def fail(where: str, found: Any, expected: str) -> DatalistError:
        return DatalistError(f"{path}: {where}: found {found!r}, expected {expected}")

    if not isinstance(content, Mapping):
        raise fail("top level", type(content).__name__, "an object")
    if content.get("format_version") != FORMAT_VERSION:
        raise fail("format_version", content.get("format_version"), str(FORMAT_VERSION))

    image = _validate_image(content.get("image"), fail)
    dims = len(image["size"])
    labels = content.get("labels")
    if not (isinstance(labels, Mapping) and all(_is_int(v) and v >= 0 for v in labels.values())):
        raise fail("labels", labels, "a whole number for each structure")
    if labels.get("background") != 0 or len(set(labels.values())) != len(labels):
        raise fail("labels", dict(labels), "distinct values, background 0")

    regions = validate_regions(content["regions"], dims, fail) if content.get("regions") is not None else None
    listed, truth = content.get("variables") or [], content.get("truth")
    if not isinstance(listed, list):
        raise fail("variables", listed, "a list")
    variables = [_validate_variable(v, i, labels, regions, dims, fail) for i, v in enumerate(listed)]
    names = [v.name for v in variables]
    if not names or len(set(names)) != len(names):
        raise fail("variables", names, "at least one, each name once")
    if truth is not None and not (isinstance(truth, Mapping) and isinstance(truth.get("_target_"), str)):
        raise fail("truth", truth, "an object with a _target_, or null")
    return {
        "name": str(content.get("name") or path.parent.name),
        **image,
        "labels": dict(labels),
        "variables": tuple(variables),
        "truth": truth,
        "entries": _validate_entries(content, variables, dims, path, check_files, fail),
        "regions": regions,
    }


def _validate_image(image: Any, fail: Any) -> dict[str, Any]:
    """The header's ``image``."""
    if not isinstance(image, Mapping):
        raise fail("image", image, '{"size": [H, W], "intensity_range": [low, high]}')
    size, intensity = image.get("size"), image.get("intensity_range")
    if not (isinstance(size, list) and len(size) in (2, 3) and all(_is_int(s) and s > 0 for s in size)):
        raise fail("image.size", size, "two or three positive whole numbers")
    if not (isinstance(intensity, list) and len(intensity) == 2 and all(_is_number(i) for i in intensity)):
        raise fail("image.intensity_range", intensity, "two numbers")
    if not intensity[0] < intensity[1]:
        raise fail("image.intensity_range", intensity, "the lower before the higher")
    window, intensity_unit = image.get("window"), image.get("intensity_unit") or ""
    if window is not None and not (
        isinstance(window, list) and len(window) == 2 and all(map(_is_number, window)) and window[0] < window[1]
    ):
        raise fail("image.window", window, "two numbers, the lower before the higher")
    if not isinstance(intensity_unit, str):
        raise fail("image.intensity_unit", intensity_unit, "a text")
    return {
        "size": tuple(size),
        "intensity_range": (float(intensity[0]), float(intensity[1])),
        "window": None if window is None else (float(window[0]), float(window[1])),
        "intensity_unit": intensity_unit,
    }


def validate_regions(regions: Any, dims: int, fail: Callable[[str, Any, str], ValueError]) -> Regions:
    """The header's ``regions``, validated; raises the error that ``fail(key, found, expected)`` makes."""
    if not isinstance(regions, Mapping):
        raise fail("regions", regions, "an object with axis, of, names and boundaries")
    of, names, boundaries = (regions.get(key) for key in ("of", "names", "boundaries"))
    axis: Any = regions.get("axis")
    if not (_is_int(axis) and 0 <= axis < dims):
        raise fail("regions.axis", axis, f"an axis of the image, 0 … {dims - 1}")
    if of not in ("image", "structure"):
        raise fail("regions.of", of, "'image' or 'structure'")
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise fail("regions.names", names, "a list of names")
    if len(set(names)) != len(names):
        raise fail("regions.names", names, "each name once")
    if not (
        isinstance(boundaries, list)
        and len(boundaries) == len(names) + 1
        and all(_is_number(b) for b in boundaries)
        and (boundaries[0], boundaries[-1]) == (0, 1)
        and all(a < b for a, b in itertools.pairwise(boundaries))
    ):
        raise fail("regions.boundaries", boundaries, f"{len(names) + 1} numbers that rise from 0 to 1")
    return Regions(axis, of, tuple(names), tuple(map(float, boundaries)))


def _validate_variable(
    variable: Any, index: int, labels: Mapping[str, int], regions: Regions | None, dims: int, fail: Any
) -> Variable:
    where = f"variables[{index}]"
    if not isinstance(variable, Mapping) or not isinstance(variable.get("name"), str) or not variable["name"]:
        raise fail(where, variable, "an object with a name")
    kind, categories = variable.get("kind"), variable.get("categories") or []
    if kind not in KINDS:
        raise fail(f"{where}.kind", kind, " or ".join(map(repr, KINDS)))
    if not (isinstance(categories, list) and all(isinstance(name, str) for name in categories)):
        raise fail(f"{where}.categories", categories, "a list of names")
    if (kind != "continuous" and len(categories) < 2) or (kind == "binary" and len(categories) != 2):
        raise fail(
            f"{where}.categories", categories, "two names for a binary variable, two or more for a categorical one"
        )
    unit, measurement, ruler = str(variable.get("unit") or ""), variable.get("measurement"), None
    if measurement is not None:
        if not isinstance(measurement, Mapping):
            raise fail(f"{where}.measurement", measurement, "an object with a _target_, or null")
        try:
            ruler = instantiate_measurement(measurement)
        except (TypeError, ValueError) as error:
            raise fail(f"{where}.measurement", measurement, f"a measurement ({error})") from error
        if isinstance(ruler, Area) and ruler.label not in labels.values():
            raise fail(f"{where}.measurement.label", ruler.label, f"a value of the labels {dict(labels)}")
        if ruler.unit in PHYSICAL_UNITS and ruler.unit != PHYSICAL_UNITS[dims - 2]:
            raise fail(f"{where}.measurement.unit", ruler.unit, f"{PHYSICAL_UNITS[dims - 2]!r} of {dims}-D images")
        if unit != ruler.unit:
            raise fail(f"{where}.unit", unit, f"{ruler.unit!r}, as it is measured")
    structure, region = variable.get("structure") or "", variable.get("region") or ""
    if structure and (not isinstance(structure, str) or structure not in labels):
        raise fail(f"{where}.structure", structure, f"one of {list(labels)}")
    if structure and isinstance(ruler, Area) and ruler.label != labels[structure]:
        raise fail(f"{where}.measurement.label", ruler.label, f"{labels[structure]}, that of {structure}")
    if region and (regions is None or region not in regions.names):
        raise fail(f"{where}.region", region, f"one of the regions {list(regions.names) if regions else []}")
    if isinstance(ruler, RegionArea) and not region:
        raise fail(f"{where}.region", region, "the region, one of the header's, that a RegionArea is of")
    if region and regions is not None:
        low, high = regions.limits(region)
        band = (regions.axis, regions.of, low, high)
        found = (ruler.axis, ruler.of, ruler.low, ruler.high) if isinstance(ruler, RegionArea) else None
        if found != band:
            raise fail(f"{where}.measurement", measurement, f"that of the region: axis, of, low, high as {band}")
    return Variable(variable["name"], kind, unit, tuple(categories), measurement, structure, region)


def _validate_entries(
    content: Mapping[str, Any], variables: Sequence[Variable], dims: int, path: Path, check_files: bool, fail: Any
) -> dict[str, list[Mapping[str, Any]]]:
    """The entries of each split."""
    entries: dict[str, list[Mapping[str, Any]]] = {}
    seen: dict[str, str] = {}
    for split in SPLITS:
        if not isinstance(content.get(split), list):
            raise fail(split, content.get(split), "a list of cases")
        entries[split] = content[split]
        for index, entry in enumerate(entries[split]):
            where = f"{split}[{index}]"
            _validate_entry(entry, where, variables, dims, fail)
            for key in ("id", "image"):  # the same image in two splits would leak from one into the other
                name = entry[key] if key == "id" else Path(entry[key])
                same = seen.setdefault(f"{key} {name}", where)
                if same != where:
                    raise fail(f"{where}.{key}", entry[key], f"an {key} of its own (also at {same})")
            if split == "training" and entry.get("use") not in USES:
                raise fail(f"{where}.use", entry.get("use"), " or ".join(map(repr, USES)))
            for key in ("image", "label"):
                if check_files and not (path.parent / entry[key]).is_file():
                    raise fail(f"{where}.{key}", entry[key], "an existing file")
    return entries


def _validate_entry(entry: Any, where: str, variables: Sequence[Variable], dims: int, fail: Any) -> None:
    if not isinstance(entry, Mapping):
        raise fail(where, entry, "an object")
    for key in ("id", "source", "image", "label"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise fail(f"{where}.{key}", entry.get(key), "a string")
    for key in ("image", "label"):
        if Path(entry[key]).is_absolute():
            raise fail(f"{where}.{key}", entry[key], "a path relative to the datalist")
    spacing = entry.get("spacing")
    if spacing is not None and not (
        isinstance(spacing, list) and len(spacing) == dims and all(_is_number(s) and s > 0 for s in spacing)
    ):
        raise fail(f"{where}.spacing", spacing, f"{dims} positive numbers (mm)")
    physical = [v.name for v in variables if v.measurement is not None and v.unit in PHYSICAL_UNITS]
    if spacing is None and physical:
        raise fail(f"{where}.spacing", None, f"{dims} positive numbers (mm), which {physical[0]} is measured with")
    arc = entry.get("arc_length")
    if arc is not None and not (
        isinstance(arc, list) and len(arc) == 2 and all(_is_number(a) for a in arc) and 0 <= arc[0] < arc[1]
    ):
        raise fail(f"{where}.arc_length", arc, "start and end in mm from the ostium, the lower first")
    values = entry.get("variables")
    if not isinstance(values, Mapping):
        raise fail(f"{where}.variables", values, "a value for each variable")
    for variable in variables:
        value = values.get(variable.name)
        if value is None:
            if variable.measurement is not None:
                raise fail(
                    f"{where}.variables.{variable.name}", None, "a number (it is measured, so it cannot be missing)"
                )
        elif not _is_number(value):
            raise fail(f"{where}.variables.{variable.name}", value, "a finite number or null")
        elif variable.measurement is not None and value < value_limits(variable.unit)[0]:
            raise fail(f"{where}.variables.{variable.name}", value, f"zero or more {variable.unit}")
        elif variable.kind != "continuous" and value not in range(len(variable.categories)):
            raise fail(f"{where}.variables.{variable.name}", value, f"an index below {len(variable.categories)}")
    unknown = set(values) - {v.name for v in variables}
    if unknown:
        raise fail(f"{where}.variables", sorted(unknown), f"only {[v.name for v in variables]}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
