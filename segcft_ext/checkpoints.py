"""Checkpoints that describe themselves.

A model's checkpoint is the bare ``state_dict`` of the network, as MONAI's tools load it. What is needed to rebuild the
network, and to refuse it where it does not fit, is stored as the network's extra state: JSON in a tensor
(:mod:`segcft_ext.extra_state`), which ``torch.load(weights_only=True)`` and every tool for state dicts can read.

.. code-block:: python

    network = Segmentor(labels={"background": 0, "heart": 1}, architecture="BasicUNet")
    network.describe(datalist, use="guide")
    save_model(network, "models/model.pt")
    ...
    segmentor = load_model("models/model.pt", Segmentor)

:mod:`segcft_ext.compatibility` checks whether a checkpoint fits its intended use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from segcft_ext.datalist import Datalist
from segcft_ext.extra_state import EXTRA_STATE, pack, unpack
from segcft_ext.folders import write_atomically

__all__ = [
    "CheckpointError",
    "SelfDescribing",
    "check_equal",
    "load_checkpoint",
    "load_model",
    "plain",
    "read_description",
    "save_atomically",
    "save_model",
    "variable_description",
]

FORMAT_VERSION = 1
DATA = {"name", "image_size", "window", "intensity_unit", "labels", "use", "cases", "variables"}  # of a trained network
MODELS = {  # the only classes that a checkpoint can name, and their modules
    "DSCM": "segcft_ext.dscm",
    "Regressor": "segcft_ext.networks.regressor",
    "Segmentor": "segcft_ext.networks.segmentor",
}

Model = TypeVar("Model", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the key, what it holds and what was asked for."""


class SelfDescribing(nn.Module):
    """Base of the networks whose checkpoints say what they are.

    A subclass sets :attr:`definition` to the keyword arguments that rebuild it. A subclass with scalar variables has an
    attribute ``variables`` with ``names``.

    Attributes:
        definition: keyword arguments of the constructor, plain Python values.
        data: what the network was trained on, see :meth:`describe`; empty until then.
        origin: the file it was loaded from, for messages.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        super().__init__()
        self.definition: dict[str, Any] = plain(definition)
        self.data: dict[str, Any] = {}
        self.origin: str = type(self).__name__

    def describe(self, datalist: Datalist, use: str | None = None) -> None:
        """Record the data that the network is trained on: images, labels, variables with units and measurements, cases.

        The cases are recorded by their :meth:`~segcft_ext.datalist.Datalist.fingerprints`.

        Args:
            datalist: the data.
            use: which training cases are used, "guide" or "judge"; None for all.
        """
        own = getattr(self, "variables", None)
        self.data = plain(
            {
                "name": datalist.name,
                "image_size": datalist.size,
                "window": datalist.window,
                "intensity_unit": datalist.intensity_unit,
                "labels": datalist.labels,
                "use": use,
                "cases": sorted(datalist.fingerprints("training", use)),
                "variables": [variable_description(datalist, name) for name in (own.names if own is not None else [])],
            }
        )

    def get_extra_state(self) -> Tensor:
        return pack(
            {
                "format_version": FORMAT_VERSION,
                "class": type(self).__name__,
                "definition": self.definition,
                "data": self.data,
            }
        )

    def set_extra_state(self, state: Any) -> None:
        """Take over the description of a checkpoint.

        Raises:
            CheckpointError: when the checkpoint belongs to another class or another definition.
        """
        state = _description(state, self.origin)
        check_equal(self.origin, "class", state["class"], type(self).__name__)
        for key in sorted({*state["definition"], *self.definition}):
            held, asked = (definition.get(key, "nothing") for definition in (state["definition"], self.definition))
            if held != asked:
                raise CheckpointError(
                    f"{self.origin}: definition.{key}: the checkpoint holds {held!r}, asked for: {asked!r}; "
                    "segcft_ext.checkpoints.load_model builds the network that a checkpoint describes"
                )
        self.data = plain(state["data"])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # MONAI's tools load non-strictly: from a file without the network's keys they would load nothing, silently.
        if prefix + EXTRA_STATE not in state_dict:
            raise CheckpointError(
                f"{self.origin}: not a model of this project: key {prefix + EXTRA_STATE!r} is missing, "
                f"the checkpoint holds {sorted(state_dict)[:4]}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def save_atomically(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to a file that is either the old one or the new one, whatever happens in between.

    Raises:
        OSError: when it cannot be written, as on a full disk; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(content, file))


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the bare ``state_dict`` of a network, on the CPU, atomically."""
    save_atomically({key: value.cpu() for key, value in model.state_dict().items()}, path)


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read a file of tensors and plain Python values.

    Raises:
        CheckpointError: when the file is missing or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # the unpickler raises whatever it stumbles over
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint of tensors and plain values: {cause}") from error


@overload
def load_model(path: str | os.PathLike[str], expected: type[Model]) -> Model: ...
@overload
def load_model(path: str | os.PathLike[str], expected: tuple[type[nn.Module], ...] = ...) -> SelfDescribing: ...
def load_model(path: str | os.PathLike[str], expected: Any = (SelfDescribing,)) -> Any:
    """Rebuild a network from its checkpoint, with its weights, in eval mode and on the CPU.

    Only the classes of this package are built, whatever the file says.

    Args:
        path: a ``model.pt``.
        expected: the class, or the classes, that the caller can use.

    Raises:
        CheckpointError: when the file is missing, is no checkpoint of this project, holds a class other than expected,
            or its weights do not fit its own definition.
    """
    state = load_checkpoint(path)
    description = _describing(state, path)
    classes = expected if isinstance(expected, tuple) else (expected,)
    found = getattr(importlib.import_module(MODELS[description["class"]]), description["class"])
    if not issubclass(found, classes):
        raise CheckpointError(
            f"{path}: class: the checkpoint holds a {found.__name__}, "
            f"asked for a {' or a '.join(c.__name__ for c in classes)}"
        )
    try:
        model = found(**description["definition"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: definition: {found.__name__} cannot be built from it: {error}") from error
    model.origin = str(path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its definition: {error}") from error
    return model.eval()


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says about its network: ``format_version``, ``class``, ``definition`` and ``data``.

    Raises:
        CheckpointError: when the file is missing or no model of this project.
    """
    return _describing(load_checkpoint(path), path)


def plain(value: Any) -> Any:
    """Convert content to dicts, lists, strings, numbers, booleans and None, which ``weights_only`` loading accepts.

    Raises:
        TypeError: when the content holds anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot stand in a checkpoint: {value!r}")


def variable_description(datalist: Datalist, name: str) -> dict[str, Any]:
    """What a checkpoint records about a variable that its network was trained on."""
    variable = datalist.variable(name)
    return plain(
        {
            "name": variable.name,
            "kind": variable.kind,
            "unit": variable.unit,
            "categories": variable.categories,
            "measurement": variable.measurement,
        }
    )


def _describing(state: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The description in the state of a network."""
    if not isinstance(state, Mapping) or EXTRA_STATE not in state:
        keys = sorted(map(str, state))[:4] if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(f"{path}: not a model of this project: key {EXTRA_STATE!r} is missing, it holds {keys}")
    return _description(state[EXTRA_STATE], path)


def _description(packed: Any, origin: str | os.PathLike[str]) -> dict[str, Any]:
    """A description, unpacked and checked."""
    try:
        state = unpack(packed)
    except ValueError as error:
        raise CheckpointError(f"{origin}: not a model of this project: {EXTRA_STATE}: {error}") from error
    if not isinstance(state, Mapping) or not {"format_version", "class", "definition", "data"} <= set(state):
        raise CheckpointError(f"{origin}: not a model of this project: {EXTRA_STATE} holds {state!r:.80}")
    check_equal(origin, "format_version", state["format_version"], FORMAT_VERSION)
    if state["class"] not in MODELS:
        raise CheckpointError(f"{origin}: class: the checkpoint holds {state['class']!r}, known are {sorted(MODELS)}")
    if state["data"] and (missing := sorted(DATA - set(state["data"]))):
        raise CheckpointError(f"{origin}: data: the checkpoint does not tell {missing} of what it was trained on")
    return dict(state)


def check_equal(
    origin: str | os.PathLike[str], key: str, held: Any, asked: Any, datalist: Datalist | None = None
) -> None:
    """Refuse a checkpoint whose value of a key is not the one asked for (by the datalist, if one is given).

    Raises:
        CheckpointError: names the checkpoint, the key, what it holds and what was asked for.
    """
    if held != asked:
        by = f" by {datalist.path}" if datalist else ""
        raise CheckpointError(f"{origin}: {key}: the checkpoint holds {held!r}, asked for{by}: {asked!r}")
