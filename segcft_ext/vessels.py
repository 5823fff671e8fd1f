"""Reading one straightened vessel for inference.

.. code-block:: python

    load = LoadImaged("image", reader=VesselReader(2), ensure_channel_first=True)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data import NibabelReader, PydicomReader
from monai.utils import MetaKeys
from PIL import Image

from segcft_ext.path_reader import PathReader
from segcft_ext.presentation import is_dicom, raster_pixels

__all__ = ["VesselReader"]


class VesselReader(PathReader):
    """Reads a picture as it is seen, columns first; a NIfTI or DICOM file with its numbers and axes as MONAI does.

    MONAI's own reader of pictures knows no TIFF, and takes the indices of a palette for intensities. Axes of length one
    at the end of a NIfTI array are dropped.

    Args:
        spatial_dims: 2 or 3, as the model's images have.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims

    def get_data(self, img: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Pixels (W, H) or (W, H, C), or voxels, and metadata.

        Raises:
            ValueError: names the file that cannot be read, or has other dimensions.
        """
        try:
            array, meta = self._read(img)
            if array.ndim - (meta[MetaKeys.ORIGINAL_CHANNEL_DIM] == -1) != self.spatial_dims:
                expected = f"{self.spatial_dims} dimensions, as the model's images have"
                raise ValueError(f"found an array of shape {array.shape}, expected {expected}")
        except Exception as error:  # decoders raise whatever they stumble over
            expected = "a picture (PNG, JPEG, TIFF) or NIfTI"
            raise ValueError(f"{img}: cannot be read, expected {expected}: {type(error).__name__}: {error}") from None
        return array, meta | {MetaKeys.SPATIAL_SHAPE: np.array(array.shape[: self.spatial_dims])}

    def _read(self, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
        with path.open("rb") as file:
            head = file.read(132)
        if is_dicom(head):
            dicom = PydicomReader()
            return dicom.get_data(dicom.read(path))
        if path.name.lower().endswith((".nii", ".nii.gz")):
            nifti = NibabelReader()
            array, meta = nifti.get_data(nifti.read(path))
            while array.ndim > self.spatial_dims and array.shape[-1] == 1:
                array = array[..., 0]
            return array, meta | {MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan")}
        with Image.open(path) as image:
            array = np.ascontiguousarray(raster_pixels(image).swapaxes(0, 1))
        return array, {MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if array.ndim == 2 else -1}
