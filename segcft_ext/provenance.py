"""What a checkpoint records about the networks and cases that it was made with.

A fine-tuned DSCM records its guide, so that the evaluation can refuse a judge that is the guide in disguise:

.. code-block:: python

    dscm.describe(datalist)
    dscm.data["guide"] = upstream(segmentor)   # None for No-CFT

Checkpoints also record the fingerprints of their training cases, so that none of these is taken for an unseen case when
the data have been divided again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from segcft_ext.checkpoints import CheckpointError, SelfDescribing
from segcft_ext.datalist import Datalist
from segcft_ext.extra_state import EXTRA_STATE

__all__ = ["check_independent", "check_unseen", "fingerprint", "summary", "upstream"]


def fingerprint(model: SelfDescribing) -> str:
    """SHA-256 of all weights and buffers with their names, independent of the file's path and its description."""
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


def summary(description: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a network with the number of its training cases in place of their fingerprints."""
    data = dict(description["data"])
    if "cases" in data:
        data["cases"] = len(data["cases"])
    if data.get("guide"):
        data["guide"] = summary(data["guide"])
    return {**description, "data": data}


def check_unseen(model: SelfDescribing, datalist: Datalist) -> None:
    """Refuse a network that was trained on test cases, or whose guide was.

    Raises:
        CheckpointError: when there are such cases; names checkpoint and datalist, and how many cases there are.
    """
    test = datalist.fingerprints("test")
    trained = {"data.cases": model.data}
    if model.data.get("guide"):
        trained["data.guide.data.cases"] = model.data["guide"]["data"]
    for key, data in trained.items():
        seen = [test[case] for case in data.get("cases", ()) if case in test]
        if seen:
            raise CheckpointError(
                f"{model.origin}: {key}: found {len(seen)} of the {len(test)} test cases of {datalist.path}, such as "
                f"{seen[0]!r}, expected none"
            )


def check_independent(judge: SelfDescribing, methods: Mapping[str, Any]) -> None:
    """Refuse a judge that is, or resembles, the network that guided a method.

    Judging with the guide rewards whatever fools the guide. The judge must have other weights, another architecture and
    other training cases than each guide recorded in the checkpoints. Both must say which part of the training cases
    they used (``use``): None stands for all of them. The cases themselves are compared as well, since the data may have
    been split more than once.

    Raises:
        CheckpointError: names judge, method, key, and what both hold.
    """
    for name, method in methods.items():
        guide = method.data.get("guide") if isinstance(method, SelfDescribing) else None
        if guide is None:
            continue
        by = f"the guide of method {name!r} ({method.origin})"
        use, guided_use = judge.data.get("use"), guide["data"].get("use")
        pairs = [
            ("weights", fingerprint(judge), guide["fingerprint"], "another network"),
            ("data.use", use, guided_use, "other training cases"),
        ]
        if guide["class"] == type(judge).__name__:
            held, guided = judge.definition["architecture"], guide["definition"]["architecture"]
            pairs.append(("definition.architecture", held, guided, "another architecture"))
        faults = [
            (key, f"the judge holds {held!r}, and so does {by}", needed)
            for key, held, guided, needed in pairs
            if held == guided
        ]
        if use is None or guided_use is None:
            found = f"the judge holds {use!r}, {by} {guided_use!r}, and None stands for all cases"
            faults.append(("data.use", found, "other training cases"))
        if shared := sorted({*judge.data.get("cases", ())} & {*guide["data"].get("cases", ())}):
            found = f"the judge was trained on {len(shared)} cases that {by} was trained on"
            faults.append(
                ("data.cases", f"{found}, such as that with the fingerprint {shared[0]}", "other training cases")
            )
        for key, found, needed in faults:
            raise CheckpointError(f"{judge.origin}: {key}: {found}; an independent judge needs {needed}")
