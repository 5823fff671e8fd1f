"""Masks as run-length encoded texts, the counterpart of :mod:`data_prep.rle` that only tests need."""

import numpy as np


def encode_rle(mask: np.ndarray) -> str:
    """``start length …`` of a mask (H, W) of booleans, starts from 1, row-major."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.ravel().astype(np.int8), [0]))))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2]))
