"""What a user states about an image is taken as stated."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_vessels import small_vessels
from torch import Tensor

from segcft_ext.dscm import DSCM
from segcft_ext.evidence import factual_values, segmentor_ruler
from segcft_ext.interventions import resolve
from segcft_ext.networks.segmentor import Segmentor

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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sex": "X"}, "variables: sex: found 'X', expected one of"),
        ({"sex": 7}, "variables: sex: found '7.0', expected one of"),
        ({"t_score": "low"}, "variables: t_score: found 'low', expected a number"),
        ({"t_score": None}, "variables: t_score: found None, expected a number or the name of a category"),
        ({"t_score": [1, 2]}, "variables: t_score: found the sweep [1, 2], expected one value"),
        ("t_score=1", "variables: found 't_score=1', expected JSON like {\"heart_area\": 9.8}"),
        ("[1]", "variables: found '[1]', expected a mapping like {\"heart_area\": 9.8}"),
    ],
)
def test_a_value_that_cannot_be_read_is_no_fault_of_the_intervention(dscm: DSCM, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        factual_values(dscm, torch.zeros(1, 1, 8, 8), {"t_score": 1}, given)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("percent", -3, "0 … 100 percent"), ("percent", 130, "0 … 100 percent"), ("mm2", "-3", "zero or more mm2")],
)
def test_a_known_area_is_one_that_can_be(unit: str, value: Any, expected: str) -> None:
    dscm = DSCM([{"name": "heart_area", "kind": "continuous"}], hvae=HVAE)
    dscm.variables.fit(torch.tensor([[5.0], [15.0]]), [unit])
    dscm.data = {"variables": [{"name": "heart_area", "measurement": {}}]}
    with pytest.raises(ValueError, match=f"variables: heart_area: found {value}, expected {expected}"):
        factual_values(dscm, torch.zeros(1, 1, 8, 8), {}, {"heart_area": value})


@pytest.mark.parametrize("value", [-700, "-700"])
def test_a_known_measurement_that_is_no_area_may_be_negative(value: Any) -> None:
    dscm = DSCM([{"name": "density", "kind": "continuous"}], hvae=HVAE)
    dscm.variables.fit(torch.tensor([[-1000.0], [400.0]]), ["HU"])
    dscm.data = {"variables": [{"name": "density", "measurement": {}}]}
    assert factual_values(dscm, torch.zeros(1, 1, 8, 8), {}, {"density": value}).tolist() == [[-700.0]]


class LumenOnly(Segmentor):
    """Sees a lumen everywhere, and gives each plaque a probability of a tenth."""

    def forward(self, image: Tensor) -> Tensor:
        probabilities = torch.tensor([0.1, 0.7, 0.1, 0.1]).view(1, -1, 1, 1)
        return probabilities.log().expand(len(image), -1, *image.shape[2:])


def test_what_the_segmentor_does_not_see_is_exactly_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datalist = small_vessels(tmp_path, training=12)
    dscm = DSCM(datalist.definitions(), hvae=HVAE)
    dscm.fit(datalist)
    segmentor = LumenOnly(datalist.labels, "UNet", channels=(4, 4), strides=(2,))
    segmentor.describe(datalist, use="guide")
    image, spacing = torch.zeros(2, 1, *datalist.size), torch.full((2, 2), 0.5)
    action = {"calcified_plaque_area": "+20%"}
    values = factual_values(dscm, image, action, ruler=segmentor_ruler(dscm, segmentor), spacing=spacing)
    lumen, *plaques = values.T
    assert lumen.tolist() == [0.25 * datalist.size[0] * datalist.size[1]] * 2
    assert all(plaque.tolist() == [0.0, 0.0] for plaque in plaques)
    with caplog.at_level(logging.WARNING):
        resolve(action, dscm.variables, values)
    assert "of zero is zero" in caplog.text
