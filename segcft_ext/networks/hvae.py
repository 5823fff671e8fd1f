"""The hierarchical variational autoencoder (HVAE) that is the image's mechanism.

It is a very deep VAE (Child 2021) whose decoder sees the parents at every resolution (De Sousa Ribeiro et al. 2023): a
bottom-up encoder computes features at each resolution, and a top-down decoder adds the information of the latents and
the parents to its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

__all__ = ["HVAE", "Posterior", "discretised_gaussian_log_likelihood"]

BINS = 256
MIN_LOG_SCALE = -7.0


@dataclass(frozen=True)
class Posterior:
    """What the encoder infers from an image and its parents.

    Attributes:
        latents: for each stochastic block, the latent z_l (exogenous prior) or its prior noise (conditional prior).
        mean: mean of the likelihood given latents and parents, shape (B, 1, *spatial).
        log_scale: its log standard deviation, same shape.
        kl: KL(q || p) summed over all latents, for each block at least the free bits, in nats, shape (B,); NaN where it
            was not computed.
    """

    latents: list[Tensor]
    mean: Tensor
    log_scale: Tensor
    kl: Tensor


def discretised_gaussian_log_likelihood(image: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of the bin of width 2 / 255 around each intensity of [-1, 1], in nats, of the image's shape.

    The outermost bins reach to infinity, so the 256 bins of a pixel sum to one (Salimans et al. 2017, with a Gaussian).
    The difference of the two distribution functions is taken in log space on the side of the smaller tail.
    """
    half, inverse_scale = 1 / (BINS - 1), torch.exp(-log_scale)
    centred = image - mean
    lower = torch.where(image <= -1 + half, -torch.inf, (centred - half) * inverse_scale)
    upper = torch.where(image >= 1 - half, torch.inf, (centred + half) * inverse_scale)
    mirrored = centred > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_lower, log_upper = _log_ndtr(lower), _log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1((log_lower - log_upper).clamp(max=-1e-6)))


def _log_ndtr(x: Tensor) -> Tensor:
    # The gradient of log_ndtr at -inf is NaN; -1e4 gives a probability of zero and a finite gradient.
    return torch.special.log_ndtr(x.clamp(-1e4, 1e4))


class ResidualBlock(nn.Module):
    """Pre-activated residual block, modulated by the parents (FiLM, Perez et al. 2018) where they are given.

    The last convolution starts near zero, so that a deep stack starts near the identity.
    """

    def __init__(self, spatial_dims: int, channels: int, parent_channels: int = 0, pointwise: bool = False) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        kernel = 1 if pointwise else 3
        self.first = conv(channels, channels, kernel, padding=kernel // 2)
        self.second = conv(channels, channels, kernel, padding=kernel // 2)
        self.film = nn.Linear(parent_channels, 2 * channels) if parent_channels else None
        nn.init.zeros_(self.second.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor, parents: Tensor | None = None) -> Tensor:
        hidden = self.first(F.gelu(x))
        if self.film is not None and parents is not None:
            gain, shift = self.film(parents).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
            hidden = hidden * (1 + gain) + shift
        return x + self.second(F.gelu(hidden))


class Reduction(nn.Module):
    """Mean over windows that do not overlap; an axis shorter than its window becomes one pixel."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's 3-D pooling refuses windows that are larger than the image.
        window = [min(stride, size) for stride, size in zip(self.stride, x.shape[2:], strict=True)]
        pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
        return pool(x, window, ceil_mode=True)


class StochasticBlock(nn.Module):
    """One stochastic block of the decoder: prior, posterior, and the update of the decoder's state.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the decoder's state and of the encoder's features at this resolution.
        latent_channels: channels of z_l.
        parent_channels: length of the encoded parents.
        conditional_prior: whether the prior sees the parents.
        pointwise: 1 x 1 convolutions, for states of a single pixel.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        latent_channels: int,
        parent_channels: int,
        conditional_prior: bool,
        pointwise: bool,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.conditional_prior = conditional_prior
        self.prior_block = ResidualBlock(
            spatial_dims, channels, parent_channels if conditional_prior else 0, pointwise=pointwise
        )
        self.prior_head = conv(channels, 2 * latent_channels, 1)
        self.merge = conv(2 * channels, channels, 1)
        self.posterior_block = ResidualBlock(spatial_dims, channels, parent_channels, pointwise=pointwise)
        self.posterior_head = conv(channels, 2 * latent_channels, 1)
        self.expand = conv(latent_channels, channels, 1)
        self.output_block = ResidualBlock(spatial_dims, channels, parent_channels, pointwise=pointwise)
        for head in (self.prior_head, self.posterior_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def prior(self, context: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of p(z_l | z_<l) or, for a conditional prior, of p(z_l | z_<l, pa).

        ``context`` is what the prior sees of z_<l; for a conditional prior, the decoder's state, which depends on the
        parents.
        """
        return _normal(self.prior_head(F.gelu(self.prior_block(context, parents))))

    def posterior(self, state: Tensor, features: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z_l | z_<l, x, pa)."""
        merged = self.merge(torch.cat([state, features], dim=1))
        return _normal(self.posterior_head(F.gelu(self.posterior_block(merged, parents))))


def _normal(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of a latent from a head's outputs."""
    # In half precision, the KL of two similar distributions and its gradient would be lost in rounding.
    mean, log_scale = outputs.float().chunk(2, dim=1)
    # Latent scales stay within e^±4, so that neither the KL nor its gradient can overflow.
    return mean, 4 * torch.tanh(log_scale / 4)


class HVAE(nn.Module):
    """Hierarchical VAE of an image given its parents.

    The parameters do not depend on the image size: the decoder starts from a learned vector at the lowest resolution.

    Args:
        parent_channels: length of the encoded parents.
        spatial_dims: 2 or 3.
        channels: width at each resolution, from the image's own to the lowest.
        strides: reduction between each resolution and the next, one fewer than ``channels``; each is a number, or one
            number for each axis (for images that are longer than wide).
        blocks: stochastic blocks at each resolution; 0 makes a resolution deterministic.
        latent_channels: channels of each latent.
        beta: weight of the KL in the negative ELBO (Higgins et al. 2017).
        free_bits: nats per block and image below which the KL costs nothing (Kingma et al. 2016).
        conditional_prior: whether the prior depends on the parents; False makes z exogenous, True a mediator.

    Raises:
        ValueError: when the lengths of channels, strides and blocks disagree.
    """

    def __init__(
        self,
        parent_channels: int,
        spatial_dims: int = 2,
        channels: Sequence[int] = (16, 32, 48, 64, 96, 128, 128),
        strides: Sequence[int | Sequence[int]] = (2, 2, 2, 2, 2, 2),
        blocks: Sequence[int] = (1, 1, 1, 1, 1, 1, 1),
        latent_channels: int = 8,
        beta: float = 3.0,
        free_bits: float = 0.0,
        conditional_prior: bool = False,
    ) -> None:
        super().__init__()
        if not len(channels) == len(blocks) == len(strides) + 1:
            raise ValueError(
                f"HVAE: {len(channels)} channels, {len(blocks)} blocks and {len(strides)} strides were given; "
                "expected one channel and one block count for each resolution and one stride fewer"
            )
        conv = Conv[Conv.CONV, spatial_dims]
        self.spatial_dims = spatial_dims
        self.strides = [ensure_tuple_rep(stride, spatial_dims) for stride in strides]
        self.beta = beta
        self.free_bits = free_bits
        self.conditional_prior = conditional_prior

        self.stem = Convolution(spatial_dims, 1, channels[0], kernel_size=3, conv_only=True)
        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.up = nn.ModuleList()
        lowest = len(channels) - 1
        for level, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            pointwise = level == lowest
            self.encoder.append(
                nn.Sequential(*[ResidualBlock(spatial_dims, width, pointwise=pointwise) for _ in range(max(count, 1))])
            )
            self.decoder.append(
                nn.ModuleList(
                    StochasticBlock(
                        spatial_dims, width, latent_channels, parent_channels, conditional_prior, pointwise=pointwise
                    )
                    for _ in range(count)
                )
            )
            if level < lowest:
                self.down.append(nn.Sequential(Reduction(self.strides[level]), conv(width, channels[level + 1], 1)))
                self.up.append(conv(channels[level + 1], width, 1))
        self.start = nn.Parameter(torch.zeros(1, channels[-1], *[1] * spatial_dims))
        self.last = ResidualBlock(spatial_dims, channels[0], parent_channels)
        self.likelihood = Convolution(spatial_dims, channels[0], 2, kernel_size=3, conv_only=True)
        if spatial_dims == 2:  # on a CPU, pooling and upsampling are then several times as fast
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features at each resolution, the image's own first."""
        features = []
        hidden = self.stem(image)
        for level, blocks in enumerate(self.encoder):
            hidden = blocks(hidden)
            features.append(hidden)
            if level < len(self.down):
                hidden = self.down[level](hidden)
        return features

    def posterior(self, image: Tensor, parents: Tensor, temperature: float = 1.0, with_kl: bool = True) -> Posterior:
        """Infer the latents of a batch and decode them with the same parents.

        Args:
            image: shape (B, 1, *spatial), in [-1, 1].
            parents: encoded parents, shape (B, P).
            temperature: factor on the posterior's standard deviation; 0 gives its mean.
            with_kl: whether to compute the KL; an exogenous prior is needed, and computed, only for that.
        """
        features = self.encode(image)
        latents: list[Tensor] = []
        kl = image.new_full((len(image),), 0.0 if with_kl else torch.nan)

        def infer(block: StochasticBlock, state: Tensor, context: Tensor, level: int) -> Tensor:
            nonlocal kl
            prior = block.prior(context, parents) if with_kl or self.conditional_prior else None
            mean, log_scale = block.posterior(state, features[level], parents)
            latent = mean
            if temperature > 0:
                latent = mean + temperature * log_scale.exp() * torch.randn_like(mean)
            if prior is None:
                latents.append(latent)
                return latent
            prior_mean, prior_log_scale = prior
            divergence = prior_log_scale - log_scale - 0.5
            divergence = divergence + 0.5 * (
                (2 * (log_scale - prior_log_scale)).exp() + ((mean - prior_mean) * (-prior_log_scale).exp()) ** 2
            )
            kl = kl + divergence.flatten(1).sum(1).clamp(min=self.free_bits)
            if self.conditional_prior:
                latents.append((latent - prior_mean) * (-prior_log_scale).exp())
            else:
                latents.append(latent)
            return latent

        mean, log_scale = self._decode(infer, parents, [f.shape[2:] for f in features])
        return Posterior(latents, mean, log_scale, kl)

    def decode(self, latents: Sequence[Tensor], parents: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and log scale of the likelihood given abducted latents and (other) parents.

        Args:
            latents: as in :attr:`Posterior.latents`.
            parents: encoded parents, shape (B, P).
            size: spatial size of the image.
        """
        remaining = iter(latents)

        def recall(block: StochasticBlock, state: Tensor, context: Tensor, level: int) -> Tensor:
            latent = next(remaining)
            if not self.conditional_prior:
                return latent
            mean, log_scale = block.prior(context, parents)
            return mean + log_scale.exp() * latent

        return self._decode(recall, parents, self._sizes(size))

    def sample(self, parents: Tensor, size: Sequence[int]) -> Tensor:
        """Images from the prior: the likelihood's mean for latents drawn from the prior, shape (B, 1, *size)."""

        def draw(block: StochasticBlock, state: Tensor, context: Tensor, level: int) -> Tensor:
            mean, log_scale = block.prior(context, parents)
            return mean + log_scale.exp() * torch.randn_like(mean)

        return self._decode(draw, parents, self._sizes(size))[0].clamp(-1, 1)

    def negative_elbo(self, image: Tensor, posterior: Posterior) -> Tensor:
        """-log p(x | z, pa) + beta KL, in nats per dimension of the image, shape (B,)."""
        log_likelihood = discretised_gaussian_log_likelihood(image, posterior.mean, posterior.log_scale)
        dimensions = image[0].numel()
        return (self.beta * posterior.kl - log_likelihood.flatten(1).sum(1)) / dimensions

    def _sizes(self, size: Sequence[int]) -> list[torch.Size]:
        sizes = [torch.Size(size)]
        for stride in self.strides:
            sizes.append(torch.Size(-(-s // reduction) for s, reduction in zip(sizes[-1], stride)))
        return sizes

    def _decode(
        self,
        latent_of: Callable[[StochasticBlock, Tensor, Tensor, int], Tensor],
        parents: Tensor,
        sizes: Sequence[torch.Size],
    ) -> tuple[Tensor, Tensor]:
        # The parents shape the state, so an exogenous prior has a context of its own, made of the latents alone.
        state = context = self.start.expand(len(parents), -1, *sizes[-1])
        for level in reversed(range(len(self.decoder))):
            for block in cast("Sequence[StochasticBlock]", self.decoder[level]):
                said = block.expand(latent_of(block, state, context, level))
                state = block.output_block(state + said, parents)
                context = state if self.conditional_prior else context + said
            if level > 0:
                up, size = self.up[level - 1], sizes[level - 1]
                state = F.interpolate(up(state), size=size, mode="nearest")
                context = state if self.conditional_prior else F.interpolate(up(context), size=size, mode="nearest")
        hidden = F.gelu(self.last(state, parents))
        # Rounded to half precision, the mean would be off by more than the likelihood's narrowest scales.
        with torch.autocast(hidden.device.type, enabled=False):
            mean, log_scale = self.likelihood(hidden.float()).chunk(2, dim=1)
        return mean, (log_scale - 2).clamp(min=MIN_LOG_SCALE)
