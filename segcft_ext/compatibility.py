"""Checking that a checkpoint exists, and was trained on the kind of data that it is to be used for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.transforms import Compose
from torch import nn

from segcft_ext.checkpoints import (
    CheckpointError,
    SelfDescribing,
    check_equal,
    plain,
    read_description,
    variable_description,
)
from segcft_ext.datalist import Datalist
from segcft_ext.transforms import VesselIntensityd

__all__ = [
    "check_compatible",
    "check_image_size",
    "check_preprocessing",
    "require_checkpoint",
    "trained_image_size",
    "trained_window",
]

CHEST = {"left_lung", "right_lung", "heart"}


def require_checkpoint(path: str | os.PathLike[str], option: str, bundle: str) -> str:
    """The path of a checkpoint, which must exist before anything is run.

    Raises:
        CheckpointError: when there is no such file; names the option with its path and the bundle that trains it.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"--{option}: {path}: no such checkpoint, expected the model.pt that the training of the bundle {bundle} "
            "writes"
        )
    return str(path)


def trained_image_size(path: str | os.PathLike[str]) -> list[int] | None:
    """The image size that a network was trained on, or None where there is no checkpoint yet."""
    return read_description(path)["data"]["image_size"] if Path(path).exists() else None


def trained_window(path: str | os.PathLike[str]) -> list[float] | None:
    """The intensity window that a network was trained with; None where it had none or there is no checkpoint yet."""
    return read_description(path)["data"]["window"] if Path(path).exists() else None


def check_image_size(path: str | os.PathLike[str], image_size: Any) -> None:
    """Refuse images of another size than those that a network was trained on.

    Raises:
        CheckpointError: when the sizes differ; names the option and the checkpoint.
    """
    trained = trained_image_size(path)
    if not isinstance(image_size, (list, tuple)) or list(image_size) != trained:
        raise CheckpointError(f"--image_size: found {image_size!r}, expected {trained}, on which {path} was trained")


def check_preprocessing(path: str | os.PathLike[str], preprocessing: Compose) -> None:
    """Refuse to read radiographs for a network of straightened vessels, or vessels for one of chests.

    A network with a window was trained on vessels; without one, its labels decide. A network that has neither a window
    nor any of the known labels passes.

    Raises:
        CheckpointError: when the preprocessing is that of the other kind; names the checkpoint and the config.
    """
    data = read_description(path)["data"]
    vessels = data["window"] is not None or "lumen" in data["labels"]
    chests = not vessels and not CHEST.isdisjoint(data["labels"])
    found = any(isinstance(transform, VesselIntensityd) for transform in preprocessing.transforms)
    if vessels and not found:
        raise CheckpointError(
            f"{path}: trained on straightened vessels (window {data['window']}, labels {list(data['labels'])}), found "
            "the preprocessing of radiographs, expected that of vessels: add configs/coronary_inference.json "
            "(--config_file \"['configs/inference.json','configs/coronary_inference.json']\")"
        )
    if chests and found:
        raise CheckpointError(
            f"{path}: trained on radiographs (no window, labels {list(data['labels'])}), found the preprocessing of "
            "straightened vessels, expected that of radiographs: configs/inference.json without coronary_inference.json"
        )


def check_compatible(model: nn.Module, datalist: Datalist) -> None:
    """Refuse a network that was trained for other data.

    Raises:
        CheckpointError: when the image size, the labels, or the window or unit of the intensities differ, or a variable
            of the network is unknown to the datalist or has another kind, unit, categories or measurement there. Names
            checkpoint and datalist.
        TypeError: when the network is not a :class:`~segcft_ext.checkpoints.SelfDescribing` one.
    """
    if not isinstance(model, SelfDescribing):
        raise TypeError(f"{type(model).__name__} does not describe itself, expected a SelfDescribing network")
    if not model.data:
        raise CheckpointError(f"{model.origin}: data: the checkpoint does not say what it was trained on")
    check_equal(model.origin, "data.image_size", model.data["image_size"], list(datalist.size), datalist)
    check_equal(model.origin, "data.labels", model.data["labels"], dict(datalist.labels), datalist)
    for key, asked in (("window", plain(datalist.window)), ("intensity_unit", datalist.intensity_unit)):
        check_equal(model.origin, f"data.{key}", model.data[key], asked, datalist)
    for variable in model.data["variables"]:
        name = variable["name"]
        if name not in datalist.variable_names:
            raise CheckpointError(
                f"{model.origin}: data.variables: the checkpoint has {name!r}, "
                f"{datalist.path} has {datalist.variable_names}"
            )
        for key, asked in variable_description(datalist, name).items():
            check_equal(model.origin, f"data.variables.{name}.{key}", variable.get(key), asked, datalist)
