"""Reading one straightened vessel for inference.

.. code-block:: python

    load = LoadImaged("image", reader=VesselReader(), ensure_channel_first=True)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data import NibabelReader, PydicomReader
from PIL import Image

from segcft_ext.path_reader import PathReader
from segcft_ext.presentation import is_dicom, raster_pixels

__all__ = ["VesselReader"]


class VesselReader(PathReader):
    """Reads a picture as it is seen, columns first; a NIfTI or DICOM file with its numbers and axes as MONAI does.

    MONAI's own reader of pictures knows no TIFF, and takes the indices of a palette for intensities.
    """

    def get_data(self, img: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Pixels (W, H) or (W, H, C), or voxels, and metadata.

        Raises:
            ValueError: names the file that cannot be read.
        """
        try:
            with img.open("rb") as file:
                head = file.read(132)
            if is_dicom(head):
                dicom = PydicomReader()
                return dicom.get_data(dicom.read(img))
            if img.name.lower().endswith((".nii", ".nii.gz")):
                nifti = NibabelReader()
                return nifti.get_data(nifti.read(img))
            with Image.open(img) as image:
                array = np.ascontiguousarray(raster_pixels(image).swapaxes(0, 1))
        except Exception as error:  # decoders raise whatever they stumble over
            expected = "a picture (PNG, JPEG, TIFF) or NIfTI"
            raise ValueError(f"{img}: cannot be read, expected {expected}: {type(error).__name__}: {error}") from None
        channel = float("nan") if array.ndim == 2 else -1
        return array, {"spatial_shape": np.array(array.shape[:2]), "original_channel_dim": channel}
