"""What a CT scanner makes of tissue: point spread, correlated noise, and the window of a viewer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["WINDOW", "blur", "correlated_noise", "smooth_field", "to_window"]

WINDOW = (-150.0, 750.0)  # HU


def blur(hu: np.ndarray, spacing: Sequence[float], sigma: float) -> np.ndarray:
    """Convolve with a Gaussian point spread of ``sigma`` mm."""
    return gaussian_filter(hu, [sigma / step for step in spacing], mode="nearest", truncate=3.0)


def smooth_field(
    rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], sigma: float | Sequence[float]
) -> np.ndarray:
    """White noise smoothed by ``sigma`` mm (one number, or one for each axis), of unit variance; float32."""
    sigmas = np.broadcast_to(sigma, len(shape)) / np.asarray(spacing)
    field = gaussian_filter(rng.standard_normal(shape, np.float32), sigmas, mode="reflect", truncate=3.0)
    return field / max(float(field.std()), 1e-6)


def correlated_noise(
    rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], deviation: float, sigma: float
) -> np.ndarray:
    """Noise of a reconstruction: ``deviation`` HU, mostly correlated over ``sigma`` mm."""
    fine, coarse = (smooth_field(rng, shape, spacing, s) for s in (sigma, 2.2 * sigma))
    return deviation * (0.85 * fine + 0.53 * coarse)


def to_window(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map HU linearly from ``window`` to [0, 1], clipped; float32."""
    low, high = window
    return np.clip((hu - low) / (high - low), 0, 1).astype(np.float32)
