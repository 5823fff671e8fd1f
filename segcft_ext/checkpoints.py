"""Checkpoints that describe themselves.

A model's checkpoint is the bare ``state_dict`` of the network, as MONAI's tools load it. What is needed to rebuild the
network, and to refuse it where it does not fit, rides along as the network's extra state: JSON in a tensor
(:mod:`segcft_ext.extra_state`), so that ``torch.load(weights_only=True)`` and every tool for state dicts reads it.

.. code-block:: python

    network = Segmentor(labels={"background": 0, "heart": 1}, architecture="BasicUNet")
    network.describe(datalist, use="guide")
    save_model(network, "models/model.pt")
    ...
    segmentor = freeze(load_model("models/model.pt", Segmentor))
    check_compatible(segmentor, datalist)
"""

from __future__ import annotations

import importlib
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor, nn

from segcft_ext.datalist import Datalist
from segcft_ext.extra_state import EXTRA_STATE, pack, unpack
from segcft_ext.transforms import VesselIntensityd

__all__ = [
    "CheckpointError",
    "SelfDescribing",
    "check_compatible",
    "check_image_size",
    "check_preprocessing",
    "freeze",
    "load_checkpoint",
    "load_model",
    "plain",
    "read_description",
    "require_checkpoint",
    "save_atomically",
    "save_model",
    "trained_image_size",
    "trained_window",
]

FORMAT_VERSION = 1
DATA = {"name", "image_size", "window", "intensity_unit", "labels", "use", "cases", "variables"}  # of a trained network
CHEST = {"left_lung", "right_lung", "heart"}
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
        """Note the data that the network is trained on: images, labels, variables with units and measurements, cases.

        The cases are noted by their :meth:`~segcft_ext.datalist.Datalist.fingerprints`.

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
                "variables": [_variable(datalist, name) for name in (own.names if own is not None else [])],
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
        _check_equal(self.origin, "class", state["class"], type(self).__name__)
        for key in sorted({*state["definition"], *self.definition}):
            held, asked = (definition.get(key, "nothing") for definition in (state["definition"], self.definition))
            if held != asked:
                raise CheckpointError(
                    f"{self.origin}: definition.{key}: the checkpoint holds {held!r}, asked for: {asked!r}; "
                    "segcft_ext.checkpoints.load_model builds the network that a checkpoint describes"
                )
        self.data = plain(state["data"])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # MONAI's tools load loosely: from a file without the network's keys they take nothing and go on untrained.
        if prefix + EXTRA_STATE not in state_dict:
            raise CheckpointError(
                f"{self.origin}: not a model of this project: key {prefix + EXTRA_STATE!r} is missing, "
                f"the checkpoint holds {sorted(state_dict)[:4]}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def save_atomically(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to a file that is either the old one or the new one, whatever happens in between.

    Only one process may write a file: what one that was killed has left, the next one overwrites.

    Raises:
        OSError: when it cannot be written, as on a full disk; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # which torch hides behind one of its own
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"{path}: cannot be written ({cause.strerror})") from error
    finally:
        scratch.unlink(missing_ok=True)


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


def require_checkpoint(path: str | os.PathLike[str], option: str, bundle: str) -> str:
    """The path of a checkpoint that has to be there before anything is run.

    Raises:
        CheckpointError: when it is not; names the option that says where it is, and the bundle whose training makes it.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"--{option}: {path}: no such checkpoint, expected the model.pt that the training of the bundle {bundle} "
            "writes"
        )
    return str(path)


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
        CheckpointError: when the file is missing, is no checkpoint of this project, holds another class than asked for,
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
    """What a checkpoint says of its network: ``format_version``, ``class``, ``definition`` and ``data``.

    Raises:
        CheckpointError: when the file is missing or no model of this project.
    """
    return _describing(load_checkpoint(path), path)


def trained_image_size(path: str | os.PathLike[str]) -> list[int] | None:
    """The image size that a network was trained on, or None where there is no checkpoint yet."""
    return read_description(path)["data"]["image_size"] if Path(path).exists() else None


def trained_window(path: str | os.PathLike[str]) -> list[float] | None:
    """The window of intensities that a network was trained on, or None where there was none or there is no file yet."""
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
        CheckpointError: when the preprocessing is the other one; names the checkpoint and the config.
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
    """
    if not isinstance(model, SelfDescribing):
        raise TypeError(f"{type(model).__name__} does not describe itself, expected a SelfDescribing network")
    if not model.data:
        raise CheckpointError(f"{model.origin}: data: the checkpoint does not say what it was trained on")
    _check_equal(model.origin, "data.image_size", model.data["image_size"], list(datalist.size), datalist)
    _check_equal(model.origin, "data.labels", model.data["labels"], dict(datalist.labels), datalist)
    for key, asked in (("window", plain(datalist.window)), ("intensity_unit", datalist.intensity_unit)):
        _check_equal(model.origin, f"data.{key}", model.data[key], asked, datalist)
    for variable in model.data["variables"]:
        name = variable["name"]
        if name not in datalist.variable_names:
            raise CheckpointError(
                f"{model.origin}: data.variables: the checkpoint has {name!r}, "
                f"{datalist.path} has {datalist.variable_names}"
            )
        for key, asked in _variable(datalist, name).items():
            _check_equal(model.origin, f"data.variables.{name}.{key}", variable.get(key), asked, datalist)


def freeze(module: Model) -> Model:
    """Fix a network for good: eval mode, no gradient for its parameters, and deaf to ``train()`` of its parents.

    Gradients still flow *through* the network to its input.
    """
    module.eval()
    module.requires_grad_(False)
    # a bound method, not a closure: it follows the module through copy.deepcopy
    vars(module)["train"] = types.MethodType(_stay_in_eval, module)
    return module


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    return self


def plain(value: Any) -> Any:
    """The same content as dicts, lists, strings, numbers, booleans and None, which ``weights_only`` loading accepts.

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


def _variable(datalist: Datalist, name: str) -> dict[str, Any]:
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
        raise CheckpointError(f"{origin}: not a model of this project: {EXTRA_STATE} holds no JSON: {error}") from error
    if not isinstance(state, Mapping) or not {"format_version", "class", "definition", "data"} <= set(state):
        raise CheckpointError(f"{origin}: not a model of this project: {EXTRA_STATE} holds {state!r:.80}")
    _check_equal(origin, "format_version", state["format_version"], FORMAT_VERSION)
    if state["class"] not in MODELS:
        raise CheckpointError(f"{origin}: class: the checkpoint holds {state['class']!r}, known are {sorted(MODELS)}")
    if state["data"] and (missing := sorted(DATA - set(state["data"]))):
        raise CheckpointError(f"{origin}: data: the checkpoint does not tell {missing} of what it was trained on")
    return dict(state)


def _check_equal(
    origin: str | os.PathLike[str], key: str, held: Any, asked: Any, datalist: Datalist | None = None
) -> None:
    if held != asked:
        by = f" by {datalist.path}" if datalist else ""
        raise CheckpointError(f"{origin}: {key}: the checkpoint holds {held!r}, asked for{by}: {asked!r}")
