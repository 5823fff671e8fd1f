"""Dictionary transforms that MONAI does not have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform

__all__ = ["RadiographToGreyd"]

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
