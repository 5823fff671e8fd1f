"""Structures that grow from where they are: which pixels a mask gains when its area rises, and loses when it falls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segcft_ext.networks.pooling import max_near

__all__ = ["growth"]

# Lengths are fractions of the image's longest side, so that a structure grows alike at all sizes.
RINGS = 24 / 128  # up to this distance from a structure, pixels rank lower the farther away they are
MARGIN = 5 / 128  # an absent structure does not begin nearer than this to the end of its room
BESIDE = 3 / 128  # it begins within this distance of the lumen
# In log-odds:
PER_RING = 0.5  # cost of a ring in an image of 128 pixels
SOFTNESS = 0.5  # width of a mask's border
CERTAIN = 15.0  # log-odds are clamped to this
BISECTIONS = 24  # steps towards the area: from tens of log-odds to millionths


@torch.no_grad()
def growth(log_odds: Tensor, room: Tensor, lumen: Tensor, factual: Tensor, wanted: Tensor) -> Tensor:
    """How a soft mask changes from one area to another.

    The pixels are ranked from the inside of the structure outwards: by their log-odds, less a half (at an image of 128)
    for each ring of pixels between them and the structure that is there. The mask of an area consists of the first
    pixels of that order, so the masks of all areas are nested: a structure grows around itself and shrinks from its
    rim. An absent one grows around the pixel with the highest log-odds: beside the lumen, if there is one, and not at
    the end of its room, if there is other room.

    Args:
        log_odds: log-odds that a pixel belongs to the structure, shape (R, \\*spatial).
        room: where the structure may be, boolean, shape (R, \\*spatial).
        lumen: what the structure lies along, boolean, shape (R, \\*spatial), all False for none: a plaque begins beside
            a lumen, and its rings do not spread across it.
        factual: factual area in pixels, shape (R,).
        wanted: wanted area in pixels, shape (R,).

    Returns:
        Shape (R, \\*spatial), in [-1, 1]: above zero what is gained, below what is lost.
    """
    size = max(log_odds.shape[1:])
    inside = log_odds.clamp(-CERTAIN, CERTAIN).masked_fill(~room, -torch.inf)
    there = inside > 0
    # Clamped log-odds would tie where the structure is very unlikely everywhere.
    reached = torch.where(_any(there), there, _seed(log_odds, room, lumen)).float()
    rings = torch.zeros_like(reached)
    for _ in range(round(RINGS * size)):
        rings += 1 - reached
        reached = torch.maximum(reached, max_near(reached[:, None])[:, 0] * ~lumen)
    order = inside - PER_RING * 128 / size * rings
    return _first(order, wanted) - _first(order, factual)


def _seed(log_odds: Tensor, room: Tensor, lumen: Tensor) -> Tensor:
    """The pixel that an absent structure grows around, as a mask (R, \\*spatial)."""
    size, axes = max(log_odds.shape[1:]), log_odds.ndim - 1
    # Beyond the image there is no room either.
    outside = max_near(F.pad((~room)[:, None].float(), [1] * 2 * axes, value=1.0), round(MARGIN * size))
    central = F.pad(outside, [-1] * 2 * axes)[:, 0] == 0
    beside = (max_near(lumen[:, None].float(), round(BESIDE * size))[:, 0] > 0) & ~lumen
    places = room
    for narrower in (beside, central):
        places = torch.where(_any(places & narrower), places & narrower, places)
    seeds = log_odds.masked_fill(~places, -torch.inf)
    return seeds == seeds.flatten(1).amax(1).view(-1, *[1] * axes)


def _any(mask: Tensor) -> Tensor:
    """Whether a mask (R, \\*spatial) has any pixel, shape (R, 1, …)."""
    return mask.flatten(1).any(1).view(-1, *[1] * (mask.ndim - 1))


def _first(order: Tensor, count: Tensor) -> Tensor:
    """The soft mask (R, \\*spatial) of the first pixels: their sum is ``count`` (R,), or all the room."""
    flat = order.flatten(1)
    low = torch.where(flat.isfinite(), flat, torch.inf).amin(1) - CERTAIN
    high = flat.amax(1) + CERTAIN
    for _ in range(BISECTIONS):
        edge = (low + high) / 2
        too_many = torch.sigmoid((flat - edge[:, None]) / SOFTNESS).sum(1) > count
        low, high = torch.where(too_many, edge, low), torch.where(too_many, high, edge)
    wanted = flat.isfinite() & (count > 0)[:, None]
    return torch.where(wanted, torch.sigmoid((flat - high[:, None]) / SOFTNESS), 0).view_as(order)
