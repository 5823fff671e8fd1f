"""The deformation head: edits of a structure's size as movements of anatomy (docs/method.md).

From the factual image alone, the head computes features ``e``. From these and the action it computes a stationary
velocity field for each variable, whose exponential is a diffeomorphism (Arsigny et al. 2006) that warps the
counterfactual image, and a gate that says where the HVAE's change of intensity is let through. A structure that appears
or vanishes, such as a plaque, cannot come from a warp: the head paints it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from segcft_ext.measurements import band_share
from segcft_ext.networks.coordinates import positional_encoding, with_coordinates
from segcft_ext.networks.folding import unfolded
from segcft_ext.networks.growing import growth
from segcft_ext.networks.pooling import max_near, mean_near
from segcft_ext.networks.warping import LocalWarp, exponential
from segcft_ext.processes import mean_over_processes

__all__ = ["DeformationHead", "Edit", "Features", "Sizes"]

INTEGRATION_STEPS = 6
SATURATION = 0.1
MOMENTUM = 0.02
LARGEST_SCALE = 1.25


@dataclass(frozen=True)
class Features:
    """The abducted exogenous part e of a factual image.

    Attributes:
        stages: features at the velocity's resolution and at each finer one that is needed: up to the image's for a head
            that paints, up to half the image's for one that predicts the label map.
        anatomy: logits of the label map's classes at the finest of these resolutions, shape (B, C, *finest), or None.
        image: the image itself, shape (B, 1, *spatial).
    """

    stages: list[Tensor]
    anatomy: Tensor | None
    image: Tensor


@dataclass(frozen=True)
class Sizes:
    """The values behind the channels of the encoded parents, in physical units, shape (B, P), NaN where missing.

    Attributes:
        factual: values before the action.
        wanted: values after the action.
        whole: area of the whole image in the unit of each value; NaN where unknown.
    """

    factual: Tensor
    wanted: Tensor
    whole: Tensor


@dataclass(frozen=True)
class Edit:
    """What the head computes for an action; the last three are None for a head that does not paint.

    Attributes:
        velocity: stationary velocity field in grid pixels, shape (B, D, *grid); zero where the action changes nothing.
        gate: share of the HVAE's change that is let through, in [0, 1], shape (B, 1, *grid).
        residual: change of intensity before the warp, shape (B, C, *spatial); zero where the action changes nothing.
        paint: the part of the residual beyond the mean intensity of tissues, same shape.
        gained: for each channel of the encoded parents, the change of its structure's mask that is painted, in [-1, 1],
            shape (B, P, *spatial): gained above zero, lost below; zero where it is unknown.
    """

    velocity: Tensor
    gate: Tensor
    residual: Tensor | None = None
    paint: Tensor | None = None
    gained: Tensor | None = None


class DeformationHead(nn.Module):
    """Velocity fields B_k(e, pa, pa~), one for each channel of the encoded parents, and a gate of the intensities.

    .. math:: v = \\sum_k (\\tilde{pa}_k - pa_k) B_k(e, pa, \\tilde{pa}), \\qquad \\phi = \\exp(v)

    The fields see the parents before and after the action, because a large edit is no multiple of a small one. They
    start at zero, vanish with the action, and fade to zero at the image's border, so that nothing is dragged in from
    outside. Where anatomy continues beyond the image (``slip``), only the component across the border fades. The gate
    starts at one: a fresh head leaves the HVAE's counterfactual unchanged.

    Structures that may be absent are not moved but painted: for their variables, the sum over k of s_k R_k(e, pa, pa~)
    is added to the image, where s_k says where and how much. The sum starts at zero, too. Appearing and vanishing are
    different tasks, so there is an R_k for each. What vanishes is painted over at full resolution, since a plaque is
    only a few pixels thin; what appears is painted at half the resolution, since the cheapest paint that satisfies a
    segmentor is speckle.

    To know what it moves and where it paints, the head may learn to predict the label map (``classes``), from which
    fields and paint are then computed as well. What it predicts, it can measure (``areas``):

    * What is moved: in evaluation mode the head moves its own label map by exp(v). Where the area of a structure has
      not become what was asked for, it scales the field of that variable by the ratio of the wanted to the achieved
      change, within 0.8 to 1.25. Scaled in training as well, the fields would have no amplitude of their own to
      learn.
    * What is painted: a structure grows around itself and shrinks from its rim. s_k is the change of its mask
      (:func:`~segcft_ext.networks.growing.growth`) from one area to the other. What it gains takes on the mean
      intensity of its class in training, and R_k is added to that. For a variable without ``areas``, s_k is
      c / (|c| + 0.1) all over its region, with c = pa~_k - pa_k: a large plaque is not brighter than a small one.

    Args:
        parent_channels: length of the encoded parents.
        spatial_dims: 2 or 3.
        channels: width of the features at each resolution; each stage halves the image.
        grid_stage: the stage, counted from 1, whose resolution the velocity has; 1 is half the image's, 2 a quarter.
        hidden_channels: width of the layers that combine features and action.
        margin: width of the border over which the velocity fades to zero, as a fraction of the image.
        painted: channels of the encoded parents whose changes are painted, those of structures that may be absent.
        bands: ``{channel: (axis, low, high)}`` of channels that belong to one region of the image, as in
            :class:`~segcft_ext.measurements.RegionArea`: outside of it, nothing is measured or painted for the channel.
        classes: number of classes of the label maps that the head learns to predict; 0 for none.
        frequencies: number of frequencies of a positional encoding that the fields see, for variables of regions; 0 for
            none.
        areas: ``{channel: class}`` of channels that are the area of one structure, inside their band if they have one.
        slip: axes at both ends of which the image cuts through anatomy, such as a vessel that goes on: there, anatomy
            may move along the border, but not across it.

    Raises:
        ValueError: when ``grid_stage`` is not one of the stages, an area has no such class, or ``slip`` is not an axis.
    """

    is_painted: Tensor
    labels: Tensor
    intensities: Tensor
    pixels: Tensor

    def __init__(
        self,
        parent_channels: int,
        spatial_dims: int = 2,
        channels: Sequence[int] = (16, 32, 48, 64, 64),
        grid_stage: int = 2,
        hidden_channels: int = 48,
        margin: float = 0.06,
        painted: Sequence[int] = (),
        bands: Mapping[int, tuple[int, float, float]] | None = None,
        classes: int = 0,
        frequencies: int = 0,
        areas: Mapping[int, int] | None = None,
        slip: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not 1 <= grid_stage <= len(channels):
            raise ValueError(f"DeformationHead: grid_stage is {grid_stage}, expected 1 to {len(channels)}")
        if unseen := sorted(label for label in (areas or {}).values() if not 0 <= label < classes):
            raise ValueError(f"DeformationHead: areas of the classes {unseen}, the head sees {classes} classes")
        if not set(slip) <= set(range(spatial_dims)):
            raise ValueError(f"DeformationHead: slip is {list(slip)}, expected axes from 0 to {spatial_dims - 1}")
        conv = Conv[Conv.CONV, spatial_dims]
        self.spatial_dims = spatial_dims
        self.parent_channels = parent_channels
        self.grid_stage = grid_stage
        self.margin = margin
        self.slip = tuple(slip)
        self.frequencies = frequencies
        self.bands = dict(bands or {})
        self.areas = dict(areas or {})
        self.painted = tuple(painted)
        seen = 1 + spatial_dims  # the image and the coordinates of its pixels
        widths = [seen, *channels]
        self.down = nn.ModuleList(conv(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.mix = nn.ModuleList(conv(b, b, 3, padding=1) for b in channels)
        # Stage 0 is the image's own resolution.
        finest = 0 if painted else 1 if classes else grid_stage
        by_stage = [channels[0], *channels]
        self.full = conv(seen, by_stage[0], 3, padding=1) if finest == 0 else None
        self.up = nn.ModuleList(
            conv(by_stage[i] + by_stage[i - 1], by_stage[i - 1], 3, padding=1) for i in range(len(channels), finest, -1)
        )
        self.anatomy = conv(channels[0], classes, 3, padding=1) if classes else None
        width = channels[grid_stage - 1]
        self.film = nn.Linear(2 * parent_channels, 2 * hidden_channels)
        self.combine = conv(width + classes + 2 * frequencies * spatial_dims, hidden_channels, 3, padding=1)
        self.refine = conv(hidden_channels, hidden_channels, 3, padding=1)
        self.velocity_head = conv(hidden_channels, parent_channels * spatial_dims, 3, padding=1)
        self.gate_head = conv(hidden_channels, 1, 3, padding=1)
        is_painted = torch.zeros(parent_channels, dtype=torch.bool)
        is_painted[list(painted)] = True
        # Both follow from the definition, so they have no place in a checkpoint.
        self.register_buffer("is_painted", is_painted, persistent=False)
        labels = [self.areas.get(channel, 0) for channel in range(parent_channels)]
        self.register_buffer("labels", torch.tensor(labels), persistent=False)
        self.paint: nn.ModuleList | None = None
        heads = [self.velocity_head, self.gate_head]
        if painted:
            widths = [hidden_channels, *by_stage[:grid_stage][::-1]]
            self.paint = nn.ModuleList(conv(a + b + classes, b, 3, padding=1) for a, b in itertools.pairwise(widths))
            self.appear_head = conv(widths[-2], parent_channels, 3, padding=1)
            self.vanish_head = conv(widths[-1], parent_channels, 3, padding=1)
            heads += [self.appear_head, self.vanish_head]
            # Summed intensity and number of pixels of each class, per image pixel: running means over training batches.
            self.register_buffer("intensities", torch.zeros(max(classes, 1), 1))
            self.register_buffer("pixels", torch.zeros(max(classes, 1), 1))
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.integrate = exponential(INTEGRATION_STEPS)
        self.resample_linear = LocalWarp("bilinear")
        # Bicubic sampling exists in 2-D only; linear sampling would blur what moves.
        self.resample = LocalWarp("bicubic" if spatial_dims == 2 else "bilinear")

    def features(self, image: Tensor) -> Features:
        """The abducted exogenous part e of the factual image (B, C, \\*spatial)."""
        hidden = with_coordinates(image)
        skips = [] if self.full is None else [F.gelu(self.full(hidden))]
        for down, mix in zip(self.down, self.mix, strict=True):
            hidden = F.gelu(down(hidden))
            hidden = hidden + F.gelu(mix(hidden))
            skips.append(hidden)
        stages = [hidden]
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=False):
            hidden = F.interpolate(hidden, size=skip.shape[2:], mode="nearest")
            hidden = F.gelu(up(torch.cat([hidden, skip], dim=1)))
            stages.append(hidden)
        anatomy = None if self.anatomy is None else self.anatomy(hidden)
        if self.training and self.paint is not None and anatomy is not None:
            self._learn_tissues(image, anatomy)
        return Features(stages[len(self.down) - self.grid_stage :], anatomy, image)

    @torch.no_grad()
    def _learn_tissues(self, image: Tensor, anatomy: Tensor) -> None:
        masks = F.one_hot(anatomy.max(1).indices, anatomy.shape[1]).movedim(-1, 1).float().flatten(2)
        with torch.autocast(image.device.type, enabled=False):  # means over many pixels, in full precision
            sums = torch.einsum("bkp,bcp->kc", masks, image.flatten(2).float())
        # Averaged over the processes, so that all of them keep the same means, over the batches of all.
        for running, mean in (
            (self.intensities, sums / (len(masks) * masks.shape[2])),
            (self.pixels, masks.mean((0, 2))[:, None]),
        ):
            running.lerp_(mean_over_processes(mean), MOMENTUM)

    def forward(self, features: Features, parents: Tensor, target: Tensor, sizes: Sizes | None = None) -> Edit:
        """The edit that an action asks for.

        Args:
            features: from :meth:`features`.
            parents: encoded factual parents, shape (B, P).
            target: encoded parents after the action, shape (B, P).
            sizes: factual and wanted values in physical units; without them, nothing is measured.
        """
        ones = [1] * self.spatial_dims
        change = target - parents
        gain, shift = self.film(torch.cat([parents, change], dim=1)).view(len(parents), -1, *ones).chunk(2, dim=1)
        coarse, *finer = features.stages
        where = positional_encoding(coarse, self.frequencies)
        seen = torch.cat([coarse, *_structures(features, coarse), where], dim=1)
        hidden = F.gelu(self.combine(seen) * (1 + gain) + shift)
        hidden = hidden + F.gelu(self.refine(hidden))
        fields = self.velocity_head(hidden).unflatten(1, (self.parent_channels, self.spatial_dims))
        moved = change.masked_fill(self.is_painted, 0)
        if sizes is not None and not self.training:
            moved = self._rescaled(moved, fields, features, sizes)
        velocity = self._velocity(fields, moved)
        gate = (1 + self.gate_head(hidden)).clamp(0, 1)
        if self.paint is None:
            return Edit(velocity, gate)
        for layer, fine in zip(self.paint, finer, strict=True):
            half = hidden
            hidden = F.interpolate(hidden, size=fine.shape[2:], mode="nearest")
            hidden = F.gelu(layer(torch.cat([hidden, fine, *_structures(features, fine)], dim=1)))
        appear = self._resize(self.appear_head(half), hidden.shape[2:]).unflatten(1, (self.parent_channels, -1))
        vanish = self.vanish_head(hidden).unflatten(1, (self.parent_channels, -1))
        bands = self._bands(hidden.shape[2:], change)[:, 0]
        gained, measured = self._gained(change, features, sizes, bands)
        # What appears gets a soft border; what vanishes is painted over together with its soft border.
        mask = mean_near(gained.clamp(min=0)) - max_near(-gained.clamp(max=0))
        anywhere = (change / (change.abs() + SATURATION)).masked_fill(~self.is_painted | measured, 0)
        mask = mask * bands
        amount = anywhere.view(*change.shape, *ones) * bands + mask
        paint = (torch.where(amount[:, :, None] > 0, appear, vanish) * amount[:, :, None]).sum(1)
        return Edit(velocity, gate, paint + self._tissue(mask, features.image), paint, gained)

    def _tissue(self, mask: Tensor, image: Tensor) -> Tensor:
        """Change of intensity that gives gained pixels the mean of their class, (B, C, \\*spatial).

        ``mask`` is the change of the masks, shape (B, P, \\*spatial).
        """
        # A class that has not been seen in training has no mean intensity.
        known = self.pixels > 0
        tissue = torch.where(known, self.intensities / self.pixels.clamp(min=torch.finfo(torch.float32).tiny), 0)
        labels, ones = self.labels, [1] * self.spatial_dims
        gained = (mask.clamp(min=0) * known[labels].view(1, -1, *ones))[:, :, None]
        return (gained * (tissue[labels].view(1, len(labels), -1, *ones) - image[:, None])).sum(1)

    @torch.no_grad()
    def _gained(self, change: Tensor, features: Features, sizes: Sizes | None, bands: Tensor) -> tuple[Tensor, Tensor]:
        """The change of masks that is painted, (B, P, \\*spatial), and for which channels it is known, (B, P)."""
        gained = change.new_zeros(*change.shape, *features.stages[-1].shape[2:])
        measured = torch.zeros_like(change, dtype=torch.bool)
        channels = [channel for channel in self.areas if channel in self.painted]
        if sizes is None or features.anatomy is None or not channels:
            return gained, measured
        anatomy = features.anatomy.float()
        masks = anatomy.softmax(1)
        pixel = self._pixel(masks, bands, sizes)
        usable = ((pixel > 0) & pixel.isfinite())[:, None] & sizes.factual.isfinite()
        measured[:, channels] = (usable & (change != 0))[:, channels]
        rows, columns = measured.nonzero(as_tuple=True)
        if len(rows):
            labels = self.labels[columns]
            own = F.one_hot(labels, anatomy.shape[1]).bool().view(len(rows), -1, *[1] * self.spatial_dims)
            logits, others = anatomy[rows, labels], anatomy[rows].masked_fill(own, -torch.inf).logsumexp(1)
            painted = sorted({self.areas[channel] for channel in channels})
            moved = sorted(set(self.areas.values()) - set(painted))
            factual, wanted = (values[rows, columns] / pixel[rows] for values in (sizes.factual, sizes.wanted))
            lumen = masks[rows][:, moved].sum(1) > 0.5
            # A plaque does not grow over another one.
            taken = masks[rows].masked_fill(own, 0)[:, painted].sum(1) > 0.5
            room = (bands[columns] > 0.5) & ~(taken & (wanted > factual).view(-1, *[1] * self.spatial_dims))
            gained[rows, columns] = growth(logits - others, room, lumen, factual, wanted)
        return gained, measured

    def _pixel(self, masks: Tensor, bands: Tensor, sizes: Sizes) -> Tensor:
        """What a pixel adds to an area, (B,): from all areas together, since that of an absent plaque does not tell."""
        channels = list(self.areas)
        factual, whole = (values[:, channels] for values in (sizes.factual, sizes.whole))
        seen = (masks[:, list(self.areas.values())] * bands[channels]).flatten(2).sum(2)
        pixel = factual.nansum(1) / torch.where(factual.isfinite(), seen, 0).sum(1)
        return torch.where(whole[:, 0].isfinite(), whole[:, 0] / bands[0].numel(), pixel)

    def _velocity(self, fields: Tensor, amount: Tensor) -> Tensor:
        velocity = (fields * amount.view(*amount.shape, 1, *[1] * self.spatial_dims)).sum(1)
        # A field of order one moves anatomy by a tenth of the image.
        return velocity * self._window(velocity) * (0.1 * min(velocity.shape[2:]))

    @torch.no_grad()
    def _rescaled(self, amount: Tensor, fields: Tensor, features: Features, sizes: Sizes) -> Tensor:
        """Factors (B, P) on the fields (B, P, D, \\*grid), rescaled to come nearer to the wanted areas.

        The areas are measured on the label map that the head predicts, moved by the fields.
        """
        channels = [channel for channel in self.areas if channel not in self.painted]
        if features.anatomy is None or not channels:
            return amount
        labels = [self.areas[channel] for channel in channels]
        masks = features.anatomy.float().softmax(1)[:, labels]
        size = masks.shape[2:]
        bands = self._bands(size, masks)[channels, 0]
        before = (masks * bands).flatten(2).mean(2)
        factual, wanted, whole = (values[:, channels] for values in (sizes.factual, sizes.wanted, sizes.whole))
        change = (wanted - factual) / torch.where(whole.isfinite(), whole, factual / before)
        moved = self.resample_linear(masks, self._expand(self._velocity(fields, amount), size))
        ratio = change / ((moved * bands).flatten(2).mean(2) - before)
        scale = ratio.nan_to_num(1, 1, 1).clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
        return amount.index_copy(1, torch.tensor(channels, device=amount.device), amount[:, channels] * scale)

    def blend(self, image: Tensor, counterfactual: Tensor, edit: Edit) -> Tensor:
        """The factual image (B, C, \\*spatial) with the gated change of the HVAE's counterfactual, and the residual."""
        image = image + self._resize(edit.gate, image.shape[2:]) * (counterfactual - image)
        return image if edit.residual is None else (image + edit.residual).clamp(-1, 1)

    def displacement(self, velocity: Tensor, size: Sequence[int]) -> Tensor:
        """exp(v) - id by scaling and squaring, unfolded, in pixels of an image of this size: (B, D, \\*size)."""
        return unfolded(self._expand(velocity, size))

    def _expand(self, velocity: Tensor, size: Sequence[int]) -> Tensor:
        displacement = self.integrate(velocity.float())
        ratio = [(s - 1) / max(g - 1, 1) for s, g in zip(size, velocity.shape[2:], strict=True)]
        displacement = displacement * torch.tensor(ratio, device=velocity.device).view(-1, *[1] * self.spatial_dims)
        return self._resize(displacement, size)

    def warp(self, image: Tensor, displacement: Tensor) -> Tensor:
        """x(p + displacement(p)), clamped to [-1, 1]; a pixel that does not move is copied exactly."""
        warped = self.resample(image.float(), displacement).clamp(-1, 1)
        still = (displacement == 0).all(1, keepdim=True)
        # The copy gives the value, the warped image the gradient: a field that is zero everywhere must be able to grow.
        return torch.where(still, image, warped).detach() + (warped - warped.detach())

    def _resize(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        return F.interpolate(maps, size=tuple(size), mode=mode, align_corners=True)

    def _bands(self, size: Sequence[int], like: Tensor) -> Tensor:
        """Share of each pixel that lies in the region of each channel, (P, 1, *size)."""
        share = like.new_ones(self.parent_channels, 1, *size)
        for channel, (axis, low, high) in self.bands.items():
            length = size[axis]
            row = band_share(torch.arange(length, device=like.device), low * length, high * length)
            share[channel] *= row.view([length if a == axis else 1 for a in range(self.spatial_dims)])
        return share

    def _window(self, velocity: Tensor) -> Tensor:
        """Factor on each component of the velocity that fades it at the image's border, (D, \\*grid)."""
        window = torch.ones(velocity.shape[1:], device=velocity.device)
        for axis, length in enumerate(velocity.shape[2:]):
            position = torch.linspace(0, 1, length, device=velocity.device)
            ramp = (torch.minimum(position, 1 - position) / self.margin).clamp(max=1)
            fading = slice(axis, axis + 1) if axis in self.slip else slice(None)
            window[fading] *= ramp.view([-1 if a == axis else 1 for a in range(self.spatial_dims)])
        return window


def _structures(features: Features, like: Tensor) -> list[Tensor]:
    """The anatomy's probabilities at the resolution of other features, detached: no edit influences the prediction."""
    if features.anatomy is None:
        return []
    return [F.interpolate(features.anatomy.detach().softmax(1), size=like.shape[2:], mode="area")]
