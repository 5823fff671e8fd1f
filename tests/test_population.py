"""Growth maps find where a structure varies in the population; counterfactuals are to grow there."""

import numpy as np
import pytest
import torch
from monai.data import Dataset
from scipy.ndimage import uniform_filter

from segcft_ext.dscm import Counterfactual
from segcft_ext.evaluation.place import GainMap, misplaced
from segcft_ext.guides import GuidePrediction, RegressorGuide
from segcft_ext.measurements import Area
from segcft_ext.networks.regressor import Regressor
from segcft_ext.objective import Asked, CFTObjective
from segcft_ext.population import blurred, growth_maps
from segcft_ext.variables import Variables

NAMES = ["age", "a", "b"]
MEASUREMENTS = {"a": Area(1), "b": Area(2)}


def population(count: int = 60, missing: int = 0) -> Dataset:
    """Structure a grows downwards only, b to the right, and who has a large a has a large b; in percent of 32 x 32."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i in range(count):
        height = int(torch.randint(4, 12, (), generator=generator))
        width = height // 2 + int(torch.randint(2, 8, (), generator=generator))
        label = torch.zeros(1, 32, 32)
        label[:, 4 : 4 + height, 2:8], label[:, 20:24, 12 : 12 + width] = 1, 2
        a, b = (100 / 32**2 * (label == value).sum().item() for value in (1, 2))
        age = 50.0 + i
        cases.append({"label": label, "variables": torch.tensor([age, torch.nan if i < missing else a, b])})
    return Dataset(cases)


def test_a_structure_grows_where_it_does_in_the_population_the_others_being_equal() -> None:
    maps = growth_maps(MEASUREMENTS, population(), NAMES, num_classes=3)
    assert maps is not None and maps.shape == (2, 32, 32)
    # A unit more of the variable is a unit more of the mask.
    torch.testing.assert_close(maps.mean((1, 2)) * 100, torch.ones(2), rtol=1e-4, atol=0)
    grows = torch.zeros(2, 32, 32, dtype=torch.bool)
    grows[0, 8:15, 2:8], grows[1, 20:24, 16:24] = True, True
    assert maps[~grows].abs().max() < 1e-5
    assert (maps[0, 8:15, 2:8] > 0).all()


def test_cases_that_lack_a_variable_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    known = Dataset([case for case in population(missing=30) if case["variables"].isfinite().all()])
    maps = growth_maps(MEASUREMENTS, population(missing=30), NAMES, num_classes=3)
    assert maps is not None and torch.equal(maps, growth_maps(MEASUREMENTS, known, NAMES, num_classes=3))
    assert growth_maps(MEASUREMENTS, population(missing=57), NAMES, num_classes=3) is None
    assert "found 3 training cases in which all of ['a', 'b'] are known, expected 4 or more" in caplog.text


def test_a_guide_without_masks_has_no_growth_maps() -> None:
    regressor = Regressor([{"name": "a", "kind": "continuous"}], channels=(8, 8))
    assert growth_maps(RegressorGuide(regressor).measurements, population(), NAMES, num_classes=3) is None


def test_growing_elsewhere_than_the_population_costs() -> None:
    objective = CFTObjective()
    variables = Variables([{"name": "a", "kind": "continuous"}])
    variables.fit(torch.tensor([[0.0], [20.0]]), ["percent"])
    image, pixel = torch.zeros(1, 1, 64, 64), torch.tensor([[100 / 64**2]])
    factual = torch.zeros(1, 1, 64, 64)
    factual[..., 20:40, 20:40] = 1
    growth = torch.zeros(1, 64, 64)
    growth[0, 40:44, 20:40] = 64**2 / 100 / 80  # below: a unit is spread over 80 pixels
    below, above = factual.clone(), factual.clone()
    below[..., 40:44, 20:40], above[..., 16:20, 20:40] = 1, 1
    values = (factual.sum() * pixel).view(1, 1)
    wanted = Counterfactual(image, values + 80 * pixel)

    def cost(support: torch.Tensor, growth: torch.Tensor | None) -> float:
        predictions = [
            GuidePrediction(mask.flatten(1).sum(1, keepdim=True) * pixel, mask, pixel=pixel)
            for mask in (factual, support)
        ]
        asked = Asked.of(values, wanted.values, variables, [0], growth)
        return float(objective(image, torch.zeros(1, 2, 64, 64), wanted, asked, *predictions).growth)

    assert cost(below, growth) == pytest.approx(0, abs=1e-10)
    assert cost(above, None) == 0
    assert cost(above, growth) > cost(factual, growth) > 0
    # Eight rows of 20 pixels are wrong by one each, and the blur takes some of it, in scaled units of a range of 20.
    assert 0.1 * 160 < cost(above, growth) / (float(pixel) * 2 / 20) < 160


def test_changes_are_compared_after_two_means_over_sixteen_pixels_at_256() -> None:
    mask = torch.rand(64, 48)
    expected = mask.numpy()
    for _ in range(2):
        expected = uniform_filter(expected, size=9, mode="constant")  # 4 pixels each way
    np.testing.assert_allclose(blurred(mask[None, None])[0, 0], expected, atol=1e-6)
    growth = torch.zeros(64, 64)
    growth[40:44, 20:40] = 1
    # What is a little beside it is not elsewhere.
    assert misplaced(growth.roll(2, 0), growth) < 0.25 < 0.5 == (growth.roll(2, 0) - growth).abs().sum() / 160


def test_misplaced_growth_is_told_in_shares() -> None:
    growth = torch.zeros(64, 64)
    growth[40:44, 20:40] = 1
    elsewhere = growth.roll(-28, 0)
    assert misplaced(growth, growth) == 0
    assert misplaced(torch.zeros(64, 64), growth) == pytest.approx(0.5)
    assert misplaced(elsewhere, growth) == pytest.approx(1)
    assert misplaced((growth + elsewhere) / 2, growth) == pytest.approx(0.5)


def test_the_gain_of_a_mask_is_that_for_one_unit() -> None:
    gain, growth = GainMap(), torch.rand(8, 8)
    for wanted in (torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.0])):
        gain.add(wanted[:, None, None] * growth, wanted)
    torch.testing.assert_close(gain.result(), growth.double())
