"""Guides let gradients through and keep their own weights; the objective asks for what it should."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from monai.networks.utils import one_hot

from segcft_ext.constraint import Lagrangian
from segcft_ext.dscm import Counterfactual
from segcft_ext.guides import GuidePrediction, RegressorGuide, SegmentorGuide
from segcft_ext.measurements import Area, RegionArea
from segcft_ext.networks.regressor import Regressor
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.objective import Asked, CFTObjective, CFTTerms, draw_interventions
from segcft_ext.variables import Variables

DEFINITIONS = [{"name": "a", "kind": "continuous"}, {"name": "b", "kind": "continuous"}]


def fitted() -> Variables:
    variables = Variables(DEFINITIONS)
    variables.fit(torch.tensor([[0.0, 0.0], [20.0, 40.0]]), ["percent", "percent"])
    return variables


def segmentor_guide() -> SegmentorGuide:
    torch.manual_seed(0)
    labels = {"background": 0, "a": 1, "b": 2}
    segmentor = Segmentor(labels, "BasicUNet", features=(8, 8, 8, 8, 8, 8))
    return SegmentorGuide(segmentor, {"a": Area(1), "b": Area(2)})


def regressor_guide() -> RegressorGuide:
    torch.manual_seed(0)
    regressor = Regressor(DEFINITIONS, channels=(8, 8))
    regressor.variables.fit(torch.tensor([[0.0, 0.0], [20.0, 40.0]]), ["percent", "percent"])
    return RegressorGuide(regressor)


@pytest.mark.parametrize("make", [segmentor_guide, regressor_guide])
def test_the_gradient_reaches_the_image_and_no_weight(make) -> None:  # type: ignore[no-untyped-def]
    guide = make()
    torch.nn.ModuleDict({"guide": guide}).train()
    image = torch.rand(2, 1, 32, 32, requires_grad=True)
    before = {name: value.clone() for name, value in guide.state_dict().items() if isinstance(value, torch.Tensor)}
    prediction = guide(image)
    prediction.values.sum().backward()
    assert prediction.values.shape == (2, 2)
    assert prediction.support.shape == (2, 2, 32, 32)
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in guide.parameters())
    assert all(torch.equal(before[name], guide.state_dict()[name]) for name in before)  # batch norm too


@pytest.mark.parametrize("make", [segmentor_guide, regressor_guide])
def test_a_guide_measures_in_full_precision(make) -> None:  # type: ignore[no-untyped-def]
    guide, image = make(), torch.rand(2, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        values = guide(image.bfloat16().float()).values
    assert torch.equal(values, guide(image.bfloat16().float()).values)


def test_a_segmentor_measures_its_own_support() -> None:
    prediction = segmentor_guide()(torch.rand(2, 1, 32, 32))
    torch.testing.assert_close(prediction.values, 100 * prediction.support.flatten(2).mean(2))


def test_a_region_does_not_move_with_the_image_when_the_factual_one_is_given() -> None:
    zones = {name: RegionArea(1, 0, *ends, of="structure") for name, ends in {"up": (0, 0.5), "down": (0.5, 1)}.items()}
    guide = SegmentorGuide(segmentor_guide().network, zones)
    image, reference = torch.rand(2, 1, 32, 32), torch.zeros(2, 3, 32, 32)
    reference[:, 0], reference[:, :2, 4:8] = 1, torch.tensor([0.0, 1.0])[:, None, None]  # four rows of the structure
    prediction = guide(image, reference=reference)
    assert prediction.support[:, 0, 6:].abs().max() == 0 and prediction.support[:, 1, :6].abs().max() == 0
    torch.testing.assert_close(prediction.values, 100 * prediction.support.flatten(2).mean(2))
    torch.testing.assert_close(prediction.values.sum(1), Area(1)(guide.see(image).softmax(1)))
    assert not torch.allclose(guide(image).values, prediction.values)
    assert prediction.log_odds is not None
    for zone, rows in enumerate((range(6), range(6, 32))):
        assert prediction.log_odds[0, zone].isfinite().all(1).nonzero()[:, 0].tolist() == list(rows)


def action(values: torch.Tensor, made: Counterfactual) -> Asked:
    return Asked.of(values, made.values, fitted(), [0, 1])


def sure_guide() -> SegmentorGuide:
    """A guide that sees the structure in pixels brighter than 1, and is sure that all others are background."""
    sure = torch.nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        sure.weight.copy_(torch.tensor([0.0, 40.0]).view(2, 1, 1, 1))
        sure.bias.copy_(torch.tensor([0.0, -40.0]))
    return SegmentorGuide(sure, {"left": RegionArea(1, 1, 0.0, 0.5), "right": RegionArea(1, 1, 0.5, 1.0)})


def test_what_is_to_be_relabelled_is_what_is_nearest_to_the_other_side_and_has_a_gradient() -> None:
    guide = sure_guide()
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2, 1:4] = torch.tensor([0.2, 0.3, 0.25])
    image[..., 5, 6] = 1.5  # right has one pixel of 100 / 64 percent
    factual, counterfactual = guide(image), image.clone().requires_grad_()
    prediction = guide(counterfactual)
    assert factual.values[0].tolist() == pytest.approx([0, 100 / 64], abs=1e-4)
    assert torch.autograd.grad(prediction.values.sum(), counterfactual, retain_graph=True)[0].abs().max() < 1e-5

    def relabelling(left: float, right: float, gained: torch.Tensor | None = None) -> torch.Tensor:
        values = factual.values + 100 / 64 * torch.tensor([[left, right]])
        wanted = Counterfactual(counterfactual, values, gained=gained)
        reference = one_hot((image > 1).float(), num_classes=2)
        return CFTObjective()(image, reference, wanted, action(factual.values, wanted), factual, prediction).relabelling

    def relabelled(left: float, right: float, gained: torch.Tensor | None = None) -> list[tuple[int, int, float]]:
        gradient = torch.autograd.grad(relabelling(left, right, gained), counterfactual, retain_graph=True)[0][0, 0]
        return [(r, c, gradient[r, c].sign().item()) for r, c in gradient.nonzero().tolist()]

    assert relabelled(2, 0) == [(2, 2, -1), (2, 3, -1)]  # two brightest of the left half become brighter
    assert relabelled(1.4, 0) == [(2, 2, -1)] and relabelled(1.6, 0) == relabelled(2, 0)  # whole pixels
    assert relabelled(0, -1) == [(5, 6, 1)]
    assert relabelled(-3, 0) == []  # nothing is there to be taken away
    assert len(relabelled(99, 0)) == 32 and relabelling(99, 0).isfinite()  # there is no more room
    # One pixel with log-odds of -28, in scaled units of a range of 20.
    assert relabelling(1, 0).item() == pytest.approx(28 * 100 / 64 * 2 / 20, rel=1e-4)
    # A head that knows which two pixels of the left half it lets appear is asked for these; for its losses as before.
    gained = torch.zeros(1, 2, 8, 8)
    gained[0, 0, 6, :2], gained[0, 1, 5, 6] = 1, -1
    assert relabelled(2, 0, gained) == [(6, 0, -1), (6, 1, -1)]
    assert relabelling(2, 0, gained).item() == pytest.approx(2 * 40 * 100 / 64 * 2 / 20, rel=1e-4)
    assert relabelled(0, -1, gained) == relabelled(0, -1)


def test_what_has_changed_sides_already_is_not_asked_for_again() -> None:
    guide, image = sure_guide(), torch.zeros(1, 1, 8, 8)
    image[..., 2, 1:4] = torch.tensor([0.2, 0.3, 0.25])
    halfway = image.clone()
    halfway[..., 2, 2] = 1.5  # one of the two pixels that are to appear
    halfway.requires_grad_()
    factual, prediction = guide(image), guide(halfway)
    wanted = Counterfactual(halfway, factual.values + 100 / 64 * torch.tensor([[2.0, 0.0]]))
    reference = one_hot((image > 1).float(), num_classes=2)
    found = CFTObjective()(image, reference, wanted, action(factual.values, wanted), factual, prediction)
    gradient = torch.autograd.grad(found.relabelling, halfway)[0][0, 0]
    assert gradient.nonzero().tolist() == [[2, 3]]


def test_a_guide_of_some_variables_counts_in_their_units_and_is_told_what_is_painted_of_them() -> None:
    variables = Variables([{"name": name, "kind": "continuous"} for name in "abc"])
    variables.fit(torch.tensor([[0.0, 0.0, 0.0], [1.0, 20.0, 40.0]]), ["percent"] * 3)
    values, wanted = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 200 / 64]])
    asked = Asked.of(values, wanted, variables, [2, 1])
    assert asked.changed.tolist() == [[True, False]] and asked.kept.tolist() == [[False, True]]
    torch.testing.assert_close(asked.scale, torch.tensor([2 / 40, 2 / 20]))
    guide, image, gained = sure_guide(), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8)
    gained[0, 0, 0, :4], gained[0, 2, 6, :2] = 1, 1
    made = Counterfactual(image, wanted, gained=gained)
    found = CFTObjective()(image, one_hot(image, num_classes=2), made, asked, guide(image), guide(image))
    # Two pixels with log-odds of -40 each.
    assert found.relabelling.item() == pytest.approx(2 * 40 * 100 / 64 * 2 / 40, rel=1e-4)


def test_a_regressor_counts_no_pixels() -> None:
    assert regressor_guide()(torch.rand(2, 1, 32, 32)).log_odds is None
    assert terms(CFTObjective(), [11.0, 10.0]).relabelling == 0


def test_the_head_is_taught_to_see_the_label_map() -> None:
    image, values, asked, factual = scene()
    reference = torch.zeros(1, 2, 64, 64)
    reference[:, 0, 32:], reference[:, 1, :32] = 1, 1

    def loss(anatomy: torch.Tensor, reference: torch.Tensor = reference) -> torch.Tensor:
        seeing = replace(asked, anatomy=anatomy)
        return CFTObjective()(image, reference, seeing, action(values, seeing), factual, factual).anatomy

    right = 40 * (reference[..., ::2, ::2] - 0.5)
    assert loss(right) < 1e-3 and loss(-right) > 1
    stripes = one_hot((torch.arange(64.0) % 2).view(1, 1, 64, 1).expand(1, 1, 64, 64), num_classes=2)
    doubtful, sure = torch.zeros_like(right), torch.tensor([20.0, -20.0]).view(1, 2, 1, 1).expand_as(right)
    assert loss(doubtful, stripes) < min(loss(sure, stripes), loss(-sure, stripes))  # half of each pixel is of either
    assert terms(CFTObjective(), [13.0, 10.0]).anatomy == 0


def test_interventions_come_from_the_training_marginal_one_for_each_case() -> None:
    torch.manual_seed(0)
    values = torch.rand(600, 3)
    values[5, 2] = torch.nan
    many_zeros = (torch.arange(101) - 50).clamp(min=0) / 50
    quantiles = torch.stack([torch.linspace(5, 6, 101), torch.full((101,), torch.nan), many_zeros])
    targets, mask = draw_interventions(values, [0, 2], quantiles)
    assert (mask.sum(1) == 1).all() and not mask[:, 1].any() and mask[:, 0].any() and mask[:, 2].any()
    assert torch.equal(targets[~mask].nan_to_num(-1), values[~mask].nan_to_num(-1))
    first, last = targets[mask[:, 0], 0], targets[mask[:, 2], 2]
    assert 5 <= first.min() < 5.05 and 5.95 < first.max() <= 6 and first.mean() == pytest.approx(5.5, abs=0.05)
    assert (last == 0).float().mean() == pytest.approx(0.5, abs=0.08)
    absent = values.clone()
    absent[:, 2] = 0
    targets, _ = draw_interventions(absent, [2], quantiles)
    assert 0 < targets[:, 2].min() < 0.02 and targets[:, 2].mean() == pytest.approx(0.5, abs=0.05)


def test_what_is_missing_is_not_intervened_on() -> None:
    torch.manual_seed(0)
    values = torch.rand(600, 3)
    values[:200, 1], values[200:400, :2], values[400:] = torch.nan, torch.nan, torch.nan
    _, mask = draw_interventions(values, [0, 1, 2], torch.linspace(0, 1, 11).expand(3, 11))
    assert (mask.sum(1) == 1).all() and not mask[:200, 1].any() and mask[200:400, 2].all()
    assert mask[:200, 0].float().mean() == pytest.approx(0.5, abs=0.1)


def scene() -> tuple[torch.Tensor, torch.Tensor, Counterfactual, GuidePrediction]:
    """Structure a lives in the left half, b in the right; the action is on a."""
    image, values = torch.zeros(1, 1, 64, 64), torch.tensor([[8.0, 10.0]])
    support = torch.zeros(1, 2, 64, 64)
    support[:, 0, :, :24], support[:, 1, :, 40:] = 1, 1
    counterfactual = Counterfactual(image.clone(), torch.tensor([[12.0, 10.0]]))
    return image, values, counterfactual, GuidePrediction(torch.tensor([[9.0, 10.0]]), support)


REFERENCE = one_hot(torch.zeros(1, 1, 64, 64), num_classes=2)


def terms(objective: CFTObjective, predicted: list[float], counterfactual: Counterfactual | None = None):  # type: ignore[no-untyped-def]
    image, values, asked, factual = scene()
    prediction = GuidePrediction(torch.tensor([predicted]), factual.support)
    made = counterfactual or asked
    return objective(image, REFERENCE, made, action(values, made), factual, prediction)


def test_an_action_on_a_missing_value_asks_for_nothing() -> None:
    image, values, counterfactual, factual = scene()
    changed = replace(counterfactual, image=image + 0.1)
    known, unknown = (action(before, changed) for before in (values, torch.tensor([[torch.nan, 10.0]])))
    assert CFTObjective()(image, REFERENCE, changed, known, factual, factual).locality > 0
    missing = CFTObjective()(image, REFERENCE, changed, unknown, factual, factual)
    assert missing.effectiveness == 0 and missing.locality == 0


def test_the_anchored_target_carries_the_guides_error_on_the_factual_image() -> None:
    assert terms(CFTObjective(), [13.0, 10.0]).effectiveness == 0
    assert terms(CFTObjective(anchored=False), [12.0, 10.0]).effectiveness == 0
    assert terms(CFTObjective(), [12.0, 10.0]).effectiveness > 0


def test_what_is_to_vanish_is_to_vanish_for_the_guide_too() -> None:
    nothing = Counterfactual(scene()[0], torch.tensor([[0.0, 10.0]]))
    assert terms(CFTObjective(), [0.0, 10.0], nothing).effectiveness == 0  # the guide saw 9 where 8 were
    assert terms(CFTObjective(), [1.0, 10.0], nothing).effectiveness > 0

    guide, image = sure_guide(), torch.zeros(1, 1, 8, 8)
    image[..., 2, 1:4] = 1.5  # three pixels, of which one is in the label map
    prediction = guide(image.clone().requires_grad_())
    values = torch.tensor([[100 / 64, 0.0]])
    wanted = Counterfactual(image, torch.zeros(1, 2))
    reference = one_hot((image > 1).float(), num_classes=2)
    found = CFTObjective()(image, reference, wanted, action(values, wanted), guide(image), prediction)
    # Three pixels with log-odds of 20 each, in scaled units of a range of 20.
    assert found.relabelling.item() == pytest.approx(3 * 20 * 100 / 64 * 2 / 20, rel=1e-4)


def test_a_missing_value_asks_for_nothing() -> None:
    image, values, asked, factual = scene()
    prediction = GuidePrediction(torch.tensor([[13.0, 99.0]], requires_grad=True), factual.support)
    values[0, 1] = asked.values[0, 1] = torch.nan
    found = CFTObjective()(image, REFERENCE, asked, action(values, asked), factual, prediction)
    assert found.effectiveness == 0 and found.others == 0 and found.preservation == 0
    total = CFTObjective().total(found)
    assert total.isfinite() and torch.autograd.grad(total, prediction.values)[0].isfinite().all()


def test_where_a_missing_value_grows_has_no_gradient() -> None:
    image, values, asked, factual = scene()
    values[0, 1] = asked.values[0, 1] = torch.nan
    growing = Asked.of(values, asked.values, fitted(), [0, 1], torch.ones(2, 64, 64))
    before = replace(factual, pixel=torch.full((1, 2), 0.1))
    after = replace(before, support=factual.support.clone().requires_grad_())
    found = CFTObjective()(image, REFERENCE, asked, growing, before, after)
    (gradient,) = torch.autograd.grad(found.growth, after.support)
    assert gradient.isfinite().all() and gradient[:, 0].all() and not gradient[:, 1].any()


def test_what_is_absent_and_stays_absent_may_look_as_it_did() -> None:
    image, _, _, factual = scene()
    values, made = torch.tensor([[8.0, 0.0]]), Counterfactual(image, torch.tensor([[12.0, 0.0]]))
    before, after = (replace(factual, values=torch.tensor([[a, 1.5]])) for a in (9.0, 13.0))
    found = CFTObjective()(image, REFERENCE, made, action(values, made), before, after)
    assert found.effectiveness == 0 and found.others == 0


def test_a_batch_costs_the_mean_of_its_cases_however_many_variables_each_changes() -> None:
    image, _, _, factual = scene()
    values = torch.tensor([[8.0, 10.0], [8.0, 10.0], [8.0, 10.0]])
    wanted = torch.tensor([[12.0, 10.0], [12.0, 14.0], [8.0, 10.0]])
    seen = torch.tensor([[13.0, 11.0], [14.0, 10.0], [9.0, 16.0]])

    def cost(rows: list[int]) -> torch.Tensor:
        before, after = (
            GuidePrediction(v, factual.support.expand(len(rows), -1, -1, -1)) for v in (factual.values, seen[rows])
        )
        images = image.expand(len(rows), -1, -1, -1)
        made = Counterfactual(images, wanted[rows])
        found = CFTObjective()(images, REFERENCE, made, action(values[rows], made), before, after)
        return torch.stack([found.effectiveness, found.others])

    alone = torch.stack([cost([row]) for row in range(3)])
    assert (alone.std(0) > 0).all()
    torch.testing.assert_close(cost([0, 1, 2]), alone.mean(0))


def test_the_total_weighs_each_term_by_its_own_weight() -> None:
    names = [field.name for field in fields(CFTTerms)]
    weights = {name: 2.0**position for position, name in enumerate(names) if name != "effectiveness"}
    objective = CFTObjective(warm_up=0, **weights)
    for name in names:
        one = CFTTerms(**{other: torch.tensor(float(other == name)) for other in names})
        assert objective.total(one) == weights.get(name, 1)


def test_paint_costs_its_mean_absolute_intensity() -> None:
    image, _, asked, _ = scene()
    paint = torch.zeros_like(image)
    paint[..., :16], paint[..., 16:32] = 0.5, -0.25
    assert terms(CFTObjective(), [13.0, 10.0], replace(asked, paint=paint)).paint == pytest.approx(0.75 / 4)


def test_an_edit_is_to_change_no_more_than_it_needs() -> None:
    image, _, asked, _ = scene()
    changed = image.clone()
    changed[..., :24] = 0.5
    found = terms(CFTObjective(), [13.0, 10.0], Counterfactual(changed, asked.values))
    assert found.minimality == pytest.approx(0.5**2 * 24 / 64)
    assert CFTObjective(minimality=2).total(found) - CFTObjective().total(found) == pytest.approx(2 * found.minimality)


def test_intensities_and_contrasts_that_no_neighbour_has_cost_their_excess() -> None:
    image, values, asked, factual = scene()
    image[..., :32], image[..., 32:] = -0.5, 0.5  # within 4 pixels of the middle both are at hand
    changed = image.clone()
    changed[..., 28:32] = 0.5  # a border that moves
    made = Counterfactual(changed, asked.values)
    assert CFTObjective()(image, REFERENCE, made, action(values, made), factual, factual).overshoot == 0

    changed[..., 0], changed[..., -2:] = -0.9, 0.8  # darker and brighter than all nearby
    changed[..., 8] = 0.5  # bright, but not near the bright half
    changed[..., 33:36:2] = -0.5  # dots of an intensity that is at hand
    found = CFTObjective()(image, REFERENCE, made, action(values, made), factual, factual)
    before, after = image[0, 0, 0].tolist(), changed[0, 0, 0].tolist()
    assert excess(before, after) == pytest.approx(0.4**2 + 2 * 0.3**2 + 1.0**2)
    contrasts = [
        [value - np.mean(row[max(0, k - 1) : k + 2]) for k, value in enumerate(row)] for row in (before, after)
    ]
    contrast = excess(*contrasts)
    assert contrast > 0.5
    assert found.overshoot == pytest.approx((excess(before, after) + 10 * contrast) / 64)
    assert CFTObjective(overshoot=3).total(found) - CFTObjective().total(found) == pytest.approx(3 * found.overshoot)


def excess(before: Sequence[float], after: Sequence[float]) -> float:
    """Squared excess over all that is within 4 pixels, sum over a row."""
    total = 0.0
    for k, value in enumerate(after):
        near = before[max(0, k - 4) : k + 5]
        total += max(0.0, value - max(near), min(near) - value) ** 2
    return total


def test_what_a_movement_costs_does_not_depend_on_the_resolution() -> None:
    image, _, asked, _ = scene()

    def smoothness(*grid: int) -> float:
        axes = [torch.arange(size) / min(grid) for size in grid]
        wave = torch.sin(2 * torch.pi * (axes[0][:, None] + axes[1]))
        velocity = min(grid) * torch.stack([wave, -wave])[None]  # in grid pixels
        moved = Counterfactual(image, asked.values, torch.zeros(1, 2, 64, 64), velocity)
        return float(terms(CFTObjective(), [13.0, 10.0], moved).smoothness)

    # Of sin(2 pi (x + y)) the mean of (f_xx² + 2 f_xy² + f_yy²) is 4 (2 pi)⁴ / 2, here of either of two components.
    assert smoothness(256, 256) == pytest.approx(2 * (2 * math.pi) ** 4, rel=0.01)
    assert smoothness(128, 64) == pytest.approx(smoothness(256, 256), rel=0.02)


def test_an_edit_that_moves_another_variable_is_punished() -> None:
    objective = CFTObjective(others=2.0)
    moved = terms(objective, [13.0, 12.0])
    assert moved.effectiveness == 0
    assert moved.others == pytest.approx(2 * 2 / 40 - 0.01 / 2)  # of b, whose range is 40; the Huber loss begins round
    assert objective.total(moved) == pytest.approx(2 * moved.others.item())


def test_an_edit_is_found_before_it_is_confined() -> None:
    objective = CFTObjective(warm_up=0.5)
    found = replace(terms(objective, [12.0, 12.0]), paint=torch.tensor(0.01))
    weights = [(objective.total(found, progress) - found.effectiveness).item() for progress in (0, 0.25, 0.5, 1)]
    assert weights == pytest.approx([weights[-1] / 20, weights[-1] / 2, weights[-1], weights[-1]]) and weights[-1] > 0


def test_change_is_free_inside_the_changed_structure_and_costs_outside() -> None:
    image, _, asked, _ = scene()
    inside, outside = image.clone(), image.clone()
    inside[..., :24], outside[..., 40:] = 0.5, 0.5
    free = terms(CFTObjective(), [13.0, 10.0], Counterfactual(inside, asked.values)).locality
    cost = terms(CFTObjective(), [13.0, 10.0], Counterfactual(outside, asked.values)).locality
    assert free == 0
    assert cost == pytest.approx(0.5 * (24 / 64) / (24 / 64))  # over the size of a


def test_change_elsewhere_is_divided_by_the_mean_size_in_the_batch() -> None:
    image, support = torch.zeros(2, 1, 64, 64), torch.zeros(2, 2, 64, 64)
    support[0, 0, :, :24], support[1, 0, :, :8] = 1, 1
    changed = image.clone()
    changed[0, ..., 40:] = 0.5
    made = Counterfactual(changed, torch.tensor([[12.0, 10.0]] * 2))
    seen = GuidePrediction(torch.tensor([[9.0, 10.0]] * 2), support)
    found = CFTObjective()(image, REFERENCE, made, action(torch.tensor([[8.0, 10.0]] * 2), made), seen, seen)
    assert found.locality == pytest.approx(0.5 * (24 / 64) / (16 / 64) / 2)


def test_no_structure_grows_to_make_a_change_local() -> None:
    image, values, asked, factual = scene()
    after = replace(factual, support=factual.support.clone().requires_grad_())
    changed = replace(asked, image=(image + 0.1).requires_grad_())
    found = CFTObjective()(image, REFERENCE, changed, action(values, changed), factual, after).locality
    gradients = torch.autograd.grad(found, [changed.image, after.support], allow_unused=True)
    assert gradients[0].any() and gradients[1] is None


@pytest.mark.parametrize(("rows", "size", "radius"), [(64, 64, 1), (128, 128, 2), (256, 256, 5), (32, 256, 5)])
def test_the_structure_is_wider_by_five_pixels_at_256_before_and_after(rows: int, size: int, radius: int) -> None:
    """What may change: the columns of a before or after and a few pixels more, relative to how much of a there is."""
    image, values = torch.zeros(1, 1, rows, size), torch.tensor([[8.0, 10.0]])
    before, after = torch.zeros(2, 1, 2, rows, size)
    before[:, 0, :, : size // 4], before[:, 1, :, size // 2 :] = 1, 1
    after[:, 0, :, size // 16 : size * 5 // 16] = 1
    predictions = [GuidePrediction(torch.tensor([[9.0, 10.0]]), mask) for mask in (before, after)]

    def locality(column: int) -> float:
        changed = image.clone()
        changed[..., column] = 0.5
        wanted = Counterfactual(changed, torch.tensor([[12.0, 10.0]]))
        return float(CFTObjective()(image, REFERENCE, wanted, action(values, wanted), *predictions).locality)

    last = size * 5 // 16 - 1
    assert locality(0) == locality(last) == locality(last + radius) == 0
    assert locality(last + radius + 1) == pytest.approx(0.5 / size / 0.25)  # a quarter of the image is a
    before[:, 0, :, 2:] = 0
    assert locality(size - 1) == pytest.approx(0.5 / size / 0.1)  # as if it were a tenth


def test_folds_cost_and_small_movements_do_not() -> None:
    image, _, asked, _ = scene()
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    velocity = torch.zeros(1, 2, 16, 16)

    def folding(slope: float) -> torch.Tensor:
        displacement = torch.cat([torch.zeros_like(ramp), slope * 31.5 * ramp], dim=1)
        moved = Counterfactual(image, asked.values, displacement, velocity)
        return terms(CFTObjective(), [13.0, 10.0], moved).folding

    assert folding(0.5) == 0 and folding(-0.75) == 0
    assert folding(-1.2) == pytest.approx(0.4**2, rel=1e-4)  # the determinant is 1 - 1.2


def test_the_multiplier_rises_while_the_constraint_is_broken_and_never_falls_below_zero() -> None:
    lagrangian = Lagrangian(initial=0.05, learning_rate=0.1, slack=0.5)
    assert not lagrangian.bounded
    lagrangian.set_bound(1.0)
    lagrangian.ascend(torch.tensor(2.5))
    assert lagrangian.multiplier.item() == pytest.approx(0.15)
    for _ in range(3):
        lagrangian.ascend(torch.tensor(0.0))
    assert lagrangian.multiplier.item() == 0


def test_the_penalty_is_the_damped_lagrangian() -> None:
    lagrangian = Lagrangian(initial=2.0, damping=10.0, slack=0.0)
    lagrangian.set_bound(1.0)
    negative_elbo = torch.tensor(1.5, requires_grad=True)
    penalty = lagrangian.penalty(negative_elbo)
    penalty.backward()
    assert penalty.item() == pytest.approx((2 + 10 * 0.5) * 0.5)
    assert negative_elbo.grad is not None and negative_elbo.grad.item() == pytest.approx(7.0)


def test_a_mask_that_moves_costs_even_when_its_area_does_not_change() -> None:
    image, values, asked, factual = scene()
    aside = factual.support.clone()
    aside[:, 1] = factual.support[:, 1].roll(-4, dims=-1)  # b is pushed aside, as large as it was
    pixel = torch.tensor([[0.0, 0.1]])
    prediction = GuidePrediction(torch.tensor([[13.0, 10.0]]), aside, pixel=pixel)
    found = CFTObjective()(image, REFERENCE, asked, action(values, asked), factual, prediction)
    # 4 columns of 64 pixels are lost and 4 gained, each pixel 0.1, in scaled units of 2 / 40.
    assert found.effectiveness == 0
    assert found.preservation == pytest.approx(8 * 64 * 0.1 * 2 / 40)
    unmoved = replace(prediction, support=factual.support)
    still = CFTObjective()(image, REFERENCE, asked, action(values, asked), factual, unmoved)
    assert still.preservation == 0
