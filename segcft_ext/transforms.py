"""Dictionary transforms that MONAI does not have."""

from __future__ import annotations

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
    ScaleIntensityRangePercentiles,
    Transform,
)
from monai.utils import convert_to_tensor

from segcft_ext.command_line import check_booleans
from segcft_ext.networks.warping import LocalWarp
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


class RadiographToGreyd(MapTransform):
    """One grey channel, the first dimension: colours are averaged, transparency is left out."""

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
    """Intensities of a radiograph to [-1, 1], as ``data_prep`` maps them: linear between the 1st and 99th percentile.

    That holds for what :class:`segcft_ext.radiographs.RadiographReader` reads.

    Args:
        keys: the images.
        prepared: they are images that ``data_prep`` wrote, phantoms among them. Their mapping is done, and the full
            range of 8 or 16 bits stands for [-1, 1].

    Raises:
        ValueError: when ``prepared`` is neither True nor False.
    """

    def __init__(self, keys: KeysCollection, prepared: bool = False) -> None:
        super().__init__(keys)
        check_booleans(prepared=prepared)
        self.prepared = prepared
        self.stretch = ScaleIntensityRangePercentiles(1, 99, -1.0, 1.0, clip=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            full = ScaleIntensityRange(0, _full_range(d[key]), -1.0, 1.0, clip=True)
            d[key] = full(d[key]) if self.prepared else self.stretch(d[key])
        return d


class PadToAspect(Pad):
    """Pad on both sides equally to the aspect ratio of a size, up to rounding to whole pixels, as ``data_prep`` does.

    Args:
        size: with the wanted aspect ratio, one number for each axis.
        value: of the padding.
    """

    def __init__(self, size: Sequence[int], value: float = 0.0) -> None:
        super().__init__(value=value)
        self.size = tuple(size)

    def compute_pad_width(self, spatial_shape: Sequence[int]) -> Any:
        wanted = [max(round(n * own / s) for n, s in zip(spatial_shape, self.size)) for own in self.size]
        extra = [max(target - n, 0) for target, n in zip(wanted, spatial_shape)]
        return ((0, 0), *((e // 2, e - e // 2) for e in extra))


class PadToAspectd(Padd):
    """Dictionary version of :class:`PadToAspect`; ``Invertd`` undoes it."""

    def __init__(self, keys: KeysCollection, size: Sequence[int], value: float = 0.0) -> None:
        super().__init__(keys, PadToAspect(size, value))


class ResizedSpacingd(MapTransform):
    """Adds ``spacing`` (D,): the pixel spacing in mm that an image will have when it has been resized.

    Without a given spacing it is that of the file's header, if :class:`segcft_ext.radiographs.RadiographReader` found
    one there; where there is none, nothing is added.

    Args:
        keys: the image, its axes in the order of ``size`` and ``spacing``.
        size: to which it will be resized.
        spacing: of the image as it is, in mm along each axis; wins over the header.

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
    """The axis along a straightened vessel first, however the file orders its axes; ``Invertd`` undoes it.

    A straightened vessel has more samples along than across. MONAI reads the columns of a PNG first, so that there the
    vessel lies along the second axis, and the first axis of a NIfTI file as it is.

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
    """Intensities of a straightened CT image to [-1, 1], however they are stored.

    Hounsfield units, told by negative values (there is fat around every vessel), are cut to the window; other
    intensities are taken for that window stored over the full range of 8 or 16 bits, as ``data_prep`` writes it.

    Args:
        keys: the images.
        window: lowest and highest HU.
    """

    def __init__(self, keys: KeysCollection, window: Sequence[float] = (-150.0, 750.0)) -> None:
        super().__init__(keys)
        self.window = window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            low, high = self.window if d[key].min() < 0 else (0, _full_range(d[key]))
            d[key] = (2 * (d[key] - low) / (high - low) - 1).clip(-1, 1)
        return d


def _full_range(image: torch.Tensor) -> int:
    """The highest value that the file of an image can hold."""
    return 255 if image.max() < 256 else 65535


class CounterfactualToOriginald(Transform):
    """Counterfactuals of an image at its own size, from what the model does at its size.

    .. math:: \\tilde{x} = \\mathrm{clamp}(x \\circ \\phi + r, -1, 1)

    Detail that is too fine for the model is moved along with the deformation phi instead of being lost. What no
    deformation explains is the residual r. Both are to be brought back by ``Invertd`` before.

    Takes ``original`` (1, *spatial), ``residual`` (S, *spatial) and ``displacement`` (S D, *spatial), all with the axes
    of the file; adds ``pred_original`` and ``difference_original``, both (S, *spatial).

    Args:
        size: size of the model's images, whose pixels are the unit of the displacement.
        along_vessel: the axes of the model's images are those that :class:`AlongVesselFirstd` makes of the file's, and
            the whole image was resized; otherwise they are those of the file in reverse order, and it was padded to the
            aspect ratio of ``size`` before.
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
        return {**data, **added}

    def _geometry(self, shape: Sequence[int]) -> tuple[list[int], list[float]]:
        """For each axis of the model's images the axis of the file, and how many of its pixels one pixel spans."""
        axes = list(range(len(shape)))
        if self.along_vessel:
            axes.insert(0, axes.pop(list(shape).index(max(shape))))
        else:
            axes.reverse()
        scale = [shape[axis] / m for axis, m in zip(axes, self.size)]
        return axes, scale if self.along_vessel else [max(scale)] * len(axes)
