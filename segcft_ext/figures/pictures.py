"""Turning an image into a 2-D picture, and a figure into a file."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from segcft_ext.folders import write_atomically

__all__ = ["picture", "save_figure", "to_png"]

DPI = 160


def picture(image: Tensor | np.ndarray, axis: int | None = None) -> np.ndarray:
    """An image (1, *spatial) or (*spatial) as (H, W); of a volume, the middle slice across an axis.

    It is the shortest axis by default. For a straightened vessel, that is a longitudinal cut; for a cube, the slice
    across the first axis.
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim < 3:
        return array
    axis = int(np.argmin(array.shape)) if axis is None else axis
    return array.take(array.shape[axis] // 2, axis)


def to_png(figure: Figure, dpi: int | None = None) -> bytes:
    """The figure as a PNG without matplotlib's version or a date in it, so that equal pictures give equal files.

    It has ``dpi`` dots per inch, by default :data:`DPI`.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi or DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int | None = None) -> Path:
    """Write a figure as a PNG file, atomically; ``dpi`` as in :func:`to_png`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    png = to_png(figure, dpi)
    write_atomically(path, lambda file: file.write(png))
    return path
