"""What becomes of one case: it is loaded, checked, measured and written, or rejected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.cases import Case, Item, Rejected, Source, rejecting
from data_prep.chest_checks import check_chest
from data_prep.intensity import to_uint16
from data_prep.journal import input_digest
from data_prep.measured import measured_values, measured_variables
from data_prep.storage import SUFFIXES, write_array
from data_prep.structures import check_label_map
from segcft_ext.measurements import instantiate_measurement

__all__ = ["Outcome", "Worker"]


@dataclass(frozen=True)
class Outcome:
    """What became of one case: a reason and a text when it was rejected, else what its entry needs.

    ``measured`` holds the measured variables for each unit in which the case can be measured; ``digest`` tells whether
    two cases are the same picture; ``written`` is the size in bytes of each file, by its path in the output folder.
    """

    reason: str = ""
    text: str = ""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    arc_length: tuple[float, float] | None = None
    variables: Mapping[str, float | int | None] = field(default_factory=dict)
    exogenous: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""
    written: Mapping[str, int] = field(default_factory=dict)


class Worker:
    """Loads, checks, measures and writes one case and returns its journal line; pickled once to every process."""

    def __init__(self, source: Source, out: Path, unit: str, salt: str) -> None:
        self.source, self.out, self.unit, self.salt = source, out.absolute(), unit, salt

    def __call__(self, item: Item, identifier: str) -> str:
        digest = self.input_digest(item)  # before the files are read: a later change must be seen
        return json.dumps({"id": identifier, "input": digest, "outcome": asdict(self._prepare(item, identifier))})

    def input_digest(self, item: Item) -> str:
        """What the case's outcome depends on."""
        source = self.source
        header = [source.labels, source.variables, source.size, source.window, source.regions, source.truth, self.unit]
        return input_digest(self.salt, header, source.fingerprint(item))

    def _prepare(self, item: Item, identifier: str) -> Outcome:
        try:
            with rejecting("unreadable", "the case cannot be loaded", OSError):  # files of the source may be gone
                case = self.source.load(item)
            check_label_map(case.label, self.source.labels, self.source.may_lack)
            check_chest(case.image, case.label, self.source.labels)
            if self.unit.startswith("mm") and case.spacing is None:
                raise Rejected("spacing_unknown")
        except Rejected as fault:
            return Outcome(fault.reason, fault.text)
        pixels = to_uint16(case.image)
        units = ("percent", self.source.metric) if case.spacing else ("percent",)
        suffix = SUFFIXES[pixels.ndim]
        return Outcome(
            measured={unit: self._measure(case, unit) for unit in units},
            spacing=case.spacing,
            arc_length=case.arc_length,
            variables=case.variables,
            exogenous=case.exogenous,
            notes=case.notes,
            digest=hashlib.sha256(pixels.tobytes()).hexdigest(),
            written={
                f"{folder}/{identifier}{suffix}": write_array(
                    self.out / folder / f"{identifier}{suffix}", array, case.spacing
                )
                for folder, array in (("images", pixels), ("labels", case.label))
            },
        )

    def _measure(self, case: Case, unit: str) -> dict[str, float]:
        variables = measured_variables(self.source.labels, unit, self.source.regions)
        measurements = {v["name"]: instantiate_measurement(v["measurement"]) for v in variables}
        return measured_values(measurements, case.label, max(self.source.labels.values()) + 1, case.spacing)
