"""The factual variables of an image, given by the user or measured by a segmentor.

.. code-block:: python

    ruler = segmentor_ruler(dscm, segmentor)
    values = factual_values(dscm, image, {"heart_area": "+20%"}, given={"age": 61}, ruler=ruler)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from segcft_ext.checkpoints import CheckpointError
from segcft_ext.dscm import DSCM
from segcft_ext.freezing import freeze
from segcft_ext.interventions import expand_sweep, parse_intervention, resolve
from segcft_ext.measurements import instantiate_measurement, value_limits
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.ruler import Ruler

__all__ = ["factual_values", "segmentor_ruler"]


def segmentor_ruler(dscm: DSCM, segmentor: Segmentor) -> Ruler:
    """A segmentor that measures the variables of a DSCM as they were measured in the data that both were trained on.

    It measures label maps, as a judge does: the area of a structure that it sees nowhere is exactly zero.

    Raises:
        CheckpointError: when they were trained on images of another size or window, or on other labels, or the DSCM has
            no measured variable.
    """
    for key in ("image_size", "labels", "window"):
        if segmentor.data.get(key) != dscm.data.get(key):
            raise CheckpointError(
                f"{segmentor.origin}: data.{key}: the checkpoint holds {segmentor.data.get(key)}, "
                f"{dscm.origin} holds {dscm.data.get(key)}"
            )
    measurements = {name: instantiate_measurement(found) for name, found in dscm.measured.items()}
    if not measurements:
        raise CheckpointError(
            f"{dscm.origin}: data.variables: none of {dscm.variables.names} is measured; a segmentor cannot tell them"
        )
    return Ruler(freeze(segmentor), measurements, max(segmentor.labels.values()) + 1)


@torch.no_grad()
def factual_values(
    dscm: DSCM,
    image: Tensor,
    intervention: str | Mapping[str, Any],
    given: str | Mapping[str, Any] | None = None,
    ruler: Ruler | None = None,
    spacing: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """The variables of images in physical units, shape (B, K), NaN where unknown.

    Args:
        dscm: the model.
        image: shape (B, 1, *spatial), in [-1, 1].
        intervention: what will be done; the variables in it must be known.
        given: values in physical units, or names of categories; they take precedence over measured ones.
        ruler: measures what is not given, see :func:`segmentor_ruler`.
        spacing: pixel spacing in mm, shape (B, D), where a unit needs it.
        label: the ruler's label maps of the images, shape (B, 1, *spatial), if they are already known.

    Raises:
        ValueError: when a variable that is given or intervened on is not in the model; when a variable that has to be
            known (measured in the training data, or intervened on) is neither given nor measured, in which case all of
            these are named; when a given area is impossible; or when a measured unit needs a spacing that is not given.
    """
    variables, intervened = dscm.variables, list(expand_sweep(intervention)[0])
    continuous = [name for name, kind in zip(variables.names, variables.kinds) if kind == "continuous"]
    known = _absolute(given, continuous)
    for option, names in (("variables", known), ("intervention", intervened)):
        if unknown := [name for name in names if name not in variables.names]:
            found = f"--{option}: no variable {unknown[0]!r}"
            raise ValueError(f"{found}; the variables of {dscm.origin} are {variables.names}")
    values = image.new_full((len(image), len(variables)), torch.nan)
    if ruler is not None:
        units = {name: measurement.unit for name, measurement in ruler.measurements.items()}
        in_mm = [name for name, unit in units.items() if unit.startswith("mm")]
        if in_mm and spacing is None:
            raise ValueError(
                f"spacing: not known, but {', '.join(in_mm)} are measured in {units[in_mm[0]]}. Give "
                'that of the image as it is in the file, in mm along each axis (--spacing "[0.14, 0.14]")'
            )
        measured = ruler.measure(ruler.segment(image) if label is None else label, image, spacing)
        for j, name in enumerate(ruler.names):
            values[:, variables.index(name)] = measured[:, j]
    needed = list(dscm.measured)
    for name, value in known.items():
        k = variables.index(name)
        values[:, k] = resolve({name: value}, variables, values, option="variables")[name]
        low, high, limits = value_limits(variables.units[k])
        if name in needed and not low <= values[0, k] <= high:
            raise ValueError(f"variables: {name}: found {values[0, k]:g}, expected {limits}")
    needed += [name for name in intervened if name not in needed]
    missing = [name for name in needed if values[:, variables.index(name)].isnan().any()]
    if missing:
        unit_of = dict(zip(variables.names, variables.units))
        listed = ", ".join(f"{name} ({unit_of[name]})" if unit_of[name] else name for name in missing)
        example = json.dumps({missing[0]: round(float(variables.quantiles[variables.index(missing[0]), 50]), 1)})
        raise ValueError(
            f"variables: not known of the image: {listed}. Give them (--variables '{example}', …), or the model.pt of "
            "a segmentor that measures them (--segmentor)"
        )
    return values


def _absolute(given: str | Mapping[str, Any] | None, continuous: Collection[str]) -> dict[str, Any]:
    """The given values: numbers for continuous variables, with any sign and also as text; categories as given."""
    values: dict[str, Any] = {}
    for name, change in parse_intervention(given or {}, "variables").items():
        if name in continuous and change.form not in ("absolute", "additive"):
            raise ValueError(f"variables: {name}: found {change.text!r}, expected a number")
        # as text, a number with a sign would be an offset
        signed = name in continuous and change.form == "additive"
        values[name] = change.amount if change.number or signed else change.text
    return values
