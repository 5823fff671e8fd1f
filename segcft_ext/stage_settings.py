"""Reading the settings of stages that are typed for the chain: ``--set STAGE.KEY=VALUE``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["Settings", "merged_settings", "read_settings"]

Settings = Mapping[str, Mapping[str, Any]]
"""By stage, or family of stages."""


def read_settings(given: Any) -> dict[str, dict[str, Any]]:
    """Read the settings of each stage from ``STAGE.KEY=VALUE,…`` or a sequence of such parts.

    Raises:
        ValueError: quotes what is not of this form.
    """
    settings: dict[str, dict[str, Any]] = {}
    for text in _parts(given) if isinstance(given, str) else given:
        name, equals, value = str(text).partition("=")
        stage, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise ValueError(f"set: found {text!r}, expected STAGE.KEY=VALUE")
        try:
            settings.setdefault(stage, {})[key] = json.loads(value)
        except json.JSONDecodeError:
            settings.setdefault(stage, {})[key] = value
    return settings


def merged_settings(*layers: Settings) -> dict[str, dict[str, Any]]:
    """Settings for each stage; later layers override earlier ones."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for stage, settings in layer.items():
            merged.setdefault(stage, {}).update(settings)
    return merged


def _parts(text: str) -> list[str]:
    """The text split at commas, except for those inside brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "[{") - (character in "]}")
        if character == "," and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
