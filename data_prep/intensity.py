"""One intensity mapping for all images: linear between the 1st and the 99th percentile of the image's own pixels.

Radiographs come with arbitrary gain and offset (8 bit, 12 bit, windowed or not). The percentiles remove both and,
unlike the maximum, are not moved by burned-in letters or a few dead pixels. They are taken before any padding, so the
amount of padding does not change how the anatomy looks. Values outside of them are clipped.
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
    if image.dtype in (np.uint8, np.uint16):
        low, high = _percentiles_of_counts(_count(image))
        mapped = np.subtract(image, low, dtype=np.float32)
    else:
        mapped = image.astype(np.float64)
        if not np.isfinite(mapped).all():
            raise Rejected("not_finite", f"{int((~np.isfinite(mapped)).sum())} pixels are NaN or infinite")
        low, high = map(float, np.percentile(mapped, PERCENTILES))
        mapped -= low
    if not high > low:
        text = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of the image are both {low:g}"
        raise Rejected("constant_image", text)
    mapped /= high - low
    return np.clip(mapped, 0, 1, out=mapped).astype(np.float32, copy=False)


def _count(image: np.ndarray) -> np.ndarray:
    """Number of pixels of each value; counted in parts, since numpy converts every pixel to 8 bytes on the way."""
    counts = np.zeros(np.iinfo(image.dtype).max + 1, np.intp)
    for start in range(0, len(image), 64):
        counts += np.bincount(image[start : start + 64].ravel(), minlength=counts.size)
    return counts


def _percentiles_of_counts(counts: np.ndarray) -> list[float]:
    """What :func:`numpy.percentile` gives, from the number of pixels of each value; faster than any sorting."""
    below = np.cumsum(counts)
    ranks = np.array(PERCENTILES) / 100 * (below[-1] - 1)
    first, second = (np.searchsorted(below, np.floor(ranks) + step, side="right") for step in (0, 1))
    return [float(value) for value in first + (ranks % 1) * (np.minimum(second, counts.size - 1) - first)]


def to_uint16(image: np.ndarray) -> np.ndarray:
    """Store [0, 1] linearly in :data:`INTENSITY_RANGE`."""
    low, high = INTENSITY_RANGE
    return np.round(low + np.clip(image, 0, 1).astype(np.float64) * (high - low)).astype(np.uint16)
