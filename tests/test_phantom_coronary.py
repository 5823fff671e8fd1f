"""The coronary phantom: pure, exact in its areas, local in its counterfactuals, with the causal model of the docs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.__main__ import main
from data_prep.coronary_vessel import LABELS
from data_prep.measured import measured_variables
from data_prep.phantom_coronary import CoronaryPhantom
from data_prep.regions import region_definition
from segcft_ext.datalist import read_datalist
from segcft_ext.datalist_format import SPLITS
from segcft_ext.evaluation.truth import Truth
from segcft_ext.measurements import instantiate_measurement, measure_label_map

SIZE = (128, 32)
Case = tuple[dict[str, float], dict[str, Any]]


def phantom_of(regions: int | None = 3, descendants: bool = True, size: tuple[int, ...] = SIZE) -> CoronaryPhantom:
    names = None if regions is None else ["proximal", "mid", "distal"][:regions]
    return CoronaryPhantom(size, None if names is None else region_definition(names), descendants)


@pytest.fixture(scope="module")
def phantom() -> CoronaryPhantom:
    return phantom_of()


@pytest.fixture(scope="module")
def cases(phantom: CoronaryPhantom) -> list[Case]:
    return [phantom.sample(seed) for seed in range(10)]


def measured(phantom: CoronaryPhantom, label: np.ndarray, exogenous: dict[str, Any]) -> dict[str, float]:
    """The variables, measured as in all stages."""
    variables = measured_variables(LABELS, "mm2" if label.ndim == 2 else "mm3", phantom.regions)
    rulers = {v["name"]: instantiate_measurement(v["measurement"]) for v in variables}
    spacing = torch.tensor([phantom.spacing(exogenous)])
    values = measure_label_map(rulers, torch.from_numpy(label.astype(np.int64))[None, None], 4, spacing=spacing)
    return dict(zip(rulers, values[0].tolist()))


def pixel(phantom: CoronaryPhantom, exogenous: dict[str, Any]) -> float:
    return float(np.prod(phantom.spacing(exogenous)))


def test_a_case_is_a_pure_function_of_its_noise(phantom: CoronaryPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[0]
    image, label = phantom.render(variables, exogenous)
    again, label_again = phantom_of().render(*json.loads(json.dumps([variables, exogenous])))
    assert image.dtype == np.float32 and label.dtype == np.uint8 and image.shape == label.shape == SIZE
    assert image.min() >= 0 and image.max() <= 1
    assert np.array_equal(image, again) and np.array_equal(label, label_again)
    assert phantom.sample(0) == (variables, exogenous) and phantom.sample(1) != phantom.sample(0)


@pytest.mark.parametrize(("regions", "size"), [(3, (256, 64)), (2, SIZE), (None, SIZE), (3, (64, 24, 24))])
def test_areas_are_what_the_ruler_measures(regions: int | None, size: tuple[int, ...]) -> None:
    phantom = phantom_of(regions, size=size)
    for seed in range(3):
        variables, exogenous = phantom.sample(seed)
        _, label = phantom.render(variables, exogenous)
        assert measured(phantom, label, exogenous) == pytest.approx(variables, rel=1e-4, abs=1e-4)


def test_an_action_is_met_to_a_pixel_and_stays_in_its_region(cases: list[Case]) -> None:
    phantom = phantom_of(descendants=False)
    actions = [
        ("calcified_plaque_area_proximal", 6.0),
        ("noncalcified_plaque_area_mid", 9.0),
        ("lumen_area_distal", -15),
    ]
    for (variables, exogenous), (name, more) in itertools.product(cases[:3], actions):
        value = variables[name] + more
        image, _ = phantom.render(variables, exogenous)
        after, image_after, label_after = phantom.counterfactual(variables, exogenous, {name: value})
        found = measured(phantom, label_after, exogenous)
        assert after == {**variables, name: value}
        for key, wanted in after.items():
            assert found[key] == pytest.approx(wanted, abs=pixel(phantom, exogenous)), (key, name)
        rows = np.flatnonzero(np.abs(image_after - image).max(1) > 0.01)
        third = ["proximal", "mid", "distal"].index(name.rpartition("_")[2])
        reach = 2.5 / phantom.spacing(exogenous)[0]  # of the point spread
        assert rows.size and rows.min() >= third * SIZE[0] / 3 - reach
        assert rows.max() <= (third + 1) * SIZE[0] / 3 + reach


def test_plaques_appear_and_vanish(cases: list[Case]) -> None:
    phantom = phantom_of(descendants=False)
    names = [
        f"{plaque}_area_{r}" for plaque in ("calcified_plaque", "noncalcified_plaque") for r in ("proximal", "mid")
    ]
    zero = dict.fromkeys(names, 0.0)
    for variables, exogenous in cases[:4]:
        _, image, label = phantom.counterfactual(variables, exogenous, zero)
        upper = slice(0, 2 * SIZE[0] // 3)
        assert not np.isin(label[upper], [2, 3]).any()
        _, back, label_back = phantom.counterfactual({**variables, **zero}, exogenous, {names[0]: 6.0})
        assert (label_back[upper] == LABELS["calcified_plaque"]).sum() >= 5
        brighter = back - image
        assert brighter[label_back == 2].mean() > 0.15, "calcium is bright"


def test_composition_and_reversibility_are_exact(phantom: CoronaryPhantom, cases: list[Case]) -> None:
    for variables, exogenous in cases[:4]:
        image, label = phantom.render(variables, exogenous)
        same, image_same, label_same = phantom.counterfactual(variables, exogenous, {})
        assert same == variables and np.array_equal(image, image_same) and np.array_equal(label, label_same)
        do = {"calcified_plaque_area_mid": 5.0, "lumen_area_mid": 0.8 * variables["lumen_area_mid"]}
        after, _, _ = phantom.counterfactual(variables, exogenous, do)
        _, image_back, label_back = phantom.counterfactual(after, exogenous, {name: variables[name] for name in do})
        assert np.array_equal(image, image_back) and np.array_equal(label, label_back)


def test_plaque_narrows_the_lumen_of_its_region_unless_remodelled(phantom: CoronaryPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[1]
    name = "noncalcified_plaque_area_proximal"
    do = {name: variables[name] + 12.0}
    for index, sign in ((0.2, -1), (1.0, 0), (1.1, 1)):
        noise = {**exogenous["noise"], "remodelling": [index] * 3}
        after, _, _ = phantom.counterfactual(variables, {**exogenous, "noise": noise}, do)
        change = after["lumen_area_proximal"] - variables["lumen_area_proximal"]
        assert np.sign(round(change, 6)) == sign
        if sign < 0:
            # of a square millimetre of plaque, 1 - m is taken from the lumen
            assert change == pytest.approx(-0.8 * 12, rel=0.25)
        others = set(variables) - {name, "lumen_area_proximal"}
        assert all(after[other] == variables[other] for other in others)
    held, _, _ = phantom.counterfactual(variables, exogenous, {**do, "lumen_area_proximal": 80.0})
    assert held["lumen_area_proximal"] == 80.0


def test_whole_vessel_and_other_regions_know_the_same_cases(cases: list[Case]) -> None:
    for regions in (None, 2):
        other = phantom_of(regions, descendants=False)
        for seed, (variables, exogenous) in enumerate(cases[:2]):
            theirs, same = other.sample(seed)
            assert same == exogenous
            assert sum(theirs.values()) == pytest.approx(sum(variables.values()), rel=1e-5)
            image, label = phantom_of().render(variables, exogenous)
            for ours, found in zip((image, label), other.render(theirs, exogenous)):
                assert np.array_equal(ours, found)
            name = "calcified_plaque_area" + ("" if regions is None else "_mid")
            _, _, label_after = other.counterfactual(theirs, exogenous, {name: 15.0})
            assert measured(other, label_after, exogenous)[name] == pytest.approx(15.0, abs=pixel(other, exogenous))


def test_model_has_point_masses_taper_and_a_common_cause(phantom: CoronaryPhantom) -> None:
    drawn = [phantom.sample(seed)[0] for seed in range(120)]
    table = {name: np.array([variables[name] for variables in drawn]) for name in drawn[0]}
    plaques = {name: values for name, values in table.items() if "plaque" in name}
    absent = {name: float((values == 0).mean()) for name, values in plaques.items()}
    assert 0.4 < np.mean(list(absent.values())) < 0.6
    assert absent["calcified_plaque_area_distal"] > absent["calcified_plaque_area_proximal"] + 0.1
    both = np.corrcoef(
        sum(v > 0 for n, v in plaques.items() if n.startswith("calcified")),
        sum(v > 0 for n, v in plaques.items() if n.startswith("noncalcified")),
    )
    assert both[0, 1] > 0.3
    lumen = [table[f"lumen_area_{name}"].mean() for name in ("proximal", "mid", "distal")]
    assert lumen[0] > 1.1 * lumen[1] > 1.2 * lumen[2]


def test_tissues_have_their_hounsfield_units() -> None:
    phantom = phantom_of(size=(256, 64))
    found: dict[int, list[float]] = {0: [], 1: [], 2: [], 3: []}
    for seed in range(8):
        variables, exogenous = phantom.sample(seed)
        image, label = phantom.render(variables, exogenous)
        hu = 900 * image - 150
        for value, values in found.items():
            values += hu[label == value].tolist()
    assert 280 < np.median(found[1]) < 430
    assert np.median(found[2]) > 450
    assert 20 < np.median(found[3]) < 200
    assert np.median(found[0]) < 60


def test_what_cannot_be_is_refused(phantom: CoronaryPhantom, cases: list[Case]) -> None:
    variables, exogenous = cases[0]
    with pytest.raises(ValueError, match=r"calcified_plaque: found 900, expected at most"):
        phantom.render({**variables, "calcified_plaque_area_mid": 900.0}, exogenous)
    with pytest.raises(ValueError, match="lumen: found 0, expected a positive number"):
        phantom.render({**variables, "lumen_area_mid": 0.0}, exogenous)
    with pytest.raises(ValueError, match="lumen_area_mid: found nan, expected a number"):
        phantom.render({**variables, "lumen_area_mid": float("nan")}, exogenous)
    with pytest.raises(ValueError, match="heart_area"):
        phantom.counterfactual(variables, exogenous, {"heart_area": 1.0})
    for size in ((16, 64), (256, 64, 32), (256,)):
        with pytest.raises(ValueError, match="size is"):
            CoronaryPhantom(size)


@pytest.mark.parametrize(
    ("options", "size"), [(["--size", "128x32"], SIZE), (["--size", "64x24", "--dims", "3"], (64, 24, 24))]
)
def test_coronary_phantoms_from_the_command_line(tmp_path: Path, options: list[str], size: tuple[int, ...]) -> None:
    out = tmp_path / "out"
    main(["phantom", "--kind", "coronary", "--count", "8", "--out", str(out), *options])
    datalist = read_datalist(out / "datalist.json")
    quantity = "area" if len(size) == 2 else "volume"
    assert datalist.size == size and len(datalist.variables) == 9 and f"lumen_{quantity}_mid" in datalist.variable_names
    assert datalist.window == (-150, 750) and datalist.intensity_unit == "HU"
    entry = datalist.entries["test"][0]
    image, label = (datalist.reader().get_data(out / entry[key])[0] for key in ("image", "label"))
    assert image.shape == label.shape == size and image.dtype == np.uint16 and label.dtype == np.uint8
    assert entry["arc_length"][1] == pytest.approx(entry["spacing"][0] * size[0])
    do = f"lumen_{quantity}_mid"
    true_image, true_label = Truth(datalist)([entry["id"]], {do: [entry["variables"][do]]})
    assert np.allclose(true_image[0, 0], 2 * (image / 65535) - 1, atol=4e-5)
    assert np.array_equal(true_label[0, 0], label)


def test_whole_vessels_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["phantom", "--kind", "coronary", "--count", "8", "--size", "128x32", "--regions", "none"]
    main([*arguments, "--out", str(tmp_path / "out")])
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    assert datalist.variable_names == ["lumen_area", "calcified_plaque_area", "noncalcified_plaque_area"]
    assert sum(len(datalist.entries[split]) for split in SPLITS) == 8
    with pytest.raises(SystemExit, match="size: found '64', expected samples along and across"):
        main([*arguments, "--size", "64", "--out", str(tmp_path / "other")])


@pytest.mark.parametrize("boundaries", [[0, 0.2, 0.4, 0.6, 0.8, 1], [0, 1 / 3, 2 / 3, 1]])
def test_a_plaque_meets_its_area_where_a_boundary_cuts_a_row(boundaries: list[float]) -> None:
    """Such a row counts in both regions by its shares, but is painted with one; both areas are met to half a pixel."""
    phantom = CoronaryPhantom((128, 32), region_definition(None, boundaries), descendants=False)
    met = 0
    for seed in range(3):
        variables, exogenous = phantom.sample(seed)
        pixel = np.prod(phantom.spacing(exogenous))
        for name in [name for name in variables if name.startswith("calcified")]:
            try:
                after = phantom.vessel({**variables, name: 6.0}, exogenous).fitted_label()
            except ValueError:
                continue  # no room
            measured = phantom._measure(after, phantom._grid(exogenous), phantom._names(None))
            assert abs(measured[name] - 6.0) <= 0.501 * pixel
            met += 1
    assert met >= len(boundaries)
