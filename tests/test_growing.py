"""Properties of structures that grow from where they are."""

import itertools

import pytest
import torch

from segcft_ext.networks.growing import growth

SIZES = [(64, 32), (32, 24, 24)]


def from_pixel(size: tuple[int, ...], pixel: tuple[int, ...]) -> torch.Tensor:
    """Distance of each pixel from one, shape (1, *size)."""
    places = torch.stack(torch.meshgrid(*[torch.arange(length) for length in size], indexing="ij")).float()
    return (places - torch.tensor(pixel).view(-1, *[1] * len(size))).norm(dim=0)[None]


def everywhere(size: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(1, *size, dtype=torch.bool)


def nowhere(size: tuple[int, ...]) -> torch.Tensor:
    return ~everywhere(size)


def area(pixels: float) -> torch.Tensor:
    return torch.tensor([float(pixels)])


@pytest.mark.parametrize("size", SIZES)
def test_what_is_there_grows_around_itself_and_shrinks_from_its_rim(size: tuple[int, ...]) -> None:
    distance = from_pixel(size, tuple(length // 3 for length in size))
    log_odds = 3 * (4 - distance)  # a ball of radius 4
    count = int((log_odds > 0).sum())
    more = growth(log_odds, everywhere(size), nowhere(size), area(count), area(2 * count))
    less = growth(log_odds, everywhere(size), nowhere(size), area(count), area(count / 2))
    none = growth(log_odds, everywhere(size), nowhere(size), area(count), area(0))
    assert more.min() >= 0 and less.max() <= 0
    for change, wanted in [(more, count), (less, -count / 2), (none, -count)]:
        assert change.sum().item() == pytest.approx(wanted, rel=0.1)
    assert more[distance < 3].max() < 0.1 and more[distance > 7].max() < 0.1
    assert less[distance < 2].min() > -0.1 and less[distance > 5].min() > -0.1
    assert none[distance < 3].max() < -0.9


@pytest.mark.parametrize("size", SIZES)
def test_what_is_absent_grows_around_one_place_and_masks_are_nested(size: tuple[int, ...]) -> None:
    distance = from_pixel(size, tuple(length // 2 for length in size))
    log_odds = -6 - 0.5 * distance
    masks = [growth(log_odds, everywhere(size), nowhere(size), area(0), area(count)) for count in (0, 0.5, 1, 10, 40)]
    assert not masks[0].any()
    assert all((larger - smaller).min() > -1e-6 for smaller, larger in itertools.pairwise(masks))
    assert masks[1].max() < 0.6 * masks[2].max()
    assert masks[-1].sum().item() == pytest.approx(40, rel=0.15)
    assert masks[-1][distance > 6].max() < 0.05


def test_an_equal_second_place_far_away_is_left_alone() -> None:
    size = (64, 32)
    likely = from_pixel(size, (16, 16)).minimum(from_pixel(size, (48, 16)))
    there = from_pixel(size, (16, 16)) < 3
    change = growth(-4 - 0.2 * likely + 8 * there, everywhere(size), nowhere(size), area(25), area(60))
    assert change[:, :32].sum() > 30 and change[:, 32:].abs().max() < 0.05


def test_it_stays_in_its_room_and_does_not_grow_across_what_is_in_the_way() -> None:
    size = (64, 32)
    near = from_pixel(size, (20, 11))
    log_odds = torch.where(near < 3, 4.0, -4 - 0.1 * near)
    room, lumen = everywhere(size), nowhere(size)
    room[:, 24:] = False
    lumen[:, :, 15:17] = True  # along the whole image
    change = growth(log_odds, room, lumen, area(28), area(120))
    assert change.sum().item() == pytest.approx(92, rel=0.05)
    assert not change[:, 24:].any() and change[:, :, 17:].max() < 0.05
    across = growth(log_odds, room, nowhere(size), area(28), area(120))
    assert across[:, :, 17:].max() > 0.4


def test_more_than_there_is_room_for_fills_the_room() -> None:
    room = torch.zeros(1, 32, 24, dtype=torch.bool)
    room[:, 10:15] = True
    change = growth(-5 - from_pixel((32, 24), (12, 12)), room, nowhere((32, 24)), area(0), area(1000))
    assert change[room].min() >= 0.5 and not change[~room].any()


def test_what_appears_does_not_hug_the_end_of_its_room_unless_it_is_all_end() -> None:
    size = (64, 32)
    log_odds = -3 - 0.2 * from_pixel(size, (0, 16))  # most likely at the image's first row
    change = growth(log_odds, everywhere(size), nowhere(size), area(0), area(9))
    row = (change[0].sum(1) * torch.arange(64)).sum() / change.sum()
    assert 1.5 < row < 6
    narrow = torch.zeros(1, *size, dtype=torch.bool)
    narrow[:, 30:33] = True
    assert growth(log_odds, narrow, nowhere(size), area(0), area(9)).sum().item() == pytest.approx(9, rel=0.05)


@pytest.mark.parametrize("size", SIZES)
def test_what_appears_lies_on_the_wall_of_the_lumen_and_not_where_it_is_brightest(size: tuple[int, ...]) -> None:
    lumen = nowhere(size)
    lumen[:, :, size[1] // 2] = True
    bright = (size[0] // 2, 2, *[length // 2 for length in size[2:]])  # a vein, at the side of the image
    log_odds = -2 - 0.3 * from_pixel(size, bright)
    change = growth(log_odds, everywhere(size), lumen, area(0), area(20))
    rows = torch.arange(size[1]).view(-1, *[1] * (len(size) - 2)).expand(size)
    place = (change[0] * rows).sum() / change.sum()
    assert 0 < size[1] // 2 - place < 5
    assert (growth(log_odds, everywhere(size), nowhere(size), area(0), area(20))[0] * rows).sum() / change.sum() < 6


def test_what_appears_does_not_begin_inside_the_lumen_however_likely_that_looks() -> None:
    size, lumen = (64, 32), nowhere((64, 32))
    lumen[:, :, 14:19] = True
    change = growth(-2 - 0.3 * from_pixel(size, (32, 16)), everywhere(size), lumen, area(0), area(9))
    assert change.sum().item() == pytest.approx(9, rel=0.1) and change[lumen].max() < 0.05


def test_what_appears_begins_beside_the_lumen_even_where_its_room_ends() -> None:
    size, room, lumen = (64, 32), nowhere((64, 32)), nowhere((64, 32))
    room[:, :2], room[:, 30:60], lumen[:, 0, 16] = True, True, True
    change = growth(-2 - 0.1 * from_pixel(size, (45, 16)), room, lumen, area(0), area(4))
    assert change[:, :2].sum() > 3 > 1 > change[:, 30:].sum()


def test_it_grows_to_both_sides_alike_where_the_structure_is_out_of_the_question() -> None:
    size = (33, 33)
    distance = from_pixel(size, (16, 16))
    log_odds = torch.where(distance < 4, 6.0, -20.0)
    log_odds[..., :16] -= 40  # even more so, on one side
    log_odds[distance < 4] = 6
    change = growth(log_odds, everywhere(size), nowhere(size), area((distance < 4).sum()), area(120))
    assert change.sum() > 50
    torch.testing.assert_close(change, change.flip(2), atol=1e-3, rtol=0)


def test_what_appears_has_one_place_however_unlikely_it_is() -> None:
    size = (64, 32)
    log_odds = -20 - 0.5 * from_pixel(size, (20, 16))
    change = growth(log_odds, everywhere(size), nowhere(size), area(0), area(20))
    assert change.max() > 0.8
    assert change[from_pixel(size, (20, 16)) > 8].max() < 0.01


def test_no_room_is_no_change() -> None:
    change = growth(torch.zeros(1, 32, 24), nowhere((32, 24)), nowhere((32, 24)), area(0), area(9))
    assert not change.any()
