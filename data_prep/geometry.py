"""One geometry for all images: centred padding to the wanted aspect ratio, then an antialiased resize.

Both resizes are separable and written as a matrix along each axis, with the pixels' *areas* aligned (not their
centres of the corner pixels), so that image and label map stay in register at every size.
"""

from __future__ import annotations

import numpy as np

__all__ = ["fit_image", "fit_label", "fit_spacing", "pad_to_aspect", "padded_shape"]


def padded_shape(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest shape that holds ``shape`` and has the aspect ratio of ``size`` (up to rounding to whole pixels)."""
    height, width = shape
    return max(height, round(width * size[0] / size[1])), max(width, round(height * size[1] / size[0]))


def pad_to_aspect(array: np.ndarray, size: tuple[int, int], value: float = 0) -> np.ndarray:
    """Pad an array (H, W) with ``value`` on both sides equally, to the aspect ratio of ``size``."""
    extra = [target - found for target, found in zip(padded_shape(array.shape[:2], size), array.shape)]
    return np.pad(array, [(e // 2, e - e // 2) for e in extra], constant_values=value)


def fit_image(image: np.ndarray, size: tuple[int, int], fill: float = 0.0) -> np.ndarray:
    """Pad and resize an image (H, W) to ``size``: float32, within the range of the input and ``fill``.

    The filter is a triangle that widens with the reduction (antialiased linear interpolation). Its weights are
    positive and sum to one, so it neither rings nor leaves the range.
    """
    padded = pad_to_aspect(image.astype(np.float32), size, fill)
    rows, columns = (_triangle_weights(n, m) for n, m in zip(padded.shape, size))
    return rows @ padded @ columns.T


def fit_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad (with background) and resize a label map (H, W) to ``size``: uint8.

    Each label's share of the new pixel's exact area is computed and the label with the largest share wins, so a label
    that is not in the input cannot appear. Of equal shares, frequent at a reduction by two, the one of the old pixel in
    the middle wins (then the lower one): always giving them to the background would make every structure smaller.
    """
    padded = pad_to_aspect(label, size)
    rows, columns = (_area_weights(n, m) for n, m in zip(padded.shape, size))
    middle = padded[np.ix_(*(((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(padded.shape, size)))]
    present = np.unique(padded)
    shares = np.stack([rows @ (padded == value).astype(np.float32) @ columns.T for value in present])
    # Rounded, so that rounding errors do not decide a tie.
    shares = np.round(shares, 5) + 1e-4 * (present[:, None, None] == middle)
    return present[np.argmax(shares, axis=0)].astype(np.uint8)


def fit_spacing(
    spacing: tuple[float, float] | None, shape: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float] | None:
    """Pixel spacing (row, column) of what :func:`fit_image` makes of an image of ``shape`` with ``spacing``."""
    if spacing is None:
        return None
    padded = padded_shape(shape, size)
    return spacing[0] * padded[0] / size[0], spacing[1] * padded[1] / size[1]


def _area_weights(found: int, wanted: int) -> np.ndarray:
    """Matrix (wanted, found): the share of new pixel i that is covered by old pixel j."""
    edges = np.linspace(0, found, wanted + 1)
    low, high = edges[:-1, None], edges[1:, None]
    old = np.arange(found)[None, :]
    overlap = np.clip(np.minimum(high, old + 1) - np.maximum(low, old), 0, None)
    return (overlap * wanted / found).astype(np.float32)


def _triangle_weights(found: int, wanted: int) -> np.ndarray:
    """Matrix (wanted, found) of the triangle filter; its half-width is one pixel of the coarser of the two grids."""
    scale = found / wanted
    centres = (np.arange(wanted)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(found)[None, :] + 0.5 - centres) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
