"""What a user says of an image is taken as it is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from segcft_ext.dscm import DSCM
from segcft_ext.evidence import factual_values

HVAE = {"channels": (4, 4), "strides": (4,), "blocks": (0, 1), "latent_channels": 1}


@pytest.fixture(scope="module")
def dscm() -> DSCM:
    variables = [{"name": "t_score", "kind": "continuous"}, {"name": "sex", "kind": "binary"}]
    dscm = DSCM(variables, hvae=HVAE)
    dscm.variables.fit(torch.tensor([[-4.0, 0], [1.5, 1]]), ["", ""], [(), ("F", "M")])
    return dscm


@pytest.mark.parametrize("value", [-2.5, "-2.5", "+1.5", 1.5, -0.0])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_known_value_is_absolute_whatever_its_sign(dscm: DSCM, value: Any, as_text: bool) -> None:
    given = {"t_score": value}
    values = factual_values(dscm, torch.zeros(2, 1, 8, 8), {"t_score": "+1"}, json.dumps(given) if as_text else given)
    assert values[:, 0].tolist() == [float(value)] * 2
    assert values[:, 1].isnan().all()


@pytest.mark.parametrize(("value", "expected"), [("M", 1.0), (0, 0.0), ("1", 1.0)])
def test_a_known_category_is_named_or_numbered(dscm: DSCM, value: Any, expected: float) -> None:
    values = factual_values(dscm, torch.zeros(1, 1, 8, 8), {}, {"sex": value})
    assert values[0, 1] == expected


def test_a_known_value_is_no_share_of_another(dscm: DSCM) -> None:
    with pytest.raises(ValueError, match=r"variables: t_score: found '\+20%', expected a number"):
        factual_values(dscm, torch.zeros(1, 1, 8, 8), {}, {"t_score": "+20%"})
