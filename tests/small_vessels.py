"""A datalist of a few small drawn vessels, straightened: longer than wide, plaques in some, areas in mm²."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from drawn_chest import write_png

from segcft_ext.datalist import Datalist, write_datalist

LABELS = {"background": 0, "lumen": 1, "calcified_plaque": 2, "noncalcified_plaque": 3}
HU = (-100, 350, 900, 60)
WINDOW = (-150, 750)


def draw_vessel(seed: int, size: tuple[int, ...] = (64, 16)) -> tuple[np.ndarray, np.ndarray]:
    """HU and label map of one vessel along the first axis; even seeds have a calcified plaque, every third seed has a
    non-calcified one."""
    random = np.random.default_rng(seed)
    along, *across = np.meshgrid(*(np.linspace(-1, 1, s) for s in size), indexing="ij")
    distance = np.sqrt(sum(a**2 for a in across))
    radius = random.uniform(0.3, 0.5) * (1 - 0.2 * along)
    label = (distance < radius).astype(np.uint8)
    for value, present in ((2, seed % 2 == 0), (3, seed % 3 == 0)):
        near = np.abs(along - random.uniform(-0.7, 0.7)) < random.uniform(0.1, 0.2)
        if present:
            label[near & (distance > radius - 0.1) & (distance < radius + 0.3) & (across[0] > 0)] = value
    return np.array(HU, float)[label] + random.normal(0, 15, size), label


def stored(hu: np.ndarray) -> np.ndarray:
    """HU mapped from the window to the full range of 16 bits."""
    share = (hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    return (share.clip(0, 1) * 65535).round().astype(np.uint16)


def write_nifti(path: Path, voxels: np.ndarray, spacing: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([spacing] * 3 + [1])), path)


def small_vessels(
    folder: Path, size: tuple[int, ...] = (64, 16), training: int = 8, validation: int = 3, test: int = 3
) -> Datalist:
    """Write images, label maps and ``datalist.json``, 2-D or 3-D; half of the training cases are the judge's."""
    dims = len(size)
    write, suffix = (write_png, ".png") if dims == 2 else (write_nifti, ".nii.gz")
    unit, quantity = f"mm{dims}", "area" if dims == 2 else "volume"
    splits: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    counts = (training, validation, test)
    for seed, split in enumerate(split for split, count in zip(splits, counts) for _ in range(count)):
        hu, label = draw_vessel(seed, size)
        key = f"vessel{seed:02d}"
        spacing = [0.4 + 0.01 * seed, *[0.25] * (dims - 1)]
        write(folder / "images" / f"{key}{suffix}", stored(hu))
        write(folder / "labels" / f"{key}{suffix}", label)
        entry = {
            "id": key,
            "source": "drawn",
            "image": f"images/{key}{suffix}",
            "label": f"labels/{key}{suffix}",
            "spacing": spacing,
            "variables": {
                f"{name}_{quantity}": float((label == value).sum() * np.prod(spacing))
                for name, value in LABELS.items()
                if value
            },
        }
        # uses alternate in pairs, so that both see every kind of plaque
        splits[split].append({**entry, "use": ("guide", "judge")[seed // 2 % 2]} if split == "training" else entry)
    variables = [
        {
            "name": f"{name}_{quantity}",
            "kind": "continuous",
            "unit": unit,
            "measurement": {"_target_": "segcft_ext.measurements.Area", "label": value, "unit": unit},
        }
        for name, value in LABELS.items()
        if value
    ]
    content = {
        "format_version": 1,
        "name": "drawn vessels",
        "image": {"size": list(size), "intensity_range": [0, 65535]},
        "labels": LABELS,
        "variables": variables,
        "truth": None,
        **splits,
    }
    return write_datalist(folder / "datalist.json", content)
