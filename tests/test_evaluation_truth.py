"""The truth is rendered with the case's own noise, and only a phantom may be called to render it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.phantom_chest import ChestPhantom
from segcft_ext.datalist import Datalist
from segcft_ext.datalist_format import DatalistError
from segcft_ext.evaluation.truth import Truth

PHANTOM = {"_target_": "data_prep.phantom_chest.ChestPhantom", "size": 48}


def datalist(truth: dict[str, Any], exogenous: Any, variables: dict[str, float]) -> Datalist:
    entry = {"id": "a", "variables": variables, "exogenous": exogenous}
    return Datalist(Path("x.json"), "x", (48, 48), (0, 1), {"background": 0}, (), truth, {"test": [entry]})


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, float], dict[str, Any]]:
    variables, exogenous = ChestPhantom(48).sample(3)
    return variables, json.loads(json.dumps(exogenous))


def test_truth_without_a_change_is_the_factual_image(case: tuple[dict[str, float], dict[str, Any]]) -> None:
    variables, exogenous = case
    image, label = ChestPhantom(48).render(variables, exogenous)
    truth = Truth(datalist(PHANTOM, exogenous, variables))
    same, same_label = truth(["a"], {"heart_area": [variables["heart_area"]]})
    assert np.allclose(same[0, 0], 2 * image - 1)
    assert np.array_equal(same_label[0, 0], label)


def test_truth_has_the_area_that_is_asked_for(case: tuple[dict[str, float], dict[str, Any]]) -> None:
    variables, exogenous = case
    truth = Truth(datalist(PHANTOM, exogenous, variables))
    target = 1.3 * variables["heart_area"]
    image, label = truth(["a", "a"], {"heart_area": [target, variables["heart_area"]]})
    assert image.shape == label.shape == (2, 1, 48, 48)
    assert 100 * float((label[0] == 3).float().mean()) == pytest.approx(target, rel=0.02)
    assert not torch.equal(image[0], image[1])


def test_impossible_truth_is_missing_and_said(
    case: tuple[dict[str, float], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    variables, exogenous = case
    image, label = Truth(datalist(PHANTOM, exogenous, variables))(["a"], {"left_lung_area": [90.0]})
    assert bool(image.isnan().all()) and not label.any()
    assert "left_lung_area" in caplog.text


def test_a_datalist_cannot_call_anything_else(case: tuple[dict[str, float], dict[str, Any]]) -> None:
    variables, exogenous = case
    for target in ("os.system", "data_prep.phantom_chest.np", "data_prep.nothing.Phantom", ""):
        with pytest.raises(DatalistError, match=r"truth\._target_"):
            Truth(datalist({"_target_": target}, exogenous, variables))
    with pytest.raises(DatalistError, match="exogenous"):
        Truth(datalist(PHANTOM, None, variables))
