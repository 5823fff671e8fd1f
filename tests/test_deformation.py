"""Properties of the deformation head."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from segcft_ext.networks.coordinates import coordinates, positional_encoding
from segcft_ext.networks.deformation import DeformationHead, Sizes
from segcft_ext.networks.folding import jacobian_determinant, unfolded
from segcft_ext.networks.pooling import max_near, mean_near


def moving_head(spatial_dims: int = 2, **arguments: Any) -> DeformationHead:
    torch.manual_seed(0)
    head = DeformationHead(
        2, spatial_dims=spatial_dims, channels=(8, 8, 8), hidden_channels=8, frequencies=2, **arguments
    )
    torch.nn.init.normal_(head.velocity_head.weight, std=0.1)
    return head


def start_painting(head: DeformationHead) -> None:
    for paint in (head.appear_head, head.vanish_head):
        torch.nn.init.normal_(paint.weight, std=0.1)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (16, 12, 20)])
def test_no_action_no_velocity_and_an_exact_copy(size: tuple[int, ...]) -> None:
    head = moving_head(len(size))
    image, parents = torch.rand(2, 1, *size) * 2 - 1, torch.randn(2, 2)
    velocity = head(head.features(image), parents, parents).velocity
    displacement = head.displacement(velocity, size)
    assert displacement.shape == (2, len(size), *size)
    assert torch.equal(velocity, torch.zeros_like(velocity))
    assert torch.equal(head.warp(image, displacement), image)


def test_a_fresh_head_does_not_move_anything() -> None:
    head = DeformationHead(2, channels=(8, 8))
    velocity = head(head.features(torch.rand(2, 1, 16, 16)), torch.zeros(2, 2), torch.ones(2, 2)).velocity
    assert torch.equal(velocity, torch.zeros_like(velocity))


def test_a_fresh_head_can_learn() -> None:
    head = DeformationHead(2, channels=(8, 8))
    image = torch.rand(2, 1, 16, 16)
    velocity = head(head.features(image), torch.zeros(2, 2), torch.ones(2, 2)).velocity
    head.warp(image, head.displacement(velocity, (16, 16))).square().sum().backward()
    gradient = head.velocity_head.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_the_border_stays_where_it_is() -> None:
    head = moving_head()
    image = torch.rand(1, 1, 32, 32)
    displacement = head.displacement(head(head.features(image), torch.zeros(1, 2), torch.ones(1, 2)).velocity, (32, 32))
    assert displacement.abs().max() > 0.01
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert displacement[..., border].abs().max() < 1e-4


@pytest.mark.parametrize("dims", [2, 3])
def test_where_anatomy_goes_on_it_moves_along_the_border_but_not_across_it(dims: int) -> None:
    head = DeformationHead(1, dims, channels=(8, 8), grid_stage=1, slip=[0])
    size = (32, *[16] * (dims - 1))
    displacement = head.displacement(
        head._velocity(torch.ones(1, 1, dims, *[s // 2 for s in size]), torch.ones(1, 1)), size
    )
    across, along = displacement[0, 0], displacement[0, 1]
    assert across[0].abs().max() < 1e-4 and across[-1].abs().max() < 1e-4
    middle = (slice(None), *[8] * (dims - 1))
    assert (along[middle] > 0.5 * along[middle].max()).all()
    assert along[:, 0].abs().max() < 1e-4 and along[:, -1].abs().max() < 1e-4


def test_slip_is_along_axes_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"slip is \[2\], expected axes from 0 to 1"):
        DeformationHead(1, slip=[2])


def test_the_opposite_velocity_brings_every_pixel_back() -> None:
    head = moving_head()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    bump = torch.exp(-4 * (x**2 + y**2))
    velocity = torch.stack([3 * bump, -2 * bump])[None]
    there, back = (head.displacement(v, (64, 64)) for v in (velocity, -velocity))
    round_trip = there + head.resample(back, there)
    assert there.abs().max() > 3
    assert round_trip.abs().max() < 0.15
    assert (jacobian_determinant(there) > 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_exponential_of_a_linear_field_is_that_of_its_matrix(dims: int) -> None:
    torch.manual_seed(0)
    matrix, length = 0.15 * torch.randn(dims, dims), 33
    grid = torch.stack(torch.meshgrid(*[torch.arange(length) - 16.0] * dims, indexing="ij"))
    middle = (slice(None), slice(None), *[slice(10, 23)] * dims)  # where nothing comes from beyond the image
    velocity = torch.einsum("ij,j...->i...", matrix, grid)[None]
    found = DeformationHead(1, dims, channels=(8, 8)).integrate(velocity)
    expected = torch.einsum("ij,j...->i...", torch.matrix_exp(matrix) - torch.eye(dims), grid)[None]
    torch.testing.assert_close(found[middle], expected[middle], atol=0.01, rtol=0)
    determinant = jacobian_determinant(found)[0][middle[2:]]
    torch.testing.assert_close(determinant, torch.matrix_exp(matrix).det().expand_as(determinant), atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (32, 16, 24)])
def test_displacements_are_in_pixels_of_the_image_and_say_where_a_pixel_comes_from(size: tuple[int, ...]) -> None:
    head = DeformationHead(1, len(size), channels=(8, 8))
    grid = [length // 4 for length in size]
    asked = torch.tensor([1.5, -0.5, 1.0])[: len(size)]
    velocity = asked.view(-1, *[1] * len(size)).expand(1, len(size), *grid)
    displacement = head.displacement(velocity, size)
    # The corners of grid and image lie upon each other.
    expected = asked * torch.tensor([(s - 1) / (g - 1) for s, g in zip(size, grid)])
    torch.testing.assert_close(displacement[(0, slice(None), *[length // 2 for length in size])], expected)

    image = torch.zeros(1, 1, *size)
    image[(0, 0, *[8] * len(size))] = 1
    shift = torch.tensor([2.0, -3.0, 1.0])[: len(size)].view(-1, *[1] * len(size)).expand(1, len(size), *size)
    assert (head.warp(image, shift)[0, 0] == 1).nonzero().tolist() == [[6, 11, 7][: len(size)]]
    shift = shift * torch.eye(len(size))[0].view(-1, *[1] * len(size))  # along one axis only
    assert (head.warp(image, shift)[0, 0] == 1).nonzero().tolist() == [[6, 8, 8][: len(size)]]


def test_the_velocity_is_whole_where_the_margin_ends() -> None:
    window = DeformationHead(1, channels=(8, 8), margin=0.06)._window(torch.zeros(1, 2, 101, 51))
    torch.testing.assert_close(window[:, [0, 3, 6, 50, 94, 97, 100], 25], torch.tensor([[0, 0.5, 1, 1, 1, 0.5, 0]] * 2))
    assert (window[:, 6:95, 3:48] == 1).all()


def test_jacobian_of_known_maps() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    stretch = torch.stack([0.5 * y, 0.0 * x])[None]
    torch.testing.assert_close(jacobian_determinant(stretch), torch.full((1, 7, 7), 1.5))
    mirror = torch.stack([0 * y, -2 * x])[None]
    torch.testing.assert_close(jacobian_determinant(mirror), torch.full((1, 7, 7), -1.0))


def test_the_gate_starts_open_and_closes_on_the_factual_image() -> None:
    head = DeformationHead(2, channels=(8, 8))
    image, counterfactual = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    edit = head(head.features(image), torch.zeros(2, 2), torch.ones(2, 2))
    torch.testing.assert_close(head.blend(image, counterfactual, edit), counterfactual)
    assert torch.equal(head.blend(image, counterfactual, replace(edit, gate=torch.zeros_like(edit.gate))), image)
    for bias in (-9.0, 9.0):  # it lets through neither more than all nor less than nothing
        torch.nn.init.constant_(head.gate_head.bias, bias)
        gate = head(head.features(image), torch.zeros(2, 2), torch.ones(2, 2)).gate
        assert torch.equal(gate, torch.full_like(gate, float(bias > 0)))


def test_jacobian_of_linear_maps() -> None:
    torch.manual_seed(0)
    for dims in (2, 3):
        matrix = torch.randn(dims, dims)
        grid = torch.stack(torch.meshgrid([torch.arange(4.0)] * dims, indexing="ij"))
        displacement = torch.einsum("ij,j...->i...", matrix - torch.eye(dims), grid)[None]
        determinant = jacobian_determinant(displacement)
        torch.testing.assert_close(determinant, torch.linalg.det(matrix).expand_as(determinant))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_pixel_that_passes_its_diagonal_neighbour_folds(dims: int) -> None:
    displacement = torch.zeros(1, dims, *[5] * dims)
    displacement[(0, slice(None), *[2] * dims)] = -0.6
    for field in (displacement, -displacement):
        assert jacobian_determinant(field).min() == pytest.approx(1 - 0.6 * dims)
        assert (jacobian_determinant(unfolded(field)) > 0).all()


@pytest.mark.parametrize("size", [(32, 32), (16, 12, 20)])
def test_what_folds_is_smoothed_and_nothing_else_is_touched(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dims = len(size)
    rough, gentle = torch.randn(1, dims, *size), 0.01 * torch.randn(1, dims, *size)
    rough[:, :, : size[0] // 2] = 0
    assert (jacobian_determinant(rough) <= 0).any()
    smooth, same = unfolded(torch.cat([rough, gentle])).split(1)
    assert (jacobian_determinant(smooth) > 0).all()
    assert torch.equal(same, gentle)
    assert torch.equal(smooth[:, :, : size[0] // 4], rough[:, :, : size[0] // 4])


def test_what_folds_at_the_border_is_smoothed_among_its_neighbours() -> None:
    torch.manual_seed(0)
    folded = 5 + torch.rand(1, 2, 16, 16)
    folded[..., 0] += 3 * torch.rand(1, 2, 16)
    assert (jacobian_determinant(folded) <= 0).any()
    smooth = unfolded(folded)
    assert (jacobian_determinant(smooth) > 0).all()
    assert smooth.min() >= 5 - 1e-5 and smooth.max() <= folded.max() + 1e-5


def test_a_head_does_not_fold_however_rough_its_velocity() -> None:
    torch.manual_seed(0)
    for head, size in ((DeformationHead(2), (64, 64)), (DeformationHead(2, spatial_dims=3), (32, 16, 16))):
        velocity = 4 * torch.randn(2, len(size), *[s // 4 for s in size])
        assert (jacobian_determinant(head.displacement(velocity, size)) > 0).all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_is_painted_starts_at_nothing_and_vanishes_with_the_action(spatial_dims: int) -> None:
    head = moving_head(spatial_dims, painted=[1])
    image = torch.rand(2, 1, *[16] * spatial_dims)
    parents, target = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    fresh = head(head.features(image), parents, target)
    torch.testing.assert_close(head.blend(image, image, fresh), image, rtol=0, atol=0)
    start_painting(head)
    edit = head(head.features(image), parents, target)
    assert edit.residual is not None and edit.residual.shape == image.shape
    assert not edit.residual[0].any() and edit.residual[1].any()
    painted = head.blend(image, image, edit)
    assert torch.equal(painted[0], image[0]) and (painted[1] != image[1]).any()


def test_a_variable_is_either_moved_or_painted() -> None:
    head = moving_head(painted=[1])
    start_painting(head)
    features, parents = head.features(torch.rand(1, 1, 16, 16)), torch.zeros(1, 2)
    moved, painted = (head(features, parents, torch.tensor([action])) for action in ([1.0, 0.0], [0.0, 1.0]))
    assert moved.velocity.any() and moved.residual is not None and not moved.residual.any()
    assert not painted.velocity.any() and painted.residual is not None and painted.residual.any()


def test_paint_saturates_and_does_not_vanish_as_it_appears() -> None:
    head = moving_head(painted=[0, 1])
    start_painting(head)
    torch.nn.init.zeros_(head.film.weight)  # the action is then seen in the amount of paint only
    features = head.features(torch.rand(1, 1, 16, 16))

    def paint(change: float) -> torch.Tensor:
        residual = head(features, torch.zeros(1, 2), torch.tensor([[0.0, change]])).residual
        assert residual is not None
        return residual

    torch.testing.assert_close(paint(1.0), paint(0.1) * (1 / 1.1) / 0.5)
    torch.testing.assert_close(paint(-1.0), paint(-0.1) * (1 / 1.1) / 0.5)
    assert not torch.allclose(paint(-1.0), -paint(1.0), rtol=0.1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_belongs_to_a_region_is_painted_in_it(spatial_dims: int) -> None:
    head = moving_head(spatial_dims, painted=[0, 1], bands={1: (1, 0.25, 0.5)})
    start_painting(head)
    features = head.features(torch.rand(1, 1, *[32] * spatial_dims))
    everywhere, there = (
        head(features, torch.zeros(1, 2), torch.tensor([action])).residual for action in ([1.0, 0.0], [0.0, 1.0])
    )
    assert everywhere is not None and there is not None
    columns = [residual.transpose(0, 3).flatten(1).any(1) for residual in (everywhere, there)]
    assert columns[0].all()
    assert columns[1].nonzero()[:, 0].tolist() == list(range(8, 16))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_head_edits_by_what_it_sees_but_does_not_see_what_suits_the_edit(spatial_dims: int) -> None:
    head = moving_head(spatial_dims, classes=3)
    assert head.anatomy is not None
    image, parents, target = torch.rand(1, 1, *[16] * spatial_dims), torch.zeros(1, 2), torch.ones(1, 2)
    features = head.features(image)
    assert features.anatomy is not None and features.anatomy.shape == (1, 3, *[8] * spatial_dims)
    velocity = head(features, parents, target).velocity
    elsewhere = replace(features, anatomy=features.anatomy + torch.tensor([9.0, 0, 0]).view(3, *[1] * spatial_dims))
    assert not torch.equal(head(elsewhere, parents, target).velocity, velocity)
    velocity.square().sum().backward(retain_graph=True)
    assert head.anatomy.weight.grad is None
    features.anatomy.square().sum().backward()
    assert head.anatomy.weight.grad is not None and head.anatomy.weight.grad.any()


def from_centre(size: Sequence[int]) -> torch.Tensor:
    """Where the pixels of an image lie, from -1 to 1, shape (D, *size)."""
    return torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, length) for length in size], indexing="ij"))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (16, 16, 16)])
@pytest.mark.parametrize("wanted", [0.95, 1.05])
@pytest.mark.parametrize("bands", [{}, {0: (0, 0.0, 0.4)}])
def test_a_movement_is_rescaled_to_the_area_that_the_head_sees(
    size: tuple[int, ...], wanted: float, bands: dict[int, tuple[int, float, float]]
) -> None:
    head = moving_head(len(size), classes=2, areas={0: 1}, bands=bands).eval()
    # A ball in the middle, and a field that widens it.
    inside = 8 * (0.5 - from_centre(size).norm(dim=0))
    anatomy = torch.stack([-inside, inside])[None]
    head.velocity_head.register_forward_hook(
        lambda layer, inputs, output: -0.5 * from_centre(output.shape[2:]).repeat(2, *[1] * len(size))[None]
    )
    features = replace(head.features(torch.rand(1, 1, *(2 * length for length in size))), anatomy=anatomy)
    parents, target = torch.zeros(1, 2), torch.tensor([[0.6, 0.0]])

    mask, band = anatomy.softmax(1)[:, 1:], head._bands(size, anatomy)[0]

    def change(sizes: Sizes | None) -> torch.Tensor:
        displacement = head.displacement(head(features, parents, target, sizes).velocity, size)
        return ((head.resample_linear(mask, displacement) - mask) * band).mean() * 100

    plain = change(None)
    area = (mask * band).mean() * 100
    factual = torch.tensor([[area.item() + 0.5, torch.nan]])  # measured elsewhere: the change counts
    asked = wanted * plain
    in_percent = Sizes(factual, factual + asked, torch.tensor([[100.0, 100.0]]))
    assert plain > 0.2
    torch.testing.assert_close(change(in_percent), asked, rtol=0.01, atol=0)
    # Of another unit the head knows only that the factual value is the area it sees.
    other = Sizes(7 * area.expand(1, 2), 7 * (area + asked).expand(1, 2), torch.full((1, 2), torch.nan))
    torch.testing.assert_close(change(other), asked, rtol=0.01, atol=0)
    # It is held back, leaves alone what is not known, and has no part in the training.
    far = change(Sizes(factual, factual + 9 * plain, torch.tensor([[100.0, 100.0]])))
    assert 1.15 < far / plain < 1.4
    assert torch.equal(change(Sizes(factual * torch.nan, factual, torch.tensor([[100.0, 100.0]]))), plain)
    head.train()
    assert torch.equal(change(in_percent), plain)


@pytest.mark.parametrize("size", [(64, 24), (32, 24, 24)])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_painted_and_measured_is_painted_where_it_grows(size: tuple[int, ...], training: bool) -> None:
    head = moving_head(len(size), painted=[1], classes=3, areas={0: 1, 1: 2}, bands={1: (0, 0.0, 0.5)}).train(training)
    start_painting(head)
    # A tube along the first axis in class 1, and what may be absent, class 2, beside it.
    where = torch.stack(torch.meshgrid(*[torch.arange(length) for length in size], indexing="ij")).float()
    tube = where[1] < 8
    seen = (where - torch.tensor([10.0, 9.0, 12.0][: len(size)]).view(-1, *[1] * len(size))).norm(dim=0) < 3
    logits = 8 * torch.stack([~tube & ~seen, tube, seen & ~tube]).float()[None]
    features = replace(head.features(torch.rand(1, 1, *size)), anatomy=logits)
    masks = logits.softmax(1)
    unit = 0.3
    lumen, plaque = unit * masks[:, 1].sum(), unit * masks[:, 2].sum()

    def painted(change: float, wanted: float) -> torch.Tensor:
        factual = torch.stack([lumen, plaque])[None]
        sizes = Sizes(factual, factual.clone(), torch.full((1, 2), torch.nan))
        sizes.wanted[0, 1] = wanted
        return head(features, torch.zeros(1, 2), torch.tensor([[0.0, change]]), sizes).residual[0, 0].abs() > 1e-3

    far = where[0] > 20
    more, none = painted(0.4, 2 * plaque.item()), painted(-0.4, 0.0)
    assert more.any() and none.any() and not more[far].any() and not none[far].any()
    assert not more[where[0] > size[0] / 2].any()
    grown_by = more.sum() - none.sum()
    assert none.sum() > 0 and grown_by > 0
    # Without sizes it is painted all over its region, and without an area of its own, too.
    free = head(features, torch.zeros(1, 2), torch.tensor([[0.0, 0.4]])).residual[0, 0].abs() > 1e-6
    assert free[where[0] < size[0] // 2 - 1].float().mean() > 0.9
    head.areas = {}
    assert torch.equal(painted(0.4, 2 * plaque.item()), painted(0.4, 9 * plaque.item()))


def flat_painter(**arguments: Any) -> DeformationHead:
    """A head that adds 2 to what appears and 3 to what vanishes, by the share that is painted."""
    head = moving_head(painted=[0], classes=2, areas={0: 1}, **arguments).eval()
    torch.nn.init.constant_(head.appear_head.bias, 2)
    torch.nn.init.constant_(head.vanish_head.bias, 3)
    return head


def test_what_appears_has_a_soft_border_and_what_vanishes_is_painted_over_with_its_own() -> None:
    head = flat_painter()
    inside = 3 * (4 - (from_centre((32, 32)) * 15.5).norm(dim=0))
    features = replace(head.features(torch.rand(1, 1, 32, 32)), anatomy=torch.stack([-inside, inside])[None])
    area = torch.tensor([[float((inside > 0).sum()), 0.0]])

    def edit(factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = Sizes(area, factor * area, torch.full((1, 2), torch.nan))
        found = head(features, torch.zeros(1, 2), torch.tensor([[factor - 1, 0.0]]), sizes)
        assert found.paint is not None and found.gained is not None and found.gained[0, 0].any()
        return found.paint, found.gained[:, :1]

    paint, gained = edit(2)
    torch.testing.assert_close(paint, 2 * mean_near(gained))
    paint, gained = edit(0)
    torch.testing.assert_close(paint, -3 * max_near(-gained))


def test_the_soft_border_of_what_appears_ends_with_its_region() -> None:
    head = flat_painter(bands={0: (0, 0.0, 0.5)})
    inside = 3 * (3 - (from_centre((32, 32)) * 15.5 + torch.tensor([3.0, 0.0]).view(2, 1, 1)).norm(dim=0))
    features = replace(head.features(torch.rand(1, 1, 32, 32)), anatomy=torch.stack([-inside, inside])[None])
    area = torch.tensor([[float((inside > 0).sum()), 0.0]])
    sizes = Sizes(area, 3 * area, torch.full((1, 2), torch.nan))
    residual = head(features, torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), sizes).residual
    assert residual is not None and residual[..., 15, :].abs().max() > 0.5 and not residual[..., 16:, :].any()


def test_the_size_of_a_pixel_is_told_by_what_is_known() -> None:
    head = moving_head(classes=3, areas={0: 1, 1: 2}, bands={1: (0, 0.0, 0.5)})
    masks = torch.zeros(3, 3, 8, 8)
    masks[:, 1, :, :3], masks[:, 2, :, 3:] = 1, 1  # 24 pixels, and 20 in the region of the second
    nan = torch.nan
    factual = torch.tensor([[12.0, 10.0], [12.0, nan], [nan, 10.0]])
    for whole, expected in ((nan, 0.5), (100.0, 100 / 64)):
        sizes = Sizes(factual, factual, torch.full((3, 2), whole))
        pixel = head._pixel(masks, head._bands((8, 8), masks)[:, 0], sizes)
        torch.testing.assert_close(pixel, torch.full((3,), expected))


def test_a_structure_of_unknown_area_is_not_measured() -> None:
    head = flat_painter()
    features = replace(head.features(torch.rand(1, 1, 16, 16)), anatomy=torch.zeros(1, 2, 16, 16))
    sizes = Sizes(torch.tensor([[torch.nan, 0.0]]), torch.tensor([[20.0, 0.0]]), torch.full((1, 2), 100.0))
    edit = head(features, torch.zeros(1, 2), torch.tensor([[0.4, 0.0]]), sizes)
    assert edit.gained is not None and not edit.gained.any()
    assert edit.paint is not None
    torch.testing.assert_close(edit.paint, torch.full_like(edit.paint, 2 * 0.4 / 0.5))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_plaque_that_grows_leaves_another_one_where_it_is(spatial_dims: int) -> None:
    size = [24] * spatial_dims
    head = moving_head(spatial_dims, painted=[0, 1], classes=3, areas={0: 1, 1: 2}).eval()
    place = torch.stack(torch.meshgrid(*[torch.arange(24)] * spatial_dims, indexing="ij"))
    middle = (place[1:] - 12).abs().amax(0) < 3
    first, second = middle & (place[0] < 12), middle & (place[0] >= 12)  # side by side
    logits = 9 * torch.stack([~middle, first, second]).float()[None]
    features = replace(head.features(torch.rand(1, 1, *size)), anatomy=logits)
    areas = torch.stack([first.sum(), second.sum()]).float()[None]

    def gained(factor: float) -> torch.Tensor:
        sizes = Sizes(areas, areas * torch.tensor([factor, 1.0]), torch.full((1, 2), torch.nan))
        edit = head(features, torch.zeros(1, 2), torch.tensor([[factor - 1, 0.0]]), sizes)
        assert edit.gained is not None and not edit.gained[0, 1].any()
        return edit.gained[0, 0]

    more = gained(2.0)
    assert not more[second].any() and more.sum().item() == pytest.approx(areas[0, 0].item(), rel=0.1)
    assert gained(0.0)[first].mean() < -0.9


def test_a_plaque_appears_beside_the_lumen_and_not_beside_another_plaque() -> None:
    head = DeformationHead(3, channels=(8, 8), painted=[1, 2], classes=4, areas={0: 1, 1: 2, 2: 3}).eval()
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    lumen, other = column < 6, (row - 16).abs().maximum((column - 24).abs()) < 3
    likely = -6 - 0.2 * (column - 20).abs()  # most likely beside the other plaque
    logits = torch.stack([torch.zeros(32, 32), 30.0 * lumen - 15, 30.0 * other - 15, likely])[None]
    features = replace(head.features(torch.rand(1, 1, 32, 32)), anatomy=logits)
    factual = torch.tensor([[float(lumen.sum()), float(other.sum()), 0.0]])
    sizes = Sizes(factual, factual + torch.tensor([0, 0, 9]), torch.full((1, 3), torch.nan))
    gained = head(features, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 0.2]]), sizes).gained
    assert gained is not None and gained.sum().item() == pytest.approx(9, rel=0.15)
    assert gained[0, 2, :, 6:12].sum() > 0.8 * gained.sum()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_fresh_head_paints_tissue_as_bright_as_it_has_seen_it_and_over_nothing(spatial_dims: int) -> None:
    size = [24] * spatial_dims
    head = moving_head(spatial_dims, painted=[1], classes=3, areas={0: 1, 1: 2})
    assert head.anatomy is not None
    where = torch.stack(torch.meshgrid(*[torch.arange(24)] * spatial_dims, indexing="ij"))
    plaque, lumen = (where - 12).abs().amax(0) < 3, where[0] > 18
    label = (lumen + 2 * plaque).long()
    image = torch.tensor([-0.5, 0.25, 0.75])[label].expand(2, 1, *size)
    logits = 9 * torch.stack([label == k for k in range(3)]).float().expand(2, 3, *size)
    head.anatomy.register_forward_hook(lambda layer, inputs, output: logits[: len(output)])

    def painted(area: float) -> torch.Tensor:
        factual, wanted = (torch.tensor([[float(lumen.sum()), n]]) for n in (float(plaque.sum()), area))
        sizes = Sizes(factual, wanted, torch.full_like(factual, torch.nan))
        edit = head(head.features(image[:1]), torch.zeros(1, 2), torch.tensor([[0.0, area - plaque.sum()]]), sizes)
        assert edit.paint is not None and not edit.paint.any()
        return (image[:1] + edit.residual)[0, 0]

    more = float(3 * plaque.sum())
    head.eval()
    assert torch.equal(painted(more), image[0, 0])  # nothing is known of the tissue
    head.train().features(image)
    grown, gone = painted(more), painted(0.0)
    torch.testing.assert_close(grown[plaque], image[0, 0][plaque])
    assert grown.max() <= 0.75 + 1e-4 and (grown[~plaque & ~lumen] > 0).sum() > 0.8 * plaque.sum()
    assert torch.equal(gone, image[0, 0])  # to paint over what vanishes has to be learned


def test_what_is_known_of_tissue_is_the_mean_over_many_batches() -> None:
    head = moving_head(painted=[1], classes=2)
    anatomy = torch.tensor([0.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    for brightness in (0.2, 0.8, 0.8, 0.2):
        head._learn_tissues(torch.full((1, 1, 8, 8), brightness), anatomy)
    assert head.pixels[1] > 0 and head.pixels[0] == 0
    assert float(head.intensities[1] / head.pixels[1]) == pytest.approx(0.5, abs=0.02)


def test_tissue_is_learned_in_full_precision() -> None:
    heads = [moving_head(painted=[1], classes=3, areas={0: 1, 1: 2}) for _ in range(2)]
    image = torch.rand(2, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        anatomy = heads[0].features(image).anatomy
    assert anatomy is not None and anatomy.dtype == torch.bfloat16
    heads[1]._learn_tissues(image, anatomy)
    assert heads[0].intensities.any() and torch.equal(heads[0].intensities, heads[1].intensities)


def test_a_head_that_was_used_moves_to_another_device() -> None:
    head = moving_head()
    image, displacement = torch.rand(1, 1, 16, 16), torch.ones(1, 2, 16, 16)
    head.warp(image, displacement)
    assert head.to("meta").warp(image.to("meta"), displacement.to("meta")).device.type == "meta"


def test_an_area_needs_a_class() -> None:
    with pytest.raises(ValueError, match=r"areas of the classes \[2\], the head sees 2 classes"):
        moving_head(classes=2, areas={0: 2})


def test_the_encoding_explains_half_of_the_middle_third_and_coordinates_nothing() -> None:
    image = torch.zeros(1, 1, 60, 4)
    wanted = torch.zeros(60)
    wanted[20:40] = 1

    def error(channels: torch.Tensor) -> float:
        rows = torch.cat([channels[0, :, :, 0].T, torch.ones(60, 1)], dim=1).double().numpy()
        # Across the columns nothing varies here: the system has no full rank, which not every solver survives.
        fitted = rows @ np.linalg.lstsq(rows, wanted.numpy(), rcond=None)[0]
        return float(np.square(fitted - wanted.numpy()).mean())

    encoding = positional_encoding(image, 3)
    assert encoding.shape == (1, 12, 60, 4) and positional_encoding(image, 0).shape == (1, 0, 60, 4)
    assert error(encoding) < 0.12 < 0.2 < error(coordinates(image))
    for wave, periods in ((0, 0.5), (4, 1), (8, 2)):  # a sine and a cosine for each of two axes
        angles = torch.linspace(-1, 1, 60) * periods * torch.pi
        torch.testing.assert_close(encoding[0, wave, :, 0], angles.sin())
        torch.testing.assert_close(encoding[0, wave + 2, :, 0], angles.cos())


@pytest.mark.parametrize(("painted", "classes"), [([], 0), ([1], 0), ([], 3), ([1], 3)])
def test_gradients_reach_the_whole_head(painted: list[int], classes: int) -> None:
    head = moving_head(painted=painted, classes=classes)
    if painted:
        start_painting(head)
    image, counterfactual = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    features = head.features(image)
    edit = head(features, torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    blended = head.blend(image, counterfactual, edit)
    loss = head.warp(blended, head.displacement(edit.velocity, (32, 32))).square().mean()
    (loss + sum(a.square().mean() for a in [features.anatomy] if a is not None)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_a_grid_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="grid_stage is 3, expected 1 to 2"):
        DeformationHead(1, channels=(8, 8), grid_stage=3)
