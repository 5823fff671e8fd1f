"""Dictionary transforms that MONAI does not have."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.blocks import Warp
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import convert_to_tensor

__all__ = ["AlongVesselFirstd", "CounterfactualToOriginald", "RadiographToGreyd", "VesselIntensityd"]

PHOTOMETRIC_INTERPRETATION = "00280004"


class RadiographToGreyd(MapTransform):
    """One grey channel, bright where the rays are stopped, from a radiograph of any kind.

    Colour pictures are averaged over their colours, transparency is left out, and DICOM images that are stored with the
    lowest value shown white (MONOCHROME1) are inverted. The latter needs ``prune_metadata=False`` in MONAI's
    ``PydicomReader``; the channel is the first dimension.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if image.shape[0] > 1:
                colours = image.shape[0] - (image.shape[0] in (2, 4))
                image = image[:colours].mean(0, keepdim=True)
            interpretation = getattr(image, "meta", {}).get(PHOTOMETRIC_INTERPRETATION, {})
            if interpretation.get("Value") == ["MONOCHROME1"]:
                image = image.max() + image.min() - image
            d[key] = image
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
            low, high = self.window if d[key].min() < 0 else (0, 255 if d[key].max() < 256 else 65535)
            d[key] = (2 * (d[key] - low) / (high - low) - 1).clip(-1, 1)
        return d


class CounterfactualToOriginald(Transform):
    """Counterfactuals of an image (2-D) at its own size, from what the model does at its size.

    .. math:: \\tilde{x} = \\mathrm{clamp}(x \\circ \\phi + r, -1, 1)

    Detail that is too fine for the model is moved along with the deformation phi instead of being lost. What no
    deformation explains is the residual r. Both are to be brought back by ``Invertd`` before.

    Takes ``original`` (1, W, H), ``residual`` (S, W, H) and ``displacement`` (2 S, W, H); adds ``pred_original`` and
    ``difference_original``, both (S, W, H).

    Args:
        size: size of the model's images, whose pixels are the unit of the displacement, and whose axes are those of the
            file in reverse order.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = size
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample")
            self.warp = Warp("bicubic", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image, residual, displacement = (
            convert_to_tensor(data[key], track_meta=False, device="cpu")
            for key in ("original", "residual", "displacement")
        )
        field = displacement.unflatten(0, (len(residual), 2)).flip(1) * (max(image.shape) / max(self.size))
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
