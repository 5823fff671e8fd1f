import copy
import math
import re

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from segcft_ext.variables import Variables

DEFINITIONS = [
    {"name": "area", "kind": "continuous"},
    {"name": "sex", "kind": "binary"},
    {"name": "view", "kind": "categorical", "num_categories": 3},
    {"name": "age", "kind": "continuous"},
]
TRAINING = torch.tensor([[10.0, 0, 0, 20], [30, 1, 2, math.nan], [20, math.nan, 1, 60], [14, 1, 1, 45]])


@pytest.fixture
def variables() -> Variables:
    variables = Variables(DEFINITIONS)
    variables.fit(TRAINING, ["percent", "", "", "years"], [[], ["F", "M"], ["PA", "AP", "lateral"], []])
    return variables


def test_encoding_has_its_channels_and_the_training_range_spans_minus_one_to_one(variables):
    encoded = variables.encode(TRAINING)
    assert encoded.shape == (4, variables.encoded_channels) == (4, 6)
    assert encoded[:, variables.encoded_slice("area")].flatten().tolist() == pytest.approx([-1, 1, 0, -0.6])
    assert encoded[:, variables.encoded_slice("sex")].flatten().tolist() == [-1, 1, 0, 1]
    assert encoded[1, variables.encoded_slice("view")].tolist() == [0, 0, 1]
    assert variables.encode(torch.tensor([[50.0, 0, 0, 20]]))[0, 0] == 3, "values outside of the range are not clipped"


def test_missing_values_tell_nothing_and_have_no_gradient(variables):
    values = torch.full((2, 4), math.nan)
    values[1] = TRAINING[0]
    values.requires_grad_()
    encoded = variables.encode(values)
    assert torch.equal(encoded[0], torch.tensor([0, 0, 1 / 3, 1 / 3, 1 / 3, 0]))
    encoded.square().sum().backward()
    assert torch.equal(values.grad[0], torch.zeros(4))
    assert values.grad[1, 0] != 0 and values.grad[1, 1] != 0


def test_everything_missing_can_be_encoded_before_fitting():
    variables = Variables(DEFINITIONS)
    assert not variables.fitted
    assert variables.encode(torch.full((1, 4), math.nan)).isfinite().all()


def test_unscale_inverts_scale_in_and_outside_of_the_range(variables):
    values = torch.tensor([[-100.0, 1, 2, 500], [12.5, 0, 1, 33]])
    torch.testing.assert_close(variables.unscale(variables.scale(values)), values)
    assert torch.equal(variables.scale(values)[:, 1:3], values[:, 1:3])


def test_quantiles_are_those_of_the_known_values(variables):
    assert variables.fitted
    assert variables.quantiles[0, [0, 50, 100]].tolist() == [10, 17, 30]
    assert variables.quantiles[3, [0, 50, 100]].tolist() == [20, 45, 60]
    assert set(variables.quantiles[2].tolist()) <= {0, 1, 2}


def test_state_survives_saving_and_strict_loading(variables, tmp_path):
    torch.save(variables.state_dict(), tmp_path / "v.pt")
    other = Variables(DEFINITIONS)
    other.load_state_dict(torch.load(tmp_path / "v.pt", weights_only=True))
    assert torch.equal(other.encode(TRAINING), variables.encode(TRAINING))
    assert torch.equal(other.quantiles, variables.quantiles)
    assert other.units == ["percent", "", "", "years"] and other.categories[1] == ["F", "M"]
    assert copy.deepcopy(variables).units == variables.units


def test_that_they_are_fitted_is_known_without_the_device(variables):
    fresh = Variables(DEFINITIONS)
    unfitted = AveragedModel(fresh)
    assert not fresh.fitted and not unfitted.module.fitted
    assert variables.fitted and copy.deepcopy(variables).fitted and AveragedModel(variables).module.fitted
    unfitted.load_state_dict(AveragedModel(variables).state_dict())
    assert unfitted.module.fitted
    fresh.load_state_dict(variables.state_dict())
    assert fresh.fitted
    fresh.load_state_dict(Variables(DEFINITIONS).state_dict())
    assert not fresh.fitted
    assert variables.to("meta").fitted  # no value can be read from the meta device


def test_another_models_variables_are_refused(variables):
    renamed = Variables([{**d, "name": d["name"] + "_2"} for d in DEFINITIONS])
    with pytest.raises(ValueError, match="checkpoint holds"):
        renamed.load_state_dict(variables.state_dict())


def test_unknown_name_lists_the_names(variables):
    assert variables.index("age") == 3
    with pytest.raises(ValueError, match=re.escape("no variable 'weight'; the variables are ['area', 'sex'")):
        variables.index("weight")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([5.0, 5, math.nan, 5], "'area': constant at 5"),
        ([math.nan] * 4, "'area': missing in all 4"),
        ([1.0, math.inf, 2, 3], "'area': found an infinite"),
    ],
)
def test_fit_names_the_variable_that_cannot_be_used(column, message):
    values = TRAINING.clone()
    values[:, 0] = torch.tensor(column)
    variables = Variables(DEFINITIONS)
    with pytest.raises(ValueError, match=message):
        variables.fit(values, [""] * 4)
    assert not variables.fitted


def test_zero_inflated_variables_are_zero_at_the_least():
    variables = Variables([{"name": "plaque", "kind": "continuous", "zero_inflated": True}])
    with pytest.raises(
        ValueError, match=r"'plaque': zero_inflated, but its smallest training value is 0.5, expected 0"
    ):
        variables.fit(torch.tensor([[0.5], [2.0]]), ["mm2"])
    variables.fit(torch.tensor([[0.0], [0.0], [0.0], [2.0]]), ["mm2"])
    assert variables.zero_inflated == [True] and variables.encode(torch.zeros(1, 1)).item() == -1
    assert variables.unscale(variables.scale(torch.zeros(1, 1))).item() == 0


def test_fit_refuses_what_is_no_category():
    values = TRAINING.clone()
    values[0, 2] = 3
    with pytest.raises(ValueError, match="'view': found 3, expected a whole number in 0 … 2"):
        Variables(DEFINITIONS).fit(values, [""] * 4)
    with pytest.raises(ValueError, match="categories"):
        Variables(DEFINITIONS).fit(TRAINING, [""] * 4, [[], ["F"], [], []])


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ([{"name": "a", "kind": "binary", "zero_inflated": True}], "zero_inflated: found True for binary 'a'"),
        ([{"name": "a", "kind": "continuous", "zero_inflated": 1}], "zero_inflated: found 1"),
        ([], "at least one"),
        ([{"kind": "binary"}], r"variables\[0\].name"),
        ([{"name": "a", "kind": "ordinal"}], r"variables\[0\].kind: found 'ordinal'"),
        ([{"name": "a", "kind": "categorical"}], "num_categories: found None"),
        ([{"name": "a", "kind": "binary", "num_categories": 2}], "only if categorical"),
        ([{"name": "a", "kind": "binary", "unit": "mm"}], "keys among"),
        ([{"name": "a", "kind": "binary"}] * 2, "each name once"),
    ],
)
def test_malformed_definitions_are_named(definitions, message):
    with pytest.raises(ValueError, match=message):
        Variables(definitions)
