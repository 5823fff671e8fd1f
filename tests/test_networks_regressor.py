import math

import pytest
import torch
from small_chests import small_chests

from segcft_ext.networks.regressor import Regressor, ScaledHuberLoss

AREAS = [{"name": f"{name}_area", "kind": "continuous"} for name in ("left_lung", "heart")]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    regressor = Regressor(AREAS, channels=(8, 8))
    regressor.fit(small_chests(tmp_path_factory.mktemp("chests")), use="guide")
    return regressor.eval()


def test_predicts_physical_units(network):
    image = torch.rand(3, 1, 32, 32)
    assert torch.allclose(network(image), network.variables.unscale(network.scaled(image)))
    assert network(image).shape == (3, 2)
    assert network.names == ["left_lung_area", "heart_area"] and network.variables.units == ["percent", "percent"]
    assert network.data["use"] == "guide"


def test_gradient_reaches_the_image(network):
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    network(image).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


def test_three_dimensions():
    assert Regressor(AREAS, spatial_dims=3, channels=(8, 8)).scaled(torch.rand(2, 1, 16, 16, 16)).shape == (2, 2)


def test_only_continuous_variables():
    with pytest.raises(ValueError, match="'sex' is binary, expected a continuous variable"):
        Regressor([{"name": "sex", "kind": "binary"}])


def test_missing_targets_do_not_count(network):
    loss = ScaledHuberLoss(network.variables)
    target = network(torch.rand(2, 1, 32, 32)).detach()
    prediction = (target + 1).requires_grad_()
    target[0, 0] = math.nan
    loss(prediction, target).backward()
    assert prediction.grad[0, 0] == 0 and (prediction.grad.flatten()[1:] > 0).all()


def test_a_batch_without_a_known_target_costs_nothing(network):
    prediction = torch.rand(2, 2, requires_grad=True)
    loss = ScaledHuberLoss(network.variables)(prediction, torch.full((2, 2), math.nan))
    loss.backward()
    assert loss == 0 and not prediction.grad.any()


def test_loss_is_taken_on_scaled_variables(network):
    variables = network.variables
    target = variables.unscale(torch.zeros(1, 2))
    off = variables.unscale(torch.tensor([[0.05, 0.0]]))
    assert ScaledHuberLoss(variables)(off, target).item() == pytest.approx(0.05**2 / 2 / 2, rel=1e-4)
