"""One intensity mapping for all images: linear between the 1st and the 99th percentile of the image's own pixels.

Radiographs come with arbitrary gain and offset (8 bit, 12 bit, windowed or not); the percentiles remove both and are
not moved by burned-in letters or a few dead pixels, which the maximum would be. They are taken before any padding, so
the amount of padding does not change how the anatomy looks. What lies outside is clipped.
"""

from __future__ import annotations

import numpy as np

from data_prep.cases import Rejected

__all__ = ["INTENSITY_RANGE", "PERCENTILES", "to_uint16", "to_unit_range"]

PERCENTILES = (1.0, 99.0)
INTENSITY_RANGE = (0, 65535)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Map an image, before padding, to [0, 1] (float32).

    Raises:
        Rejected: when pixels are not finite, or the percentiles coincide and there is nothing to map.
    """
    pixels = image.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise Rejected("not_finite", f"{int((~np.isfinite(pixels)).sum())} pixels are NaN or infinite")
    low, high = np.percentile(pixels, PERCENTILES)
    if not high > low:
        text = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of the image are both {low:g}"
        raise Rejected("constant_image", text)
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32)


def to_uint16(image: np.ndarray) -> np.ndarray:
    """Store [0, 1] linearly in :data:`INTENSITY_RANGE`."""
    low, high = INTENSITY_RANGE
    return np.round(low + np.clip(image, 0, 1).astype(np.float64) * (high - low)).astype(np.uint16)
