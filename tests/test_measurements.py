import re
from pathlib import Path

import pytest
import torch
from monai.networks.utils import one_hot
from small_chests import small_chests

from segcft_ext.checkpoints import save_model
from segcft_ext.datalist import read_datalist
from segcft_ext.guides import load_guide
from segcft_ext.measurements import Area, Measurement, RegionArea, instantiate_measurement, measure, measure_label_map
from segcft_ext.networks.segmentor import Segmentor


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


def test_log_odds_are_of_the_probability_that_a_pixel_counts_even_where_it_is_all_but_certain():
    logits = 3 * torch.randn(1, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    band = RegionArea(2, 0, 0.0, 0.5)
    log_odds = band.log_odds(logits)
    torch.testing.assert_close(log_odds[:, 0, :3], torch.logit(logits.softmax(1)[:, 2, :3]))
    assert (log_odds[:, 0, 3:] == -torch.inf).all()
    certain = torch.tensor([80.0, 0.0]).view(1, 2, 1, 1)  # the probability rounds to 1
    assert Area(0).log_odds(certain).item() == 80 and Area(1).log_odds(certain).item() == -80


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


LUNGS = torch.zeros(1, 1, 12, 6, dtype=torch.long)
LUNGS[..., 2:11, 1:3] = 1  # 9 rows of 2 pixels: thirds of 3 rows
LUNGS[..., 0:5, 4] = 2
THIRDS = [0, 1 / 3, 2 / 3, 1]


def thirds(label: int, of: str, axis: int = 0, unit: str = "percent", boundaries=THIRDS) -> dict[str, RegionArea]:
    return {f"{i}": RegionArea(label, axis, *boundaries[i : i + 2], of=of, unit=unit) for i in range(3)}


def test_zones_are_those_of_the_structure_and_bands_those_of_the_image():
    share = 100 / LUNGS.numel()
    zones = measure_label_map(thirds(1, "structure"), LUNGS, 3)
    torch.testing.assert_close(zones, torch.tensor([[6.0, 6.0, 6.0]]) * share)
    bands = measure_label_map(thirds(1, "image"), LUNGS, 3)
    torch.testing.assert_close(bands, torch.tensor([[4.0, 8.0, 6.0]]) * share)
    across = measure_label_map(thirds(1, "image", axis=1), LUNGS, 3)
    torch.testing.assert_close(across, torch.tensor([[9.0, 9.0, 0.0]]) * share)


def test_a_pixel_on_a_boundary_belongs_to_both_regions_by_its_share():
    label = torch.ones(1, 1, 10, 6, dtype=torch.long)
    bands = thirds(1, "image")
    torch.testing.assert_close(measure_label_map(bands, label, 2), torch.full((1, 3), 100 / 3))
    rows = [band.support(one_hot(label, 2))[0, 0, :, 0] for band in bands.values()]
    torch.testing.assert_close(rows[0], torch.tensor([1, 1, 1, 1 / 3, 0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(rows[1], torch.tensor([0, 0, 0, 2 / 3, 1, 1, 2 / 3, 0, 0, 0]))
    # Where pixels are counted, it is one of the region that has more of it.
    counted = [band.log_odds(9 * one_hot(label, 2))[0, 0, :, 0].isfinite().sum().item() for band in bands.values()]
    assert counted == [3, 4, 3]


@pytest.mark.parametrize("of", ["image", "structure"])
def test_without_a_reference_log_odds_count_where_the_area_does(of):
    logits = 9 * one_hot(LUNGS, 3)
    for zone in thirds(1, of).values():
        counted = zone.log_odds(logits).isfinite()
        assert torch.equal(counted, zone.support(torch.ones_like(logits), logits) >= 0.5) and not counted.all()


@pytest.mark.parametrize("of", ["image", "structure"])
@pytest.mark.parametrize(("shape", "unit", "axis"), [((11, 7), "mm2", 0), ((6, 4, 13), "mm3", 2)])
def test_regions_add_up_to_the_whole_soft_or_hard_in_any_unit(of, shape, unit, axis):
    generator = torch.Generator().manual_seed(0)
    soft = torch.randn(2, 3, *shape, generator=generator).mul(3).softmax(1)
    spacing = torch.rand(2, len(shape), generator=generator) + 0.1
    reference = torch.randn(2, 3, *shape, generator=generator).softmax(1)
    for probabilities in (soft, one_hot(soft.argmax(1, keepdim=True), 3)):
        parts = thirds(1, of, axis, unit, [0, 0.21, 0.77, 1])
        values = measure(parts, probabilities, spacing=spacing, reference=reference)
        torch.testing.assert_close(values.sum(1), Area(1, unit)(probabilities, spacing=spacing))
        supports = sum(part.support(probabilities, reference) for part in parts.values())
        torch.testing.assert_close(supports, Area(1).support(probabilities))


def test_a_zone_stays_where_the_factual_structure_was_and_its_ends_are_open():
    grown = LUNGS.clone()
    grown[..., 0:12, 1:3] = 1  # two rows more above, one below
    values = measure_label_map(thirds(1, "structure"), grown, 3, reference=LUNGS)
    torch.testing.assert_close(values, torch.tensor([[10.0, 6.0, 8.0]]) * 100 / LUNGS.numel())
    moved = measure_label_map(thirds(1, "structure"), grown, 3)
    torch.testing.assert_close(moved, torch.full((1, 3), 8 * 100 / LUNGS.numel()))


def test_a_stray_pixel_moves_no_zone_and_an_absent_structure_has_those_of_the_image():
    label = torch.zeros(1, 1, 60, 40, dtype=torch.long)
    label[..., 20:50, 5:35] = 1
    clean = measure_label_map(thirds(1, "structure"), label, 2)
    label[..., 0, 0] = 1
    stray = measure_label_map(thirds(1, "structure"), label, 2)
    torch.testing.assert_close(stray - clean, torch.tensor([[100 / label.numel(), 0, 0]]), atol=1e-5, rtol=0)
    label[..., 0, :10] = 1  # one percent of it is no stray pixel: the zones are those of rows 0 to 50
    tip = measure_label_map(thirds(1, "structure"), label, 2)
    torch.testing.assert_close(tip, torch.tensor([[10.0, 400.0, 500.0]]) * 100 / label.numel())
    absent, present = torch.zeros_like(LUNGS), torch.ones_like(LUNGS)
    values = measure_label_map(thirds(1, "structure"), present, 2, reference=absent)
    torch.testing.assert_close(values, measure_label_map(thirds(1, "image"), present, 2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_structure_of_a_volume_has_its_zones_along_any_axis(axis):
    label = torch.zeros(1, 1, 12, 5, 7, dtype=torch.long)
    label[..., 2:11, 1:3, 2:4] = 1
    label[..., 2, 1:4, 2:7] = 1
    expected = measure_label_map(thirds(1, "structure"), label, 2)
    found = measure_label_map(thirds(1, "structure", axis), label.movedim(2, 2 + axis), 2)
    torch.testing.assert_close(found, expected)
    assert len(expected.unique()) > 1


def test_no_gradient_leaves_the_region():
    probabilities = torch.full((1, 2, 9, 5), 0.5, requires_grad=True)
    RegionArea(1, 0, 1 / 3, 2 / 3)(probabilities).sum().backward()
    rows = probabilities.grad[0, 1].sum(1)
    assert rows[3:6].min() > 0 and rows[:3].abs().sum() + rows[6:].abs().sum() == pytest.approx(0, abs=1e-5)


def test_region_refuses_what_is_no_band():
    for arguments, message in [
        ((1, 0, 0.5, 0.5), "low < high"),
        ((1, 0, -0.1, 0.5), "0 <= low"),
        ((1, 0, 0.0, 0.5, "lung"), "of is 'lung'"),
        ((1, 0, 0.0, 0.5, "image", "cm2"), "RegionArea: unit is 'cm2'"),
    ]:
        with pytest.raises(ValueError, match=message):
            RegionArea(*arguments)
    with pytest.raises(ValueError, match="axis is 2, expected one of 0 … 1"):
        RegionArea(1, 2, 0, 0.5)(torch.full((1, 2, 4, 4), 0.5))


def test_a_measurement_of_ones_own_guides_as_the_docs_say(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "data_prep.md").read_text(encoding="utf-8")
    measurement, measuring = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    small_chests(tmp_path / "prepared")
    (tmp_path / "heart_share.py").write_text(measurement)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(measuring, {})
    datalist = read_datalist("prepared/datalist_share.json")
    for entry in datalist.entries["test"]:
        areas = {name: entry["variables"][f"{name}_area"] for name in datalist.structures}
        expected = areas["heart"] / (areas["left_lung"] + areas["right_lung"])
        assert entry["variables"]["heart_share"] == pytest.approx(expected)
    segmentor = Segmentor(datalist.labels, "UNet", channels=(4, 4), strides=(2,))
    segmentor.describe(datalist, "guide")
    save_model(segmentor, "model.pt")
    guide = load_guide("model.pt", datalist, "cpu")
    image = torch.zeros(2, 1, *datalist.size, requires_grad=True)
    seen = guide(image).values[:, guide.names.index("heart_share")]
    (gradient,) = torch.autograd.grad(seen.sum(), image)
    assert seen.shape == (2,) and gradient.abs().sum() > 0
