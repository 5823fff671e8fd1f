"""What a module knows besides its weights, as a tensor: a ``state_dict`` then holds nothing but tensors.

MONAI's tools ask every value of a state dict for its shape and copy only those whose shape is that of the network. The
JSON is therefore padded with spaces: descriptions of different length are equally long, and travel with the weights.
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
"""A packed state has a multiple of so many bytes; the description of a model of 24 regional variables has 7000."""


def pack(state: Mapping[str, Any]) -> Tensor:
    """Plain values as UTF-8 JSON in a uint8 tensor (n * :data:`BLOCK`,), for ``Module.get_extra_state``."""
    text = json.dumps(state, ensure_ascii=False).encode()
    return torch.frombuffer(bytearray(text.ljust(-(-len(text) // BLOCK) * BLOCK)), dtype=torch.uint8)


def unpack(state: Any) -> Any:
    """What :func:`pack` packed, for ``Module.set_extra_state``.

    Args:
        state: the tensor; or the values themselves, as the first checkpoints held them, which are returned as they are.

    Raises:
        ValueError: when the tensor holds no JSON.
    """
    return json.loads(state.cpu().numpy().tobytes()) if isinstance(state, Tensor) else state
