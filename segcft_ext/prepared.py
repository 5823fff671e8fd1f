"""Reading the images and label maps that a datalist lists.

.. code-block:: python

    load = LoadImaged(["image", "label"], reader=PreparedReader((64, 64)), ensure_channel_first=True)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import NibabelReader, PILReader

from segcft_ext.datalist_format import DatalistError
from segcft_ext.path_reader import PathReader

__all__ = ["PreparedReader"]


class PreparedReader(PathReader):
    """Reads PNG files in 2-D and NIfTI files in 3-D; refuses files that are damaged or not as the datalist says.

    Args:
        size: size of images and label maps in pixels.
        label_maps: the files that are label maps.
        values: the values that label maps may hold.
    """

    def __init__(
        self, size: Sequence[int], label_maps: Collection[Path] = frozenset(), values: Collection[int] = ()
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        self.label_maps = frozenset(label_maps)
        self.values = sorted(values)
        self.reader = PILReader(reverse_indexing=False) if len(self.size) == 2 else NibabelReader()

    def get_data(self, img: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Pixels and metadata.

        Raises:
            DatalistError: when the file cannot be read, has another size, holds values that are not finite or, as a
                label map, others than ``values``; names the file.
        """
        try:
            array, meta = self.reader.get_data(self.reader.read(img))
        except Exception as error:  # decoders raise whatever they stumble over
            raise DatalistError(f"{img}: cannot be read: {type(error).__name__}: {error}") from error
        if array.shape != self.size:
            raise DatalistError(f"{img}: found pixels of shape {array.shape}, expected {self.size}")
        if not np.isfinite(array).all():
            raise DatalistError(f"{img}: found values that are not finite, expected finite ones")
        if img in self.label_maps and not np.isin(array, self.values).all():
            unknown = np.setdiff1d(array, self.values)[:5].tolist()
            raise DatalistError(f"{img}: found the labels {unknown}, expected some of {self.values}")
        return array, meta
