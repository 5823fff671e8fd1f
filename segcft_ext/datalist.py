"""The datalist, through which every stage reads the data; :mod:`segcft_ext.datalist_format` describes the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader

from segcft_ext.datalist_format import DatalistError, Regions, Variable, validate
from segcft_ext.folders import write_json_atomically
from segcft_ext.measurements import Area, Measurement, instantiate_measurement
from segcft_ext.prepared import PreparedReader

__all__ = ["Datalist", "known_datalist", "read_datalist", "write_datalist"]

POINT_MASS = 0.02


@dataclass(frozen=True)
class Datalist:
    """A validated datalist.

    Attributes:
        path: the file it was read from.
        name: name of the data in reports.
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
    def may_be_zero(self) -> list[str]:
        """The measured variables with a point mass at zero, see :meth:`definitions`."""
        measured = self.definitions([v.name for v in self.variables if v.measurement is not None])
        return [definition["name"] for definition in measured if definition.get("zero_inflated")]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.size)

    def reader(self) -> ImageReader:
        """The reader of images and label maps for MONAI's ``LoadImaged``."""
        entries = (entry for split in self.entries.values() for entry in split)
        label_maps = [self.path.parent / entry["label"] for entry in entries]
        return PreparedReader(self.size, label_maps, self.labels.values())

    @property
    def foreground(self) -> dict[str, int]:
        """The label value of each structure, in their order, without the background."""
        return {name: value for name, value in sorted(self.labels.items(), key=lambda item: item[1]) if value != 0}

    @property
    def structures(self) -> list[str]:
        """The structures in the order of their label values, without the background."""
        return list(self.foreground)

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

    @property
    def bands(self) -> dict[str, tuple[int, float, float]]:
        """``{variable: (axis, low, high)}`` where regions are bands of the image itself; empty otherwise."""
        if self.regions is None or self.regions.of != "image":
            return {}
        return {v.name: (self.regions.axis, *self.regions.limits(v.region)) for v in self.variables if v.region}

    @property
    def area_labels(self) -> dict[str, int]:
        """``{variable: label}`` of the areas that need no factual label map; empty where regions are a structure's."""
        if self.regions is not None and self.regions.of != "image":
            return {}
        return {name: found.label for name, found in self.measurements().items() if isinstance(found, Area)}

    def definitions(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Definitions of the named variables (by default all), as :class:`segcft_ext.variables.Variables` takes them.

        A continuous variable is zero-inflated if, over the training cases in which it is known, it is never negative
        and exactly zero in at least a share of :data:`POINT_MASS`.

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
        """The training split's values, units and categories, as :meth:`segcft_ext.variables.Variables.fit` takes them.

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

    def digest(self) -> str:
        """SHA-256 of the datalist's file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def fingerprints(self, split: str, use: str | None = None) -> dict[str, str]:
        """The id of each case by its fingerprint, the first 12 hexadecimal digits of a SHA-256.

        With fingerprints, a checkpoint tells which cases it was trained on without naming them. The hash is that of the
        id and, for a phantom, of its noise as well, since phantoms of different seeds have the same ids.
        """
        chosen = self._chosen(split, use)
        return {hashlib.sha256(_identity(entry).encode()).hexdigest()[:12]: entry["id"] for entry in chosen}

    def items(self, split: str, use: str | None = None, variables: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Entries in the form that MONAI's dictionary datasets expect.

        Args:
            split: "training", "validation" or "test".
            use: keep only training cases of this use ("guide" or "judge").
            variables: names of the variables wanted, all of them by default.

        Returns:
            One dict for each case: ``image`` and ``label`` (absolute paths), ``id``, ``source``, ``variables`` (float32
            array of shape (K,) in physical units, NaN where missing) and ``spacing`` (float32 array of shape (D,),
            NaN where unknown).

        Raises:
            DatalistError: when the split or a variable is unknown, or no case is left.
        """
        if split not in self.entries:
            raise DatalistError(f"{self.path}: split: found {split!r}, expected one of {list(self.entries)}")
        names = [self.variable(name).name for name in (variables or self.variable_names)]
        chosen = self._chosen(split, use)
        if not chosen:
            raise DatalistError(f"{self.path}: no case in split {split!r}" + (f" for use {use!r}" if use else ""))
        root = self.path.parent
        return [
            {
                "image": str(root / entry["image"]),
                "label": str(root / entry["label"]),
                "id": entry["id"],
                "source": entry["source"],
                "variables": np.array([entry["variables"].get(name) for name in names], np.float32),  # None gives NaN
                "spacing": np.array(entry.get("spacing") or [math.nan] * len(self.size), np.float32),
            }
            for entry in chosen
        ]

    def _chosen(self, split: str, use: str | None) -> list[Mapping[str, Any]]:
        return [entry for entry in self.entries[split] if use is None or entry.get("use") == use]


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
        raise DatalistError(
            f"--datalist: {path}: no such datalist, expected the datalist.json that python -m data_prep writes"
        ) from None
    except IsADirectoryError:
        raise DatalistError(f"--datalist: {path}: found a folder, expected the datalist.json in it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatalistError(f"{path}: cannot be read as JSON: {error}") from error
    return Datalist(path, **validate(content, path, check_files))


def known_datalist(path: str | os.PathLike[str]) -> Datalist | None:
    """The datalist that a config builds its networks for by default, or None where there is no file yet.

    Whether images and label maps exist is not checked here, but where they are read.

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
    datalist = Datalist(path, **validate(content, path, check_files=True))
    write_json_atomically(path, content)
    return datalist


def _identity(entry: Mapping[str, Any]) -> str:
    noise = entry.get("exogenous")
    return entry["id"] if noise is None else entry["id"] + json.dumps(noise, sort_keys=True)
