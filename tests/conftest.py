"""For all tests: one thread for each process, since several run side by side."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def no_pictures(monkeypatch):
    """Data preparation draws no pictures, which takes longer than all the rest."""
    for name in ("draw_contact_sheet", "draw_variables"):
        monkeypatch.setattr(f"data_prep.collect.{name}", lambda datalist, path: None)
