"""Freezing networks for good: guides, judges, and the models that are evaluated."""

from __future__ import annotations

import types
from typing import TypeVar

from torch import nn

__all__ = ["freeze"]

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Freeze a network for good: eval mode, no gradient for its parameters, and unaffected by ``train()``.

    Gradients still flow *through* the network to its input.
    """
    module.eval()
    module.requires_grad_(False)
    # a bound method, not a closure: it follows the module through copy.deepcopy
    vars(module)["train"] = types.MethodType(_stay_in_eval, module)
    return module


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    return self
