"""The datalist: MONAI's datalist JSON with a header that every stage reads instead of being told again.

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
``spacing`` (mm, one number for each axis) may stand in an entry. ``truth`` names a renderer of true counterfactuals
(phantoms only) and ``exogenous`` in an entry is what that renderer needs to draw the same case again. ``image`` may say
what the stored range stands for: ``"window": [-150, 750], "intensity_unit": "HU"``.

Variables of a part of a structure name it, and the header says what the parts are:

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
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, NibabelReader, PILReader

from segcft_ext.measurements import Measurement, instantiate_measurement

__all__ = [
    "SPLITS",
    "Datalist",
    "DatalistError",
    "Regions",
    "Variable",
    "known_datalist",
    "read_datalist",
    "write_datalist",
]

FORMAT_VERSION = 1
SPLITS = ("training", "validation", "test")
KINDS = ("continuous", "binary", "categorical")
USES = ("guide", "judge")
POINT_MASS = 0.02


class DatalistError(ValueError):
    """A datalist that contradicts the format; the message names the file, the entry and the key."""


@dataclass(frozen=True)
class Variable:
    """One scalar variable: name, kind, unit, names of its categories, and how it is measured if it is measured.

    A variable of one region of a structure says of which.
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
        of: whose extent the boundaries are fractions of, ``"image"`` or the factual ``"structure"``.
        names: the R regions along the axis.
        boundaries: R + 1 fractions, rising from 0 to 1.
    """

    axis: int
    of: str
    names: tuple[str, ...]
    boundaries: tuple[float, ...]


@dataclass(frozen=True)
class Datalist:
    """A validated datalist.

    Attributes:
        path: the file it was read from.
        name: what the data are called in reports.
        size: image size in pixels, (H, W) or (D, H, W).
        intensity_range: lowest and highest stored intensity, mapped to [-1, 1] for the networks.
        labels: value in the label map for each structure; ``background`` is 0.
        variables: the scalar variables in order.
        truth: renderer of true counterfactuals as ``{"_target_": …}``, or None.
        entries: the entries of each split as they stand in the file.
        regions: the regions that variables are measured in, or None.
        window: intensities that the ends of ``intensity_range`` stand for, the same for all cases, or None.
        intensity_unit: their unit, such as HU.
    """

    path: Path
    name: str
    size: tuple[int, ...]
    intensity_range: tuple[float, float]
    labels: Mapping[str, int]
    variables: tuple[Variable, ...]
    truth: Mapping[str, Any] | None
    entries: Mapping[str, Sequence[Mapping[str, Any]]]
    regions: Regions | None = None
    window: tuple[float, float] | None = None
    intensity_unit: str = ""

    @property
    def variable_names(self) -> list[str]:
        return [variable.name for variable in self.variables]

    @property
    def measured_variables(self) -> list[dict[str, Any]]:
        """The definition of each measured variable, see :meth:`definitions`."""
        return self.definitions([v.name for v in self.variables if v.measurement is not None])

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.size)

    def reader(self) -> ImageReader:
        """What MONAI's ``LoadImaged`` reads images and label maps with: PNG files in 2-D, NIfTI files in 3-D."""
        return PILReader(reverse_indexing=False) if self.spatial_dims == 2 else NibabelReader()

    @property
    def structures(self) -> list[str]:
        """The structures in the order of their label values, without the background."""
        return [name for name, value in sorted(self.labels.items(), key=lambda item: item[1]) if value != 0]

    @property
    def num_classes(self) -> int:
        """Number of channels a segmentor needs, the background included."""
        return max(self.labels.values()) + 1

    def variable(self, name: str) -> Variable:
        """The variable of this name.

        Raises:
            DatalistError: when the datalist has no such variable.
        """
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise DatalistError(f"{self.path}: no variable {name!r}; it has {self.variable_names}")

    def measurements(self) -> dict[str, Measurement]:
        """The measurement of each measured variable, in the order of the variables."""
        return {v.name: instantiate_measurement(v.measurement) for v in self.variables if v.measurement is not None}

    def definitions(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """What :class:`segcft_ext.variables.Variables` takes, of the variables named or of all.

        A continuous variable is zero-inflated where it is never negative and exactly zero in at least
        :data:`POINT_MASS` of the training cases that know it.

        Raises:
            DatalistError: when a variable is unknown or there is no training case.
        """
        variables = [self.variable(name) for name in (self.variable_names if names is None else names)]
        values = self.training_values([variable.name for variable in variables])["values"]
        found: list[dict[str, Any]] = []
        for variable, column in zip(variables, values.unbind(1)):
            found.append({"name": variable.name, "kind": variable.kind})
            if variable.kind == "categorical":
                found[-1]["num_categories"] = len(variable.categories)
            known = column[~column.isnan()]
            if variable.kind == "continuous" and (known >= 0).all() and (known == 0).float().mean() >= POINT_MASS:
                found[-1]["zero_inflated"] = True
        return found

    def training_values(self, names: Sequence[str]) -> dict[str, Any]:
        """What :meth:`segcft_ext.variables.Variables.fit` takes: the training split's values, units and categories.

        Args:
            names: the variables, in the order of the columns of ``values`` (N, K).

        Raises:
            DatalistError: when a variable is unknown or there is no training case.
        """
        variables = [self.variable(name) for name in names]
        return {
            "values": torch.from_numpy(np.stack([item["variables"] for item in self.items("training", None, names)])),
            "units": [variable.unit for variable in variables],
            "categories": [variable.categories for variable in variables],
        }

    def items(
        self, split: str, use: str | None = None, variables: Sequence[str] | None = None, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Entries as MONAI's dictionary datasets want them.

        Args:
            split: "training", "validation" or "test".
            use: keep only training cases of this use ("guide" or "judge").
            variables: names of the variables wanted, all of them by default.
            limit: keep only the first so many.

        Returns:
            One dict for each case: ``image`` and ``label`` (absolute paths), ``id``, ``source``, ``variables`` (float32
            array of shape (K,) in physical units, NaN where missing) and ``spacing`` (float32 array of shape (D,),
            NaN where unknown).

        Raises:
            DatalistError: when a variable is unknown or no case is left.
        """
        names = [self.variable(name).name for name in (variables or self.variable_names)]
        chosen = [entry for entry in self.entries[split] if use is None or entry.get("use") == use]
        if not chosen:
            raise DatalistError(f"{self.path}: no case in split {split!r}" + (f" for use {use!r}" if use else ""))
        root = self.path.parent
        return [
            {
                "image": str(root / entry["image"]),
                "label": str(root / entry["label"]),
                "id": entry["id"],
                "source": entry["source"],
                "variables": np.array(
                    [math.nan if entry["variables"].get(n) is None else entry["variables"][n] for n in names],
                    np.float32,
                ),
                "spacing": np.array(entry.get("spacing") or [math.nan] * len(self.size), np.float32),
            }
            for entry in chosen[:limit]
        ]


def read_datalist(path: str | os.PathLike[str], check_files: bool = True) -> Datalist:
    """Read and validate a datalist.

    Args:
        path: the JSON file.
        check_files: also check that every image and label file exists.

    Raises:
        DatalistError: when the file cannot be read or contradicts the format; names the entry and the key.
    """
    path = Path(path).absolute()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatalistError(f"{path}: no such datalist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatalistError(f"{path}: cannot be read as JSON: {error}") from error
    return _validate(content, path, check_files)


def known_datalist(path: str | os.PathLike[str]) -> Datalist | None:
    """The datalist, or None where there is none yet: what a config's networks are built for by default.

    Images and label maps are not looked for; what reads them does that.

    Raises:
        DatalistError: when there is a file that contradicts the format.
    """
    return read_datalist(path, check_files=False) if Path(path).exists() else None


def write_datalist(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Datalist:
    """Validate a datalist's content, then write it atomically.

    Raises:
        DatalistError: when the content contradicts the format; nothing is written then.
    """
    path = Path(path).absolute()
    datalist = _validate(content, path, check_files=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)
    return datalist


def _validate(content: Any, path: Path, check_files: bool) -> Datalist:
    def fail(where: str, found: Any, expected: str) -> DatalistError:
        return DatalistError(f"{path}: {where}: found {found!r}, expected {expected}")

    if not isinstance(content, Mapping):
        raise fail("top level", type(content).__name__, "an object")
    if content.get("format_version") != FORMAT_VERSION:
        raise fail("format_version", content.get("format_version"), str(FORMAT_VERSION))

    image = content.get("image")
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

    labels = content.get("labels")
    if not (isinstance(labels, Mapping) and all(_is_int(v) and v >= 0 for v in labels.values())):
        raise fail("labels", labels, "a whole number for each structure")
    if labels.get("background") != 0 or len(set(labels.values())) != len(labels):
        raise fail("labels", dict(labels), "distinct values, background 0")

    regions = _validate_regions(content["regions"], len(size), fail) if content.get("regions") is not None else None
    variables = [_validate_variable(v, i, labels, regions, fail) for i, v in enumerate(content.get("variables") or [])]
    names = [v.name for v in variables]
    if not names or len(set(names)) != len(names):
        raise fail("variables", names, "at least one, each name once")

    entries: dict[str, list[Mapping[str, Any]]] = {}
    seen: dict[str, str] = {}
    for split in SPLITS:
        if not isinstance(content.get(split), list):
            raise fail(split, content.get(split), "a list of cases")
        entries[split] = content[split]
        for index, entry in enumerate(entries[split]):
            where = f"{split}[{index}]"
            _validate_entry(entry, where, variables, len(size), fail)
            if entry["id"] in seen:
                raise fail(f"{where}.id", entry["id"], f"an id of its own (also at {seen[entry['id']]})")
            seen[entry["id"]] = where
            if split == "training" and entry.get("use") not in USES:
                raise fail(f"{where}.use", entry.get("use"), " or ".join(map(repr, USES)))
            for key in ("image", "label"):
                if check_files and not (path.parent / entry[key]).is_file():
                    raise fail(f"{where}.{key}", entry[key], "an existing file")

    return Datalist(
        path=path,
        name=str(content.get("name") or path.parent.name),
        size=tuple(size),
        intensity_range=(float(intensity[0]), float(intensity[1])),
        labels=dict(labels),
        variables=tuple(variables),
        truth=content.get("truth"),
        entries=entries,
        regions=regions,
        window=None if window is None else (float(window[0]), float(window[1])),
        intensity_unit=intensity_unit,
    )


def _validate_regions(regions: Any, dims: int, fail: Any) -> Regions:
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
    variable: Any, index: int, labels: Mapping[str, int], regions: Regions | None, fail: Any
) -> Variable:
    where = f"variables[{index}]"
    if not isinstance(variable, Mapping) or not isinstance(variable.get("name"), str) or not variable["name"]:
        raise fail(where, variable, "an object with a name")
    kind, categories = variable.get("kind"), variable.get("categories") or []
    if kind not in KINDS:
        raise fail(f"{where}.kind", kind, " or ".join(map(repr, KINDS)))
    if (kind != "continuous" and len(categories) < 2) or (kind == "binary" and len(categories) != 2):
        raise fail(
            f"{where}.categories", categories, "two names for a binary variable, two or more for a categorical one"
        )
    measurement = variable.get("measurement")
    if measurement is not None:
        try:
            instantiate_measurement(measurement)
        except (TypeError, ValueError) as error:
            raise fail(f"{where}.measurement", measurement, f"a measurement ({error})") from error
    structure, region = variable.get("structure") or "", variable.get("region") or ""
    if structure and structure not in labels:
        raise fail(f"{where}.structure", structure, f"one of {list(labels)}")
    if region and (regions is None or region not in regions.names):
        raise fail(f"{where}.region", region, f"one of the regions {list(regions.names) if regions else []}")
    unit = str(variable.get("unit") or "")
    return Variable(variable["name"], kind, unit, tuple(categories), measurement, structure, region)


def _validate_entry(entry: Any, where: str, variables: Sequence[Variable], dims: int, fail: Any) -> None:
    if not isinstance(entry, Mapping):
        raise fail(where, entry, "an object")
    for key in ("id", "source", "image", "label"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise fail(f"{where}.{key}", entry.get(key), "a string")
    spacing = entry.get("spacing")
    if spacing is not None and not (
        isinstance(spacing, list) and len(spacing) == dims and all(_is_number(s) and s > 0 for s in spacing)
    ):
        raise fail(f"{where}.spacing", spacing, f"{dims} positive numbers (mm)")
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
        elif variable.kind != "continuous" and value not in range(len(variable.categories)):
            raise fail(f"{where}.variables.{variable.name}", value, f"an index below {len(variable.categories)}")
    unknown = set(values) - {v.name for v in variables}
    if unknown:
        raise fail(f"{where}.variables", sorted(unknown), f"only {[v.name for v in variables]}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
