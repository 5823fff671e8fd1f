"""Ids that identify nobody: salted hashes, with the salt and the names behind the ids in a file for the user alone.

The file lies beside the prepared folder, not in it, so that the folder can be passed on. Without the salt, ids cannot
be matched with a list of known file names.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.cases import Item
from segcft_ext.folders import write_json_atomically

__all__ = ["case_id", "read_salt", "write_mapping"]


def case_id(item: Item, salt: str, occurrence: int = 0) -> str:
    """16 hexadecimal digits from source and name; ``occurrence`` tells apart cases that a source names alike."""
    message = "\0".join((item.source, item.name, str(occurrence)))
    return hmac.new(salt.encode(), message.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:16]


def read_salt(mapping: Path) -> str:
    """The salt of an earlier run, so that a case keeps its id; a new one when there is none.

    Raises:
        ValueError: when the file exists and holds no salt, or an empty one.
    """
    try:
        salt = json.loads(mapping.read_text(encoding="utf-8"))["salt"]
    except FileNotFoundError:
        return secrets.token_hex(16)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{mapping}: expected the mapping of an earlier run with a key 'salt' ({error!r})") from error
    if not isinstance(salt, str) or not salt:
        raise ValueError(f"{mapping}: salt: found {salt!r}, expected a text that is not empty")
    return salt


def write_mapping(mapping: Path, salt: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write salt and mapping (id -> source, name, patient, outcome), readable by the user alone."""
    write_json_atomically(mapping, {"salt": salt, "cases": cases}, mode=0o600)
