"""What a checkpoint remembers of the networks that it was made with.

A fine-tuned DSCM notes its guide, so that the evaluation can refuse a judge that is the guide in disguise:

.. code-block:: python

    dscm.describe(datalist)
    dscm.data["guide"] = upstream(segmentor)   # None for No-CFT
"""

from __future__ import annotations

import hashlib
from typing import Any

from segcft_ext.checkpoints import SelfDescribing
from segcft_ext.extra_state import EXTRA_STATE

__all__ = ["fingerprint", "upstream"]


def fingerprint(model: SelfDescribing) -> str:
    """SHA-256 of all weights and buffers, by name; the same wherever the file lies and whatever it says of itself."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith(EXTRA_STATE):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def upstream(model: SelfDescribing) -> dict[str, Any]:
    """Class, definition, training data and fingerprint of a network, as plain values for a checkpoint's ``data``."""
    return {
        "class": type(model).__name__,
        "definition": dict(model.definition),
        "data": dict(model.data),
        "fingerprint": fingerprint(model),
    }
