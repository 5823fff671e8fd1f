"""From attenuation to a radiograph: Beer–Lambert, scatter, focal blur, quantum noise, film or detector curve."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["expose"]


def expose(
    attenuation: np.ndarray,
    scatter: np.ndarray,
    noise: np.ndarray,
    exposure: Mapping[str, float],
    supersampling: int,
) -> np.ndarray:
    """Radiograph in [0, 1], bone white.

    The primary beam follows Beer–Lambert, I = exp(-∫ mu ds); scatter adds to it without an image of its own; the
    detector's answer is logarithmic and passes through a window with soft shoulders. There is no normalisation by the
    picture's own content: what changes in one place changes nothing elsewhere.

    Args:
        attenuation: line integrals of the attenuation coefficient, shape (s H, s W).
        scatter: scattered intensity relative to the unattenuated beam, shape (s H, s W).
        noise: standard normal, fixed to the detector, shape (H, W).
        exposure: ``level`` and ``width`` of the window in units of attenuation, ``blur`` as a share of the picture,
            ``noise`` as the share of quantum noise at full intensity, ``gamma``, ``black`` and ``white``.
        supersampling: s, picture elements along a pixel's side.
    """
    primary = np.exp(-attenuation)
    blur = exposure["blur"] * attenuation.shape[0]
    if blur > 0.2:
        primary = gaussian_filter(primary, blur, truncate=3)
    intensity = primary + scatter
    size = intensity.shape[0] // supersampling
    if supersampling > 1:
        intensity = intensity.reshape(size, supersampling, size, supersampling).mean((1, 3))
    # photons arrive as a Poisson process: the variance is proportional to the intensity
    intensity = intensity + exposure["noise"] * np.sqrt(intensity) * noise
    signal = -np.log(np.maximum(intensity, 1e-4))
    position = (signal - exposure["level"]) / exposure["width"]
    curve = 1 / (1 + np.exp(-4 * position))
    grey = exposure["black"] + (exposure["white"] - exposure["black"]) * curve ** exposure["gamma"]
    return np.clip(grey, 0.0, 1.0).astype(np.float32)
