"""The variables that are measured on a label map: their definitions in a datalist's header, and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from segcft_ext.measurements import Measurement, measure_label_map

__all__ = ["measured_values", "measured_variables", "regional_variables"]


def measured_variables(
    labels: Mapping[str, int], unit: str, regions: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The area of each structure (its volume in mm3) as a datalist's header defines it.

    Args:
        labels: value of each structure in the label map.
        unit: "percent", "mm2" or "mm3".
        regions: the header's ``regions``; each structure then has a variable in every region, and none as a whole.
    """
    variables: list[dict[str, Any]] = []
    for structure, value in labels.items():
        if value != 0:
            whole = {
                "name": f"{structure}_{'volume' if unit == 'mm3' else 'area'}",
                "kind": "continuous",
                "unit": unit,
                "measurement": {"_target_": "segcft_ext.measurements.Area", "label": value, "unit": unit},
            }
            variables += [whole] if regions is None else regional_variables(whole, structure, regions)
    return variables


def regional_variables(variable: Mapping[str, Any], structure: str, regions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The variable of a structure's area, divided: its area in every region of the header's ``regions``."""
    common = {key: value for key, value in variable.items() if key != "measurement"}
    band = {"_target_": "segcft_ext.measurements.RegionArea", "axis": regions["axis"], "of": regions["of"]}
    return [
        {
            **common,
            "name": f"{variable['name']}_{region}",
            "structure": structure,
            "region": region,
            "measurement": {**variable["measurement"], **band, "low": low, "high": high},
        }
        for region, (low, high) in zip(regions["names"], pairwise(regions["boundaries"]))
    ]


def measured_values(
    measurements: Mapping[str, Measurement], label: np.ndarray, num_classes: int, spacing: Sequence[float] | None
) -> dict[str, float]:
    """The variables measured on one label map, whose pixels have a spacing in mm or an unknown one (None)."""
    values = measure_label_map(
        measurements,
        torch.from_numpy(label.astype(np.int64))[None, None],
        num_classes,
        spacing=torch.tensor([spacing], dtype=torch.float32) if spacing else None,
    )
    # Seven digits are what float32 holds; more would be noise in the file.
    return {name: float(f"{value:.7g}") for name, value in zip(measurements, values[0].tolist())}
