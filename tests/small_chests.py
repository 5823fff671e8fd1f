"""A datalist of a few small drawn chests, for running whole stages in a second or two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from drawn_chest import STRUCTURES, draw, write_png

from segcft_ext.datalist import Datalist, write_datalist

LABELS = {"background": 0, "left_lung": 1, "right_lung": 2, "heart": 3}


def small_chests(
    folder: Path,
    size: int = 32,
    training: int = 8,
    validation: int = 3,
    test: int = 3,
    width: int | None = None,
    unit: str = "percent",
) -> Datalist:
    """Write images, label maps and ``datalist.json``; half of the training cases are the judge's.

    Images are ``size`` pixels high and, unless ``width`` is given, square. If ``unit`` is mm2, a pixel has 2 x 2 mm.
    """
    shape = (size, width or size)
    pixel = 4.0 if unit == "mm2" else 100 / (shape[0] * shape[1])
    counts = {"training": training, "validation": validation, "test": test}
    splits: dict[str, list[dict]] = {split: [] for split in counts}
    for seed, split in enumerate(split for split, count in counts.items() for _ in range(count)):
        image, masks = draw(seed, shape)
        label = np.zeros(shape, np.uint8)
        for name in STRUCTURES:
            label[masks[name] > 0] = LABELS[name]
        key = f"case{seed:02d}"
        write_png(folder / "images" / f"{key}.png", image.astype(np.uint16) * 257)
        write_png(folder / "labels" / f"{key}.png", label)
        entry = {
            "id": key,
            "source": "drawn",
            "image": f"images/{key}.png",
            "label": f"labels/{key}.png",
            **({"spacing": [2.0, 2.0]} if unit == "mm2" else {}),
            "variables": {f"{name}_area": pixel * float((label == LABELS[name]).sum()) for name in STRUCTURES}
            | {"age": None if seed % 3 else 40.0 + seed, "sex": seed % 2},
        }
        splits[split].append({**entry, "use": ("guide", "judge")[seed % 2]} if split == "training" else entry)
    areas = [
        {
            "name": f"{name}_area",
            "kind": "continuous",
            "unit": unit,
            "measurement": {"_target_": "segcft_ext.measurements.Area", "label": LABELS[name], "unit": unit},
        }
        for name in STRUCTURES
    ]
    others = [
        {"name": "age", "kind": "continuous", "unit": "years"},
        {"name": "sex", "kind": "binary", "unit": "", "categories": ["F", "M"]},
    ]
    content = {
        "format_version": 1,
        "name": "drawn chests",
        "image": {"size": list(shape), "intensity_range": [0, 65535]},
        "labels": LABELS,
        "variables": areas + others,
        "truth": None,
        **splits,
    }
    return write_datalist(folder / "datalist.json", content)
