"""Where tests look for real data: folders that the environment names, or ``shared/data`` beside the repository."""

import os
from pathlib import Path

import pytest

__all__ = ["CHEXMASK", "CXR", "needs_radiographs"]

SHARED = Path(__file__).parents[2] / "shared" / "data"
CXR = Path(os.environ.get("SEGCFT_CXR") or SHARED / "cxr")
CHEXMASK = Path(os.environ.get("SEGCFT_CHEXMASK") or SHARED / "chexmask" / "Padchest.csv")

needs_radiographs = pytest.mark.skipif(
    not (CXR / "cases.csv").is_file(), reason="no real radiographs: set SEGCFT_CXR to their folder"
)
