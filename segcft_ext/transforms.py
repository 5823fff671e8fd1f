"""Dictionary transforms that MONAI does not have."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    Pad,
    Padd,
    ScaleIntensityRange,
    Transform,
)
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import convert_to_tensor

from segcft_ext.command_line import check_booleans
from segcft_ext.networks.warping import LocalWarp
from segcft_ext.presentation import padded_shape
from segcft_ext.radiographs import PIXEL_SPACING

__all__ = [
    "AlongVesselFirstd",
    "CounterfactualToOriginald",
    "PadToAspect",
    "PadToAspectd",
    "RadiographIntensityd",
    "RadiographToGreyd",
    "ResizedSpacingd",
    "VesselIntensityd",
]

MOST_PADDING = 16
"""How many times as many pixels a padded image may have as the image itself."""


class RadiographToGreyd(MapTransform):
    """Convert images (C, *spatial) to one grey channel: colours are averaged, transparency is dropped."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if image.shape[0] > 1:
                colours = image.shape[0] - (image.shape[0] in (2, 4))
                image = image[:colours].mean(0, keepdim=True)
            d[key] = image
        return d


class RadiographIntensityd(MapTransform):
    """Map a radiograph's intensities to [-1, 1] as ``data_prep`` does: linearly from the 1st to the 99th percentile.

    The two agree for images read by :class:`segcft_ext.radiographs.RadiographReader`.

    Args:
        keys: the images.
        prepared: whether ``data_prep`` wrote the images, as it does phantoms. They are mapped already: their full range
            of 8 or 16 bits stands for [-1, 1].

    Raises:
        ValueError: when ``prepared`` is neither True nor False; when an image holds NaN or infinity, or is constant up
            to one percent of its pixels at either end.
    """

    def __init__(self, keys: KeysCollection, prepared: bool = False) -> None:
        super().__init__(keys)
        check_booleans(prepared=prepared)
        self.prepared = prepared

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            _check_intensities(key, d[key])
            plain = convert_to_tensor(d[key], track_meta=False)
            limits: Any = (0, _full_range(plain)) if self.prepared else [percentile(plain, share) for share in (1, 99)]
            low, high = limits
            if not low < high:
                raise ValueError(f"{key}: found {low:g} as 1st and as 99th percentile of the intensities, expected two")
            d[key] = ScaleIntensityRange(low, high, -1.0, 1.0, clip=True)(d[key])
        return d


class PadToAspect(Pad):
    """Pad equally on both sides to the aspect ratio of a size, up to rounding to whole pixels, as ``data_prep`` does.

    Args:
        size: a size with the wanted aspect ratio, one number for each axis.
        value: intensity of the padding.

    Raises:
        ValueError: when an image is so long and thin that hardly anything would be left of it in that size.
    """

    def __init__(self, size: Sequence[int], value: float = 0.0) -> None:
        super().__init__(value=value)
        self.size = tuple(size)

    def compute_pad_width(self, spatial_shape: Sequence[int]) -> Any:
        padded = padded_shape(spatial_shape, self.size)
        if math.prod(padded) > MOST_PADDING * math.prod(spatial_shape):
            raise ValueError(
                f"found an image of shape {tuple(spatial_shape)}, expected one of about the proportions of {self.size}"
            )
        extra = [target - n for target, n in zip(padded, spatial_shape)]
        return ((0, 0), *((e // 2, e - e // 2) for e in extra))


class PadToAspectd(Padd):
    """Dictionary version of :class:`PadToAspect`; ``Invertd`` undoes it."""

    def __init__(self, keys: KeysCollection, size: Sequence[int], value: float = 0.0) -> None:
        super().__init__(keys, PadToAspect(size, value))


class ResizedSpacingd(MapTransform):
    """Adds ``spacing`` (D,): the pixel spacing in mm that an image will have after it has been resized.

    It is computed from the given spacing, or else from that of the file's header, if
    :class:`segcft_ext.radiographs.RadiographReader` found one there. Where there is neither, nothing is added.

    Args:
        keys: the image, its axes in the order of ``size`` and ``spacing``.
        size: size to which the image will be resized.
        spacing: spacing of the image before, in mm along each axis; overrides the header.

    Raises:
        ValueError: when the spacing is not one positive number for each axis.
    """

    def __init__(self, keys: KeysCollection, size: Sequence[int], spacing: Sequence[float] | None = None) -> None:
        super().__init__(keys)
        self.size = size
        self.spacing = spacing
        if spacing is None:
            return
        numbers = list(spacing) if isinstance(spacing, (list, tuple)) else []
        if len(numbers) != len(size) or not all(isinstance(n, (int, float)) and n > 0 for n in numbers):
            raise ValueError(f"spacing: found {spacing!r}, expected {len(size)} positive numbers, mm along each axis")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            spacing = self.spacing or getattr(d[key], "meta", {}).get(PIXEL_SPACING)
            if spacing is not None:
                shape = d[key].shape[1:]
                d["spacing"] = torch.tensor([mm * n / m for mm, n, m in zip(spacing, shape, self.size)])
        return d


class AlongVesselFirstd(MapTransform, InvertibleTransform):
    """Move the axis along a straightened vessel to the front, however the file orders its axes; ``Invertd`` undoes it.

    A straightened vessel has more samples along than across. MONAI reads a PNG columns first, so that the vessel lies
    along the second axis, and keeps the order of the axes of a NIfTI file.

    Raises:
        ValueError: when no axis is longer than all others.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            size = list(d[key].shape[1:])
            if size.count(max(size)) > 1:
                raise ValueError(f"{key}: found size {size}, expected a straightened vessel, longer than it is wide")
            axis = 1 + size.index(max(size))
            d[key] = d[key].movedim(axis, 1)
            self.push_transform(d[key], extra_info={"axis": axis})
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            axis = self.pop_transform(d[key])["extra_info"]["axis"]
            d[key] = d[key].movedim(1, axis)
        return d


class VesselIntensityd(MapTransform):
    """Map the intensities of a straightened CT image to [-1, 1], however they are stored.

    Hounsfield units, recognised by negative values (there is fat around every vessel), are clipped to the window; other
    intensities are assumed to be that window over the full range of 8 or 16 bits, as ``data_prep`` writes it.

    Args:
        keys: the images.
        window: lowest and highest intensity in HU.

    Raises:
        ValueError: when an image holds NaN or infinity, or is constant.
    """

    def __init__(self, keys: KeysCollection, window: Sequence[float] = (-150.0, 750.0)) -> None:
        super().__init__(keys)
        self.window = window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            _check_intensities(key, d[key])
            low, high = self.window if d[key].min() < 0 else (0, _full_range(d[key]))
            d[key] = (2 * (d[key] - low) / (high - low) - 1).clip(-1, 1)
        return d


def _check_intensities(key: Hashable, image: torch.Tensor) -> None:
    low, high = float(image.min()), float(image.max())  # NaN if any pixel is
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{key}: found intensities from {low:g} to {high:g}, expected finite ones that differ")


def _full_range(image: torch.Tensor) -> int:
    """The highest value that the file of an image can hold."""
    return 255 if image.max() < 256 else 65535


class CounterfactualToOriginald(Transform):
    """Counterfactuals of an image at its original size, from those at the model's size.

    .. math:: \\tilde{x} = \\mathrm{clamp}(x \\circ \\phi + r, -1, 1)

    Detail that is too fine for the model is moved along with the deformation phi instead of being lost. The residual r
    is the change that the deformation does not explain. ``Invertd`` must have mapped both back to the file's geometry.

    Takes ``original`` (1, *spatial), ``residual`` (S, *spatial) and ``displacement`` (S D, *spatial), all with the axes
    of the file; adds ``pred_original`` and ``difference_original``, both (S, *spatial), and ``detailed``
    (1 + S, *spatial'): the image and its counterfactuals with the axes and aspect ratio of the model's images.

    Args:
        size: size of the model's images, whose pixels are the unit of the displacement.
        along_vessel: True if :class:`AlongVesselFirstd` ordered the axes of the model's images and the whole image was
            resized; False if the axes are those of the file in reverse order and the image was padded to the aspect
            ratio of ``size`` before it was resized.
    """

    def __init__(self, size: Sequence[int], along_vessel: bool = False) -> None:
        self.size = tuple(size)
        self.along_vessel = along_vessel
        self.warp = LocalWarp("bicubic" if len(self.size) == 2 else "bilinear")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image, residual, displacement = (
            convert_to_tensor(data[key], track_meta=False, device="cpu")
            for key in ("original", "residual", "displacement")
        )
        axes, scale = self._geometry(image.shape[1:])
        field = displacement.unflatten(0, (len(residual), len(axes)))
        field = torch.stack([field[:, axes.index(axis)] * scale[axes.index(axis)] for axis in range(len(axes))], dim=1)
        moved = self.warp(image.expand(len(residual), *image.shape), field)[:, 0]
        moved = torch.where((field == 0).all(1), image, moved)
        pred = (moved + residual).clamp(-1, 1)
        added: dict[Hashable, Any] = {
            "pred_original": MetaTensor(pred),
            "difference_original": MetaTensor(pred - image),
        }
        if isinstance(data["original"], MetaTensor):
            for value in added.values():
                value.copy_meta_from(data["original"])
        upright = torch.cat([image, pred]).permute(0, *(1 + axis for axis in axes))
        return {**data, **added, "detailed": upright if self.along_vessel else PadToAspect(self.size, -1.0)(upright)}

    def _geometry(self, shape: Sequence[int]) -> tuple[list[int], list[float]]:
        """For each axis of the model's images the axis of the file, and how many of the file's pixels a pixel spans."""
        axes = list(range(len(shape)))
        if self.along_vessel:
            axes.insert(0, axes.pop(list(shape).index(max(shape))))
        else:
            axes.reverse()
        scale = [shape[axis] / m for axis, m in zip(axes, self.size)]
        return axes, scale if self.along_vessel else [max(scale)] * len(axes)
