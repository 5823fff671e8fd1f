"""Base of the image readers: it keeps MONAI from trying other readers on a file that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.data import ImageReader
from monai.utils import ensure_tuple

__all__ = ["PathReader"]


class PathReader(ImageReader):
    """A reader for MONAI's ``LoadImage`` that does all its work in ``get_data``, from the path."""

    def verify_suffix(self, filename: Any) -> bool:
        return True

    def read(self, data: Any, **kwargs: Any) -> Path:
        """Only the path: on an error here, LoadImage would try other readers, which read differently."""
        (path,) = map(Path, ensure_tuple(data))
        return path
