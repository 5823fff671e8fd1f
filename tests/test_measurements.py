import pytest
import torch
from monai.networks.utils import one_hot

from segcft_ext.measurements import Area, Measurement, instantiate_measurement, measure, measure_label_map


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_soft_area_equals_hard_area_on_one_hot(shape):
    label = torch.randint(0, 4, (2, 1, *shape), generator=torch.Generator().manual_seed(0))
    for structure in range(1, 4):
        hard = 100 * (label == structure).flatten(1).float().mean(1)
        torch.testing.assert_close(Area(structure)(one_hot(label, 4)), hard)


@pytest.mark.parametrize(("shape", "unit"), [((5, 7), "mm2"), ((3, 4, 5), "mm3")])
def test_area_in_millimetres_counts_pixels_times_their_size(shape, unit):
    label = torch.zeros(1, 1, *shape)
    label.flatten()[:6] = 1
    spacing = torch.tensor([[0.5, 2.0, 3.0][: len(shape)]])
    torch.testing.assert_close(Area(1, unit)(one_hot(label, 2), spacing=spacing), 6 * spacing.prod(1))


def test_area_of_soft_probabilities_is_their_mean_and_its_gradient_is_even():
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(1).requires_grad_()
    area = Area(2)(probabilities)
    torch.testing.assert_close(area, 100 * probabilities[:, 2].mean((1, 2)))
    (gradient,) = torch.autograd.grad(area.sum(), probabilities)
    torch.testing.assert_close(gradient[:, 2], torch.full((2, 6, 6), 100 / 36))
    assert gradient[:, :2].abs().max() == 0


def test_gradient_reaches_logits():
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    measure({"a": Area(1), "b": Area(2)}, logits.softmax(1)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_measure_keeps_the_order_of_the_mapping():
    label = torch.tensor([[[[1, 1, 2, 0]]]])
    values = measure_label_map({"second": Area(2), "first": Area(1)}, label, num_classes=3)
    torch.testing.assert_close(values, torch.tensor([[25.0, 50.0]]))


def test_area_refuses_unknown_unit_unknown_label_and_missing_spacing():
    probabilities = torch.full((1, 2, 4, 4), 0.5)
    with pytest.raises(ValueError, match="unit is 'cm2'"):
        Area(1, "cm2")
    with pytest.raises(ValueError, match="label 2 is asked of probabilities with 2 classes"):
        Area(2)(probabilities)
    with pytest.raises(ValueError, match=r"needs .* known pixel spacing"):
        Area(1, "mm2")(probabilities)
    with pytest.raises(ValueError, match="found 2-D"):
        Area(1, "mm3")(probabilities, spacing=torch.ones(1, 2))


def test_instantiate_builds_measurements_and_nothing_else():
    area = instantiate_measurement({"_target_": "segcft_ext.measurements.Area", "label": 3, "unit": "mm2"})
    assert isinstance(area, Area) and (area.label, area.unit) == (3, "mm2")
    for target in ("os.system", "segcft_ext.measurements.measure", "segcft_ext.nowhere.Area", "Area", ""):
        with pytest.raises(ValueError, match="expected a subclass of"):
            instantiate_measurement({"_target_": target})
    with pytest.raises(TypeError):
        instantiate_measurement({"_target_": "segcft_ext.measurements.Area", "radius": 1})
    assert issubclass(Area, Measurement)
