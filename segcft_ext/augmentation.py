"""Augmentation of whole batches on the device: one small affine and elastic map for image and label map together.

Drawing the random parameters is separate from applying them. By default nothing is mirrored, since the heart lies on
one side. A straightened vessel may be mirrored across its axis, but must not be rotated: that would tilt it out of its
column. Measured variables must be measured again on the augmented label map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.utils import one_hot
from torch import Tensor

__all__ = ["AugmentationParameters", "BatchAugmentation"]


@dataclass(frozen=True)
class AugmentationParameters:
    """The random parameters drawn for a batch.

    Attributes:
        affine: map from output to input coordinates in [-1, 1], shape (B, D, D + 1).
        elastic: displacement on a coarse grid in the same coordinates, shape (B, D, *grid).
        gamma: exponent of the intensity in [0, 1], shape (B,).
        gain: factor on the intensity around mid-grey, shape (B,).
        bias: offset of the intensity, shape (B,).
    """

    affine: Tensor
    elastic: Tensor
    gamma: Tensor
    gain: Tensor
    bias: Tensor


@dataclass(frozen=True)
class BatchAugmentation:
    """Random affine, elastic and intensity changes of a batch.

    Args:
        rotation: largest rotation in each plane, in degrees.
        scaling: largest relative change of size, drawn for each axis.
        translation: largest shift as a fraction of the image.
        elastic: standard deviation of the elastic displacement as a fraction of the image.
        elastic_grid: control points along each axis.
        gamma: largest absolute log2 of the intensity's exponent.
        contrast: largest relative change of contrast.
        brightness: largest offset of the intensity, on the [-1, 1] scale.
        flip: spatial axes, counted from 0, along each of which a case is mirrored with probability 1/2.
        probability: share of the cases that get an affine and elastic map; the others are mirrored at most. Intensities
            change in all cases.
    """

    rotation: float = 7.0
    scaling: float = 0.12
    translation: float = 0.05
    elastic: float = 0.015
    elastic_grid: int = 5
    gamma: float = 0.3
    contrast: float = 0.15
    brightness: float = 0.1
    flip: Sequence[int] = ()
    probability: float = 0.9

    def draw(self, image: Tensor) -> AugmentationParameters:
        """Draw the parameters for a batch of shape (B, C, *spatial) from the global generator of its device."""
        batch, dims = image.shape[0], image.ndim - 2

        def uniform(*shape: int) -> Tensor:
            return 2 * torch.rand(*shape, device=image.device) - 1

        # exp(skew + diagonal) is a rotation with a change of size in any number of dimensions. The sampling grid runs
        # from -1 to 1 along each axis, so for an image that is not square, the rotation is rescaled to grid units.
        upper = torch.triu(uniform(batch, dims, dims), diagonal=1) * math.radians(self.rotation)
        stretch = torch.diag_embed(uniform(batch, dims) * math.log1p(self.scaling))
        extent = image.new_tensor(image.shape[:1:-1])
        linear = torch.linalg.matrix_exp(upper - upper.mT + stretch) * (extent / extent[:, None])
        shift = 2 * self.translation * uniform(batch, dims, 1)
        elastic = 2 * self.elastic * torch.randn(batch, dims, *([self.elastic_grid] * dims), device=image.device)

        changed = (torch.rand(batch, device=image.device) < self.probability).float()
        unchanged = 1 - changed[:, None, None]
        identity = torch.eye(dims, device=image.device)
        linear = linear + unchanged * (identity - linear)
        for axis in self.flip:
            mirrored = torch.rand(batch, device=image.device) < 0.5
            # The sampling grid names the last axis first.
            linear[:, dims - 1 - axis] *= torch.where(mirrored, -1.0, 1.0)[:, None]
        affine = torch.cat([linear, shift * (1 - unchanged)], dim=-1)
        elastic = elastic * changed.view(-1, *[1] * (dims + 1))
        return AugmentationParameters(
            affine=affine,
            elastic=elastic,
            gamma=2 ** (self.gamma * uniform(batch)),
            gain=1 + self.contrast * uniform(batch),
            bias=self.brightness * uniform(batch),
        )

    @staticmethod
    def apply(parameters: AugmentationParameters, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Apply drawn parameters.

        Args:
            parameters: from :meth:`draw`.
            image: shape (B, 1, *spatial), in [-1, 1].
            label: label map, shape (B, 1, *spatial).

        Returns:
            Image and label map of the same shapes; the label is the most probable one after interpolation.
        """
        size = list(image.shape)
        dims = image.ndim - 2
        grid = F.affine_grid(parameters.affine, size, align_corners=False)
        smooth = "bicubic" if dims == 2 else "trilinear"
        elastic = F.interpolate(parameters.elastic, size=size[2:], mode=smooth, align_corners=True)
        grid = grid + elastic.movedim(1, -1)

        # Bicubic sampling keeps the sharpness that small images cannot spare; it exists in 2-D only.
        sampling = "bicubic" if dims == 2 else "bilinear"
        image = F.grid_sample(image, grid, mode=sampling, padding_mode="border", align_corners=False)
        classes = int(label.max()) + 1
        soft = F.grid_sample(one_hot(label, classes), grid, padding_mode="border", align_corners=False)

        def per_case(values: Tensor) -> Tensor:
            return values.view(-1, *[1] * (dims + 1))

        unit = ((image.clamp(-1, 1) + 1) / 2).pow(per_case(parameters.gamma))
        image = (2 * unit - 1) * per_case(parameters.gain) + per_case(parameters.bias)
        most_probable = soft.max(1, keepdim=True).indices  # on a CPU ten times as fast as argmax
        return image.clamp(-1, 1), most_probable.to(label.dtype)

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and apply."""
        return self.apply(self.draw(image), image, label)
