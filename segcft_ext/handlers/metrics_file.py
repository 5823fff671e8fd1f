"""The metrics of an evaluation as a JSON file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow

from segcft_ext.folders import write_json_atomically

__all__ = ["MetricsFile"]


class MetricsFile:
    """Writes the scalar metrics of an evaluator when it has completed.

    Args:
        path: the JSON file.
        header: further content for its top.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.header = dict(header or {})

    def attach(self, engine: Workflow) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Workflow) -> None:
        if engine.state.rank > 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.header, "metrics": {name: float(value) for name, value in engine.state.metrics.items()}}
        write_json_atomically(self.path, content)
