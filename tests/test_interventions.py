import math
import re

import pytest
import torch

from segcft_ext.dscm import DSCM
from segcft_ext.evidence import factual_values
from segcft_ext.interventions import Change, beyond_training, expand_sweep, parse_intervention, resolve
from segcft_ext.variables import Variables

HVAE = {"channels": (4, 4), "strides": (4,), "blocks": (0, 1), "latent_channels": 1}

VALUES = torch.tensor([[10.0, 20, 0, 1], [20.0, 60, 1, 2]])


@pytest.fixture(scope="module")
def variables() -> Variables:
    variables = Variables(
        [
            {"name": "area", "kind": "continuous"},
            {"name": "age", "kind": "continuous"},
            {"name": "sex", "kind": "binary"},
            {"name": "view", "kind": "categorical", "num_categories": 3},
        ]
    )
    column = torch.arange(201.0)
    variables.fit(
        torch.stack([column / 2, column, column % 2, column % 3], dim=1),
        ["percent", "years", "", ""],
        [[], [], ["F", "M"], ["PA", "AP", "2"]],
    )
    return variables


@pytest.mark.parametrize(
    ("change", "targets"),
    [
        (12.5, [12.5, 12.5]),
        (-3, [-3, -3]),
        ("12.5", [12.5, 12.5]),
        ("+20%", [12, 24]),
        ("-20 %", [8, 16]),
        ("+1.5", [11.5, 21.5]),
        (" -1.5", [8.5, 18.5]),
        ("+1e1", [20, 30]),
        ("-.5", [9.5, 19.5]),
        ("q90", [90, 90]),
        ("q2.5", [2.5, 2.5]),
        ("q100", [100, 100]),
        ("quantile:0.9", [90, 90]),
        ("quantile: 0", [0, 0]),
    ],
)
def test_every_form_gives_its_physical_targets(variables, change, targets):
    resolved = resolve({"area": change}, variables, VALUES)
    assert list(resolved) == ["area"] and resolved["area"].dtype == torch.float32
    assert resolved["area"].tolist() == pytest.approx(targets)


@pytest.mark.parametrize(
    ("name", "change", "index"),
    [("sex", "M", 1), ("sex", 0, 0), ("sex", "1", 1), ("view", "AP", 1), ("view", "2", 2), ("view", 1, 1)],
)
def test_categories_go_by_name_or_index(variables, name, change, index):
    assert resolve({name: change}, variables, VALUES)[name].tolist() == [index, index]


@pytest.mark.parametrize(
    ("names", "change", "index"),
    [
        (["1", "2", "3", "4"], 1, 1),
        (["1", "2", "3", "4"], "1", 0),
        (["-1", "0", "+1"], "+1", 2),
        (["-1", "0", "+1"], "-1", 0),
        (["-1", "0", "+1"], 0, 0),
        (["-1", "0", "+1"], "0", 1),
        (["q1", "20%"], "q1", 0),
        (["a", "+20%"], "+20%", 1),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_text_is_a_name_also_where_it_looks_like_a_number(names, change, index, known):
    dscm = DSCM([{"name": "grade", "kind": "categorical", "num_categories": len(names)}], hvae=HVAE)
    dscm.variables.fit(torch.tensor([[0.0], [1.0]]), [""], [names])
    if known:
        found = factual_values(dscm, torch.zeros(1, 1, 8, 8), {}, {"grade": change})[:, 0]
    else:
        found = resolve({"grade": change}, dscm.variables, torch.zeros(1, 1))["grade"]
    assert found.tolist() == [index]


def test_a_number_is_no_name_of_a_category():
    variables = Variables([{"name": "grade", "kind": "categorical", "num_categories": 3}])
    variables.fit(torch.tensor([[0.0], [2.0]]), [""], [["-1", "0", "3"]])
    for change in (-1, 3):
        with pytest.raises(ValueError, match=f"found '{change}', expected one of .* or an index in 0 … 2"):
            resolve({"grade": change}, variables, torch.zeros(1, 1))


def test_several_variables_and_json_text(variables):
    resolved = resolve('{"area": "+20%", "age": 50}', variables, VALUES)
    assert list(resolved) == ["area", "age"]
    assert resolve({}, variables, VALUES) == {}
    assert parse_intervention({"area": "+20%"}) == {"area": Change("relative", 0.2, "+20%")}


def test_sweeps_are_expanded_to_every_combination():
    assert expand_sweep({"area": ["-20%", 3], "sex": ["F", "M"], "age": 50}) == [
        {"area": "-20%", "sex": "F", "age": 50},
        {"area": "-20%", "sex": "M", "age": 50},
        {"area": 3, "sex": "F", "age": 50},
        {"area": 3, "sex": "M", "age": 50},
    ]
    assert expand_sweep('{"area": "q90"}') == [{"area": "q90"}]


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        ({"weight": 3}, "no variable 'weight'; the variables are ['area', 'age', 'sex', 'view']"),
        ({"area": "large"}, "intervention on 'area': found 'large', expected 12.5, \"+20%\""),
        ({"area": "20%"}, "found '20%'"),
        ({"area": "++2"}, "found '++2'"),
        ({"area": "nan"}, "found 'nan'"),
        ({"area": "+1e999"}, "found '+1e999', expected a finite"),
        ({"area": math.inf}, "found inf, expected a finite"),
        ({"area": None}, "found None"),
        ({"area": True}, "found True"),
        ({"area": ""}, "found ''"),
        ({"area": "q101"}, "found 'q101', expected a quantile"),
        ({"area": "quantile:90"}, "found 'quantile:90', expected a quantile"),
        ({"area": [1, 2]}, "found the sweep [1, 2], expected one value; see expand_sweep"),
        ({"sex": "X"}, "intervention on 'sex': found 'X', expected one of ['F', 'M'] or an index in 0 … 1"),
        ({"sex": 2}, "found '2', expected one of ['F', 'M'] or an index in 0 … 1"),
        ({"sex": 0.5}, "found '0.5'"),
        ({"sex": "+1"}, "found '+1'"),
        ("area=3", "found 'area=3', expected JSON like {\"heart_area\""),
        ("[1]", "found '[1]', expected a mapping"),
    ],
)
def test_what_cannot_be_read_is_named(variables, intervention, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(intervention, variables, VALUES)


def test_an_empty_sweep_is_refused():
    with pytest.raises(ValueError, match="'area': found an empty list"):
        expand_sweep({"area": []})


def test_a_relative_change_needs_the_factual_value(variables):
    values = VALUES.clone()
    values[1, 0] = math.nan
    for change in ("+20%", "-1"):
        with pytest.raises(
            ValueError, match=re.escape(f"'{change}' needs the factual value, which is missing in rows [1]")
        ):
            resolve({"area": change}, variables, values)
    assert resolve({"area": 3}, variables, values)["area"].tolist() == [3, 3]


def test_quantiles_need_fitted_variables():
    with pytest.raises(ValueError, match="'q50' needs fitted variables"):
        resolve({"a": "q50"}, Variables([{"name": "a", "kind": "continuous"}]), torch.zeros(1, 1))


def test_what_may_be_zero_does_not_become_negative_and_a_share_of_nothing_is_nothing(caplog):
    plaque = Variables([{"name": "plaque", "kind": "continuous", "zero_inflated": True}])
    plaque.fit(torch.tensor([[0.0], [0.0], [4.0]]), ["mm2"])
    values = torch.tensor([[0.0], [2.0]])
    for change, targets in [("-3", [0, 0]), ("+3", [3, 5]), ("-150%", [0, 0]), (0, [0, 0]), ("q20", [0, 0])]:
        assert resolve({"plaque": change}, plaque, values)["plaque"].tolist() == targets
    caplog.clear()
    assert resolve({"plaque": "+20%"}, plaque, values)["plaque"].tolist() == pytest.approx([0, 2.4])
    assert "'+20%' of zero is zero, so nothing changes in rows [0]" in caplog.text
    with pytest.raises(ValueError, match=re.escape("'plaque': found '-1', expected zero or more")):
        resolve({"plaque": -1}, plaque, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (-20, r"'area': found '-20', a target of -20, expected 0 … 100 percent; .* such as \"-20%\""),
        ("-10.5", r"'area': found '-10.5', a target of -0.5, expected 0 … 100 percent$"),
        ("-101%", r"a target of -0.1, expected 0"),
        ("+900%", r"found '\+900%', a target of 200, expected 0 … 100 percent"),
        (138, r"found '138', a target of 138"),
    ],
)
def test_no_area_is_negative_or_larger_than_the_image(variables, change, message):
    with pytest.raises(ValueError, match=message):
        resolve({"area": change}, variables, VALUES, measured=["area"])
    resolve({"age": -3}, variables, VALUES, measured=["area"])


def test_the_whole_range_is_an_area(variables):
    for change, target in {0: 0, 100: 100, "-100%": 0, "q0": 0, "q100": 100}.items():
        assert resolve({"area": change}, variables, VALUES, measured=["area"])["area"].tolist() == [target] * 2


@pytest.mark.parametrize(
    ("change", "targets"), [(-900, [-900, -900]), ("+20%", [-640, 60]), ("-20%", [-960, 40]), ("-100", [-900, -50])]
)
def test_a_measurement_that_is_no_area_may_be_negative_and_plus_is_always_more(change, targets):
    density = Variables([{"name": "density", "kind": "continuous"}])
    density.fit(torch.tensor([[-1000.0], [400.0]]), ["HU"])
    resolved = resolve({"density": change}, density, torch.tensor([[-800.0], [50.0]]), measured=["density"])
    assert resolved["density"].tolist() == targets


def test_targets_outside_of_the_training_range_are_told(variables):
    inside = {"area": torch.tensor([0.0, 100.0]), "sex": torch.tensor([0.0, 1.0])}
    assert beyond_training(inside, variables) == {}
    told = beyond_training({**inside, "age": torch.tensor([30.0, 201.0])}, variables)
    assert told == {"age": "target 201, but it is 0 … 200 years in the training data"}
    told = beyond_training({"area": torch.tensor([30.0, -1.0])}, variables, "value")
    assert told == {"area": "value -1, but it is 0 … 100 percent in the training data"}
