"""The methods that are judged: DSCM checkpoints side by side, and the identity as the zero of every figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from torch import Tensor

from segcft_ext.checkpoints import CheckpointError, SelfDescribing, load_model
from segcft_ext.compatibility import check_compatible, require_checkpoint
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM, Counterfactual
from segcft_ext.freezing import freeze
from segcft_ext.provenance import check_unseen, summary, upstream
from segcft_ext.scm import SCM

__all__ = ["FLOOR", "IDENTITY", "ZERO", "Answer", "Identity", "Method", "abducted", "describe_methods", "load_methods"]

IDENTITY = "identity"
ZERO = f"{IDENTITY} (the zero)"
FLOOR = "judge on real images (the floor)"
TAKEN = (IDENTITY, ZERO, FLOOR, "judge", "real", "truth", "population")
"""What stands beside the methods in tables, figures and files."""

Answer = Callable[[Mapping[str, Tensor]], Counterfactual]
"""The counterfactuals of some images, as a function of the intervention."""


class Names(Protocol):
    @property
    def names(self) -> list[str]: ...


class Method(Protocol):
    """Anything that makes counterfactuals; a :class:`~segcft_ext.dscm.DSCM` is one.

    ``values`` are in the order of ``variables.names``, in physical units.
    """

    @property
    def variables(self) -> Names: ...

    def counterfactual(
        self, image: Tensor, values: Tensor, do: Mapping[str, Tensor], temperature: float = 0.0
    ) -> Counterfactual: ...


class Identity:
    """Doing nothing: the image stays as it is, whatever is asked for. The zero of every table.

    Args:
        names: the variables.
        scm: model that predicts the descendants of an intervened variable; its variables then replace ``names``.
            Without one, descendants keep their values.
    """

    def __init__(self, names: Sequence[str], scm: SCM | None = None) -> None:
        self.variables: Names = SimpleNamespace(names=list(names)) if scm is None else scm.variables
        self.scm = scm

    def counterfactual(
        self, image: Tensor, values: Tensor, do: Mapping[str, Tensor], temperature: float = 0.0
    ) -> Counterfactual:
        if self.scm is not None:
            return Counterfactual(image, self.scm.counterfactual(values, do))
        values = values.clone()
        for name, target in do.items():
            values[:, self.variables.names.index(name)] = target
        return Counterfactual(image, values)


def abducted(method: Method, image: Tensor, values: Tensor) -> Answer:
    """A method's counterfactuals of some images, as a function of the intervention.

    The exogenous noise of the images is inferred once for all interventions.

    Args:
        method: what makes the counterfactuals.
        image: factual images, shape (B, 1, *spatial).
        values: factual variables in the method's order, shape (B, K).
    """
    if not isinstance(method, DSCM):
        return lambda do: method.counterfactual(image, values, do)
    abduction = method.abduct(image, values)
    return lambda do: method.predict(abduction, method.scm.counterfactual(values, do))


def load_methods(methods: Mapping[str, str] | str, datalist: Datalist, interventions: Sequence[str]) -> dict[str, DSCM]:
    """Load the checkpoints to be judged.

    Args:
        methods: ``{name: path of a DSCM's model.pt}``, also as JSON text; empty to evaluate the judge alone.
        datalist: the data; each checkpoint must fit it, and none may have been trained on its test cases.
        interventions: the variables that are intervened on; each checkpoint must know them.

    Raises:
        ValueError: when ``methods`` is no such mapping, or a name is taken.
        CheckpointError: when a checkpoint cannot be used.
    """
    if isinstance(methods, str):
        try:
            methods = json.loads(methods)
        except json.JSONDecodeError as error:
            raise ValueError(f"methods: found {methods!r}, expected JSON {{name: path}}: {error}") from error
    if not isinstance(methods, Mapping):
        raise ValueError(f'methods: found {methods!r}, expected {{"name": "path of a DSCM\'s model.pt"}}')
    for name in methods:
        if not isinstance(name, str) or not name.strip(" ."):
            raise ValueError(f"methods: found the name {name!r}, expected text")
        if name in TAKEN:
            raise ValueError(f"methods: found the name {name!r}, expected another: the evaluation itself uses {TAKEN}")
    found = {}
    for name, path in methods.items():
        bundles = "dscm_pretraining or seg_cft_finetuning"
        model = load_model(require_checkpoint(path, f"methods: {name}", bundles), DSCM)
        check_compatible(model, datalist)
        check_unseen(model, datalist)
        for variable in interventions:
            if variable not in model.variables.names:
                raise CheckpointError(
                    f"{path}: variables: the checkpoint holds {model.variables.names}, asked for {variable!r}"
                )
        found[name] = freeze(model)
    return found


def describe_methods(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Class, definition, training data, guide and fingerprint of each checkpoint."""
    return {name: summary(upstream(method)) for name, method in methods.items() if isinstance(method, SelfDescribing)}
