"""From attenuation to a radiograph: Beer–Lambert, scatter, focal blur, quantum noise, detector curve; a marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from data_prep.chest_anatomy import ramp, segment

__all__ = ["expose", "lead_letter", "shutter"]

_STROKES = {
    "R": [((0.0, 0.0), (0.0, 1.0)), ((0.0, 0.0), (0.5, 0.05)), ((0.5, 0.05), (0.5, 0.45)), ((0.5, 0.45), (0.0, 0.5)),
          ((0.2, 0.5), (0.55, 1.0))],
    "L": [((0.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (0.55, 1.0))],
}  # fmt: skip


def expose(
    attenuation: np.ndarray,
    scatter: np.ndarray,
    noise: np.ndarray,
    exposure: Mapping[str, float],
    supersampling: int,
) -> np.ndarray:
    """Radiograph in [0, 1], bone white.

    The primary beam follows Beer–Lambert, I = exp(-∫ mu ds); scatter adds to it without an image of its own; the
    detector's response is logarithmic and passes through a window with soft shoulders. There is no normalisation by the
    picture's own content, so that a change in one place changes nothing elsewhere.

    Args:
        attenuation: line integrals of the attenuation coefficient, shape (s H, s W).
        scatter: scattered intensity relative to the unattenuated beam, shape (s H, s W).
        noise: standard normal, fixed to the detector, shape (H, W).
        exposure: ``level`` and ``width`` of the window in units of attenuation, ``blur`` (standard deviation of the
            focal spot's shadow as a share of the picture), ``noise`` (standard deviation at full intensity), ``gamma``,
            ``black`` and ``white``.
        supersampling: s, number of samples along each side of a pixel.
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
    curve = (1 / (1 + np.exp(-4 * position))) ** exposure["gamma"]
    grey = exposure["black"] + (exposure["white"] - exposure["black"]) * curve
    return np.clip(grey, 0.0, 1.0).astype(np.float32)


def lead_letter(size: int, letter: str, x: float, y: float, height: float) -> np.ndarray:
    """Attenuation of a lead letter ("R" or "L") whose upper left corner lies at (x, y), float32 (size, size).

    ``x``, ``y`` and ``height`` are shares of the picture's side.
    """
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    across, down = (centres[None, :] - x) / height, (centres[:, None] - y) / height
    total = np.zeros((size, size), np.float32)
    for start, end in _STROKES[letter]:
        _, distance = segment(across, down, start, end)
        total = np.maximum(total, ramp(0.09 - distance, 0.08 + 1 / (size * height)))
    return 6 * total


def shutter(image: np.ndarray, margins: Sequence[float]) -> np.ndarray:
    """Black out what a shutter's leaves cover.

    Args:
        image: the radiograph, shape (H, W).
        margins: width of the top, bottom, left and right leaf as a share of the picture's side.
    """
    height, width = image.shape
    top, bottom, left, right = (round(m * n) for m, n in zip(margins, (height, height, width, width)))
    covered = np.zeros_like(image)
    covered[top : height - bottom, left : width - right] = image[top : height - bottom, left : width - right]
    return covered
