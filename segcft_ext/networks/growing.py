"""Structures that grow from where they are: which pixels a mask gains when its area rises, and loses when it falls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["growth"]

RINGS = 24 / 128
MARGIN = 5 / 128
PER_RING = 0.5
SOFTNESS = 0.5
CERTAIN = 15.0
BISECTIONS = 24


@torch.no_grad()
def growth(log_odds: Tensor, room: Tensor, passable: Tensor, factual: Tensor, wanted: Tensor) -> Tensor:
    """How a soft mask changes from one area to another.

    The pixels are put in an order, from the inside of the structure outwards: by their log-odds, less a half (at an
    image of 128) for each ring of pixels that lies between them and what is there. The mask of an area are the first
    pixels, as many as it has. So the masks of all areas are nested: a structure grows around itself, shrinks from its
    rim, and where none is there, it grows around the pixel of the highest log-odds, but not at the end of its room, if
    there is more of it.

    Args:
        log_odds: that a pixel belongs to the structure, shape (R, \\*spatial).
        room: where it may be, boolean, shape (R, \\*spatial).
        passable: what the rings spread through, boolean, shape (R, \\*spatial): a plaque does not grow across a lumen.
        factual: area in pixels, shape (R,).
        wanted: the area that it is to have, shape (R,).

    Returns:
        Shape (R, \\*spatial), in [-1, 1]: above zero what is gained, below what is lost.
    """
    spatial = log_odds.shape[1:]
    inside = log_odds.clamp(-CERTAIN, CERTAIN).masked_fill(~room, -torch.inf)
    pool = F.max_pool2d if len(spatial) == 2 else F.max_pool3d
    margin = round(MARGIN * max(spatial))
    outside = F.pad((~room)[:, None].float(), [margin] * 2 * len(spatial), value=1.0)
    for _ in range(margin):
        outside = pool(outside, 3, stride=1)
    central = room & (outside[:, 0] == 0)
    seeds = torch.where(central | ~_any(central), inside, -torch.inf)
    seed = seeds == seeds.flatten(1).amax(1).view(-1, *[1] * len(spatial))
    there = inside > 0
    reached = torch.where(_any(there), there, seed).float()
    rings = torch.zeros_like(reached)
    for _ in range(round(RINGS * max(spatial))):
        rings += 1 - reached
        spread = pool(reached[:, None], 3, stride=1, padding=1)[:, 0]
        reached = torch.maximum(reached, spread * passable)
    order = inside - PER_RING * 128 / max(spatial) * rings
    return _first(order, wanted) - _first(order, factual)


def _any(mask: Tensor) -> Tensor:
    """Whether there are any pixels, shape (R, 1, …)."""
    return mask.flatten(1).any(1).view(-1, *[1] * (mask.ndim - 1))


def _first(order: Tensor, count: Tensor) -> Tensor:
    """The soft mask (R, \\*spatial) of the first pixels whose sum is a number (R,), or as much as there is room for."""
    flat = order.flatten(1)
    low = torch.where(flat.isfinite(), flat, torch.inf).amin(1) - CERTAIN
    high = flat.amax(1) + CERTAIN
    for _ in range(BISECTIONS):
        edge = (low + high) / 2
        too_many = torch.sigmoid((flat - edge[:, None]) / SOFTNESS).sum(1) > count
        low, high = torch.where(too_many, edge, low), torch.where(too_many, high, edge)
    mask = torch.sigmoid((flat - high[:, None]) / SOFTNESS).view_as(order)
    return mask * (count > 0).view(-1, *[1] * (order.ndim - 1))
