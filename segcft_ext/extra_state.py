"""Packing what a module knows besides its weights into a tensor, so that a ``state_dict`` holds only tensors.

MONAI's tools ask every value of a state dict for its shape, and copy only values whose shape is that of the network's.
The JSON is therefore padded with spaces, so that descriptions of different lengths have the same shape and are copied
with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["EXTRA_STATE", "pack", "unpack"]

EXTRA_STATE = "_extra_state"
"""The key under which a state_dict holds the extra state of a module, after the module's own prefix."""
BLOCK = 16384
"""The length of a packed state is a multiple of this, in bytes; describing 24 regional variables takes 7000."""


def pack(state: Mapping[str, Any]) -> Tensor:
    """Plain values as UTF-8 JSON in a uint8 tensor (n * :data:`BLOCK`,), for ``Module.get_extra_state``."""
    text = json.dumps(state, ensure_ascii=False).encode()
    return torch.frombuffer(bytearray(text.ljust(-(-len(text) // BLOCK) * BLOCK)), dtype=torch.uint8)


def unpack(state: Any) -> Any:
    """The inverse of :func:`pack`, for ``Module.set_extra_state``.

    Raises:
        ValueError: when the state is no tensor, or holds no JSON.
    """
    if not isinstance(state, Tensor):
        raise ValueError(f"found a {type(state).__name__}, expected a tensor")
    return json.loads(state.cpu().numpy().tobytes())
