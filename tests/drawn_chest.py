"""Small drawn chests for the tests of data_prep: an image and one mask for each structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

STRUCTURES = ("left_lung", "right_lung", "heart")


def draw(seed: int = 0, shape: tuple[int, int] = (48, 40)) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An 8-bit image and binary masks (0, 255); the patient's left lung is on the picture's right."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    y, x = rows / shape[0], columns / shape[1]

    def ellipse(cy: float, cx: float, ry: float, rx: float) -> np.ndarray:
        ry, rx = ry * random.uniform(0.9, 1.1), rx * random.uniform(0.9, 1.1)
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    masks = {
        "left_lung": ellipse(0.45, 0.75, 0.3, 0.16),
        "right_lung": ellipse(0.45, 0.25, 0.3, 0.16),
        "heart": ellipse(0.62, 0.54, 0.14, 0.12),
    }
    image = random.normal(180, 6, shape)
    image[masks["left_lung"] | masks["right_lung"]] -= 90
    image[masks["heart"]] = random.normal(210, 6, int(masks["heart"].sum()))
    return image.clip(0, 255).astype(np.uint8), {name: mask.astype(np.uint8) * 255 for name, mask in masks.items()}


def write_case(folder: Path, name: str, seed: int = 0) -> None:
    """Write one case as PNG files below ``folder``."""
    image, masks = draw(seed)
    write_png(folder / "images" / f"{name}.png", image)
    write_masks(folder, name, masks)


def write_masks(folder: Path, name: str, masks: Mapping[str, np.ndarray]) -> None:
    for structure, mask in masks.items():
        write_png(folder / "masks" / structure / f"{name}.png", mask)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
