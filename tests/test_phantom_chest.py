"""The chest phantom: pure, exact in its areas, local in its counterfactuals, like radiographs in its figures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from data_prep.phantom_chest import AREAS, ChestPhantom
from segcft_ext.measurements import Area

LABELS = {"left_lung_area": 1, "right_lung_area": 2, "heart_area": 3}
Case = tuple[dict[str, float], dict[str, Any]]


@pytest.fixture(scope="module")
def phantom() -> ChestPhantom:
    return ChestPhantom(size=64)


@pytest.fixture(scope="module")
def cases(phantom: ChestPhantom) -> list[Case]:
    return [phantom.sample(seed) for seed in range(16)]


def measured(label: np.ndarray) -> dict[str, float]:
    channels = torch.nn.functional.one_hot(torch.from_numpy(label.astype(np.int64)), 4).movedim(-1, 0)[None].double()
    return {name: float(Area(value)(channels)) for name, value in LABELS.items()}


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    return binary_dilation(mask, np.ones((3, 3), bool), iterations=pixels)


def test_render_is_a_pure_function(phantom: ChestPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[0]
    before = json.dumps([variables, exogenous])
    image, label = phantom.render(variables, exogenous)
    again, label_again = ChestPhantom(size=64).render(variables, exogenous)
    assert image.dtype == np.float32 and label.dtype == np.uint8 and image.shape == label.shape == (64, 64)
    assert image.min() >= 0 and image.max() <= 1 and set(np.unique(label)) == {0, 1, 2, 3}
    assert np.array_equal(image, again) and np.array_equal(label, label_again)
    assert json.dumps([variables, exogenous]) == before
    assert phantom.sample(0) == (variables, exogenous) and phantom.sample(1) != phantom.sample(0)


def test_a_case_survives_json(phantom: ChestPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[1]
    read = json.loads(json.dumps([variables, exogenous]))
    assert read == [variables, exogenous]
    for ours, theirs in zip(phantom.render(variables, exogenous), phantom.render(*read)):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("size", "tolerance"), [(64, 0.01), (128, 0.002), (256, 0.0005)])
def test_areas_are_met(size: int, tolerance: float) -> None:
    phantom = ChestPhantom(size)
    for seed in range(3):
        variables, exogenous = phantom.sample(seed)
        _, label = phantom.render(variables, exogenous)
        for name, found in measured(label).items():
            assert found == pytest.approx(variables[name], rel=tolerance), (seed, name)


@pytest.mark.parametrize("name", AREAS)
def test_every_area_fits_every_body(phantom: ChestPhantom, cases: list[Case], name: str) -> None:
    for variables, exogenous in cases[:6]:
        for value in AREAS[name]:
            wanted = {**variables, name: value}
            for other, found in measured(phantom.render(wanted, exogenous)[1]).items():
                assert found == pytest.approx(wanted[other], rel=0.01), (name, value, other)


def test_an_area_without_room_is_refused(phantom: ChestPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[0]
    with pytest.raises(ValueError, match=r"left_lung_area: found 60 percent, expected less than"):
        phantom.render({**variables, "left_lung_area": 60.0}, exogenous)
    with pytest.raises(ValueError, match=r"heart_area: found 80 percent, expected less than"):
        phantom.render({**variables, "heart_area": 80.0}, exogenous)
    with pytest.raises(ValueError, match="heart_area: found nan, expected a positive number"):
        phantom.render({**variables, "heart_area": float("nan")}, exogenous)
    with pytest.raises(ValueError, match=r"variables lack .*heart_area"):
        phantom.render({"left_lung_area": 12.0}, exogenous)
    with pytest.raises(ValueError, match="liver"):
        phantom.counterfactual(variables, exogenous, {"liver": 1.0})
    with pytest.raises(ValueError, match="size is 8"):
        ChestPhantom(8)


@pytest.mark.parametrize(
    ("name", "factor"), [("left_lung_area", 0.7), ("right_lung_area", 0.7), ("right_lung_area", 1.2)]
)
def test_counterfactual_of_a_lung_is_local(phantom: ChestPhantom, cases: list[Case], name: str, factor: float) -> None:
    for variables, exogenous in cases[:5]:
        image, label = phantom.render(variables, exogenous)
        after, image_after, label_after = phantom.counterfactual(variables, exogenous, {name: factor * variables[name]})
        assert {key for key in after if after[key] != variables[key]} == {name}
        structure = LABELS[name]
        changed = label != label_after
        assert changed.any() and np.all((label[changed] == structure) | (label_after[changed] == structure))
        assert not changed[(label > 0) & (label != structure)].any(), "another structure lost or gained a pixel"
        near = dilate((label == structure) | (label_after == structure), 3)
        change = np.abs(image_after - image)
        assert change[~near].max() < 1e-6
        assert change[changed].mean() > 0.03


def test_counterfactual_of_the_heart_keeps_the_areas_of_the_lungs(phantom: ChestPhantom, cases: list[Case]) -> None:
    for variables, exogenous in cases[:5]:
        image, label = phantom.render(variables, exogenous)
        _, image_after, label_after = phantom.counterfactual(
            variables, exogenous, {"heart_area": 0.85 * variables["heart_area"]}
        )
        kept, moved = measured(label), measured(label_after)
        assert moved["left_lung_area"] == pytest.approx(kept["left_lung_area"], rel=0.01)
        assert moved["right_lung_area"] == pytest.approx(kept["right_lung_area"], rel=0.01)
        assert not ((label_after == 3) & (label != 3)).any(), "a smaller heart lies within the larger"
        near = dilate((label > 0) | (label_after > 0), 3)
        assert np.abs(image_after - image)[~near].max() < 1e-6


def test_composition_and_reversibility_are_exact(phantom: ChestPhantom, cases: list[Case]) -> None:
    for variables, exogenous in cases[:4]:
        image, label = phantom.render(variables, exogenous)
        same, image_same, label_same = phantom.counterfactual(variables, exogenous, {})
        assert same == variables and np.array_equal(image, image_same) and np.array_equal(label, label_same)
        moved, _, _ = phantom.counterfactual(variables, exogenous, {"heart_area": 7.0})
        _, image_back, label_back = phantom.counterfactual(moved, exogenous, {"heart_area": variables["heart_area"]})
        assert np.array_equal(image, image_back) and np.array_equal(label, label_back)


def test_descendants_follow_the_causal_model(phantom: ChestPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[2]
    other = 1.0 - variables["sex"]
    after, image, _ = phantom.counterfactual(variables, exogenous, {"sex": other, "age": 80.0})
    assert after["sex"] == other and after["age"] == 80.0 and all(after[name] != variables[name] for name in AREAS)
    back, image_back, _ = phantom.counterfactual(after, exogenous, {"sex": variables["sex"], "age": variables["age"]})
    assert back == pytest.approx(variables, rel=1e-9)
    assert not np.array_equal(image, image_back)
    fixed, _, _ = phantom.counterfactual(variables, exogenous, {"sex": other, "heart_area": 8.0})
    assert fixed["heart_area"] == 8.0 and fixed["age"] == variables["age"]


def test_distribution_resembles_real_radiographs(phantom: ChestPhantom) -> None:
    drawn = [phantom.sample(seed)[0] for seed in range(1500)]
    areas = np.array([[variables[name] for name in AREAS] for variables in drawn])
    assert areas.mean(0) == pytest.approx([12.1, 14.9, 9.4], rel=0.04)
    assert areas.std(0) == pytest.approx([3.2, 3.6, 1.8], rel=0.15)
    correlation = np.corrcoef(areas.T)
    assert 0.8 < correlation[0, 1] < 0.92 and np.abs(correlation[2, :2]).max() < 0.25
    ages = np.array([variables["age"] for variables in drawn])
    assert ages.min() >= 20 and ages.max() <= 90 and 0.4 < np.mean([v["sex"] for v in drawn]) < 0.6


def test_pictures_look_like_radiographs(phantom: ChestPhantom, cases: list[Case]) -> None:
    lungs = []
    for variables, exogenous in cases:
        image, label = phantom.render(variables, exogenous)
        left, right, heart = (image[label == value].mean() for value in (1, 2, 3))
        assert max(left, right) + 0.08 < heart, "lungs are darker than the heart"
        columns, rows = np.arange(64)[None, :], np.arange(64)[:, None]
        masks = {value: label == value for value in (1, 2, 3)}
        position = {v: ((columns * m).sum() / m.sum(), (rows * m).sum() / m.sum()) for v, m in masks.items()}
        assert position[2][0] < position[3][0] < position[1][0], "the patient's left is the right side of the picture"
        assert position[3][0] > 0.5 * (position[1][0] + position[2][0]), "the heart's apex points to the left"
        assert position[3][1] > position[1][1], "the heart lies low"
        lungs.append(0.5 * (left + right))
    assert np.std(lungs) > 0.08, "exposure varies"


def test_sizes_show_the_same_case(phantom: ChestPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[3]
    image, label = phantom.render(variables, exogenous)
    large, large_label = ChestPhantom(128).render(variables, exogenous)
    small = large.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(small - image).mean() < 0.02
    assert (large_label[::2, ::2] == label).mean() > 0.97
