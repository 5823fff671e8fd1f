"""Splits: stratified by source, grouped by patient, seeded.

Cases of a patient stay together, across sources too. Within a source, patients are drawn in random order and each goes
to the split that lacks most cases, so every source is divided in the wanted proportions up to one patient. The random
order depends on the seed, the source's name and the cases' names, not on where the files lie or on the ids.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.cases import Item

__all__ = ["FRACTIONS", "assign", "check_fractions", "split_cases"]

FRACTIONS = {"training": 0.7, "validation": 0.1, "test": 0.2}
USES = {"guide": 0.5, "judge": 0.5}


def check_fractions(fractions: Mapping[str, float] | None) -> dict[str, float]:
    """The share of each split, :data:`FRACTIONS` where none are given.

    Raises:
        ValueError: when the fractions are not positive shares of all splits that sum to 1.
    """
    found = dict(fractions or FRACTIONS)
    shares = list(found.values())
    numbers = all(isinstance(share, (int, float)) and share > 0 for share in shares)
    if set(found) != set(FRACTIONS) or not numbers or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"fractions: found {found}, expected positive shares of {list(FRACTIONS)} that sum to 1")
    return found


def split_cases(
    items: Sequence[Item], seed: int, fractions: Mapping[str, float] | None = None
) -> list[tuple[str, str | None]]:
    """Split and, for training cases, use ("guide" or "judge") of every case, in the order of ``items``.

    Raises:
        ValueError: as :func:`check_fractions`, or when there are so few cases that a split or use is empty.
    """
    fractions = check_fractions(fractions)
    splits = assign(items, fractions, seed)
    training = [i for i, split in enumerate(splits) if split == "training"]
    uses: dict[int, str] = dict(zip(training, assign([items[i] for i in training], USES, seed + 1)))
    for part, needed in ((splits, fractions), (list(uses.values()), USES)):
        empty = [name for name in needed if name not in part]
        if empty:
            found = f"{len(items)} accepted cases of {len(set(map(_patient, items)))} patients"
            sources = len({item.source for item in items})
            apart = f" in {sources} sources, each divided on its own (a --source_column can be left out)"
            text = f"{found} are too few{apart if sources > 1 else ''}: none is left for {', '.join(empty)}"
            raise ValueError(text)
    return [(split, uses.get(i)) for i, split in enumerate(splits)]


def assign(items: Sequence[Item], shares: Mapping[str, float], seed: int) -> list[str]:
    """One of the parts named in ``shares`` for every case, in the order of ``items``."""
    groups: dict[tuple[str, ...], list[int]] = {}
    strata: dict[str, list[tuple[str, ...]]] = {}
    for i in sorted(range(len(items)), key=lambda i: (items[i].source, items[i].name)):
        key = _patient(items[i])
        if key not in groups:
            strata.setdefault(items[i].source, []).append(key)
        groups.setdefault(key, []).append(i)

    part_of = [""] * len(items)
    for source, keys in strata.items():
        random = np.random.default_rng([seed, zlib.crc32(source.encode())])
        total = sum(len(groups[key]) for key in keys)
        lacking = {part: share * total for part, share in shares.items()}
        for k in random.permutation(len(keys)):
            part = max(lacking, key=lambda name: lacking[name])
            lacking[part] -= len(groups[keys[k]])
            for i in groups[keys[k]]:
                part_of[i] = part
    return part_of


def _patient(item: Item) -> tuple[str, ...]:
    """Key of a case's patient; a case whose patient is unknown is a patient of its own."""
    return ("case", item.source, item.name) if item.patient is None else ("patient", item.patient)
