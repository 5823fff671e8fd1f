"""One geometry for all images: centred padding to the wanted aspect ratio, then an antialiased resize.

Both resizes (of image and label map) are separable and written as a matrix along each axis. They align the pixels'
*areas* (not the centres of the corner pixels), so that image and label map stay in register at every size. The matrices
are sparse: an old pixel contributes to two or three new ones, so a large image costs little more than reading it once.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from segcft_ext.presentation import padded_shape

__all__ = ["fit_image", "fit_label", "fit_spacing", "pad_to_aspect"]


def pad_to_aspect(array: np.ndarray, size: tuple[int, int], value: float = 0) -> np.ndarray:
    """Pad an array (H, W) with ``value`` on both sides equally, to the aspect ratio of ``size``."""
    extra = [target - found for target, found in zip(padded_shape(array.shape[:2], size), array.shape)]
    if not any(extra):
        return array
    return np.pad(array, [(e // 2, e - e // 2) for e in extra], constant_values=value)


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad with zero and resize an image (H, W) to ``size``: float32, within the range of the input and zero.

    The filter is a triangle that widens with the reduction (antialiased linear interpolation). Its weights are
    positive and sum to one, so it neither rings nor leaves the range.
    """
    rows, columns = (_triangle_weights(n, m) for n, m in zip(padded_shape(image.shape, size), size))
    # Weights of the padding are left out, which is the same as padding.
    rows, columns = (
        weights[:, (extra := weights.shape[1] - n) // 2 : n + extra // 2]
        for weights, n in zip((rows, columns), image.shape)
    )
    return (columns @ (rows @ image.astype(np.float32, copy=False)).T).T


def fit_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pad (with background) and resize a label map (H, W) to ``size``: uint8.

    Each label's share of the new pixel's exact area is computed and the label with the largest share wins, so a label
    that is not in the input cannot appear. Between equal shares, which are frequent when the size is halved, the label
    of the old pixel in the middle wins (else the lower label): giving all ties to the background would make every
    structure smaller.
    """
    padded = pad_to_aspect(label, size)
    rows, columns = (_area_weights(n, m) for n, m in zip(padded.shape, size))
    middle = padded[np.ix_(*(((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(padded.shape, size)))]
    present, shares = [0], [np.ones(size, np.float32)]
    for value in range(1, int(padded.max()) + 1):
        mask = padded == value
        filled = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
        if filled[0].size:
            down, along = (slice(f[0], f[-1] + 1) for f in filled)  # the rest is zero, and most of the image
            present.append(value)
            shares.append((columns[:, along] @ (rows[:, down] @ mask[down, along].astype(np.float32)).T).T)
            shares[0] -= shares[-1]
    # Rounded, so that rounding errors do not decide a tie.
    values = np.array(present)
    chances = np.round(np.stack(shares), 5) + 1e-4 * (values[:, None, None] == middle)
    return values[np.argmax(chances, axis=0)].astype(np.uint8)


def fit_spacing(
    spacing: tuple[float, float] | None, shape: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float] | None:
    """Pixel spacing (row, column) of what :func:`fit_image` makes of an image of ``shape`` with ``spacing``."""
    if spacing is None:
        return None
    padded = padded_shape(shape, size)
    return spacing[0] * padded[0] / size[0], spacing[1] * padded[1] / size[1]


def _area_weights(found: int, wanted: int) -> csr_array:
    """Matrix (wanted, found): the share of new pixel i that is covered by old pixel j."""
    edges = np.linspace(0, found, wanted + 1)
    low, high = edges[:-1, None], edges[1:, None]
    old = np.floor(low).astype(int) + np.arange(int(found / wanted) + 3)
    overlap = np.clip(np.minimum(high, old + 1) - np.maximum(low, old), 0, None)
    return _band_matrix(overlap * wanted / found, old, found)


def _triangle_weights(found: int, wanted: int) -> csr_array:
    """Matrix (wanted, found) of the triangle filter; its half-width is one pixel of the coarser of the two grids."""
    scale = found / wanted
    half = max(scale, 1.0)
    centres = (np.arange(wanted)[:, None] + 0.5) * scale
    old = np.floor(centres - half).astype(int) + np.arange(int(2 * half) + 2)
    weights = np.clip(1 - np.abs(old + 0.5 - centres) / half, 0, None) * ((old >= 0) & (old < found))
    return _band_matrix(weights / weights.sum(1, keepdims=True), old, found)


def _band_matrix(weights: np.ndarray, columns: np.ndarray, width: int) -> csr_array:
    """Sparse matrix of ``width`` columns with the ``weights`` of each row at its ``columns``, less those outside."""
    inside = (columns >= 0) & (columns < width) & (weights > 0)
    starts = np.concatenate([[0], np.cumsum(inside.sum(1))])
    return csr_array((weights[inside].astype(np.float32), columns[inside], starts), shape=(len(weights), width))
