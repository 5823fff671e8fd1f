"""Pictures of two discs whose areas are the variables: data for which every figure of an evaluation is known.

A disc of n pixels is the n pixels nearest to its centre, so any whole number of pixels can be hit exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segcft_ext.datalist import Datalist, write_datalist
from segcft_ext.dscm import Counterfactual
from segcft_ext.networks.segmentor import Segmentor

SIZE = 32
CENTRES = {"left": (16.0, 8.0), "right": (16.0, 24.0)}
INTENSITY = (-0.6, 0.2, 0.9)  # background, left, right
LABELS = {"background": 0, "left": 1, "right": 2}
NAMES = ["left_area", "right_area", "age"]


def render(values: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 1, H, W) in [-1, 1] and label maps of areas (B, 2) in percent."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    label = torch.zeros(len(values), 1, SIZE, SIZE, dtype=torch.long)
    for column, (name, (y, x)) in enumerate(CENTRES.items()):
        order = ((rows - y) ** 2 + (columns - x) ** 2 + 1e-3 * rows + 1e-6 * columns).flatten().argsort().argsort()
        pixels = (values[:, column] / 100 * SIZE**2).round()
        label[(order < pixels[:, None]).view(-1, 1, SIZE, SIZE)] = LABELS[name]
    return torch.tensor(INTENSITY)[label], label


def disc_datalist(folder: Path, training: int = 20, test: int = 6, truth: Any = None) -> Datalist:
    """Write a data set: areas of 40 to 120 pixels, the age of every second case missing."""
    rng = np.random.default_rng(0)
    splits: dict[str, list] = {"training": [], "validation": [], "test": []}
    for directory in ("images", "labels"):
        (folder / directory).mkdir(parents=True, exist_ok=True)
    for index in range(training + test):
        values = torch.tensor(rng.integers(40, 121, 2) / SIZE**2 * 100)
        image, label = render(values[None])
        key = f"case{index:03d}"
        grey = ((image[0, 0].numpy() + 1) / 2 * 65535).round().astype(np.uint16)
        Image.fromarray(grey).save(folder / "images" / f"{key}.png")
        Image.fromarray(label[0, 0].numpy().astype(np.uint8)).save(folder / "labels" / f"{key}.png")
        entry = {
            "id": key,
            "source": "discs",
            "image": f"images/{key}.png",
            "label": f"labels/{key}.png",
            "variables": {
                "left_area": float(values[0]),
                "right_area": float(values[1]),
                "age": None if index % 2 else 50.0 + index,
            },
        }
        split = "training" if index < training else "test"
        splits[split].append({**entry, "use": ("guide", "judge")[index % 2]} if split == "training" else entry)
    copy = shutil.copy(folder / splits["test"][0]["image"], folder / "images" / "validation.png")
    splits["validation"] = [{**splits["test"][0], "id": "validation", "image": f"images/{Path(copy).name}"}]
    areas = [
        {
            "name": f"{name}_area",
            "kind": "continuous",
            "unit": "percent",
            "measurement": {"_target_": "segcft_ext.measurements.Area", "label": LABELS[name]},
        }
        for name in CENTRES
    ]
    content = {
        "format_version": 1,
        "name": "discs",
        "image": {"size": [SIZE, SIZE], "intensity_range": [0, 65535]},
        "labels": LABELS,
        "variables": [*areas, {"name": "age", "kind": "continuous", "unit": "years"}],
        "truth": truth,
        **splits,
    }
    return write_datalist(folder / "datalist.json", content)


class DiscJudge(Segmentor):
    """A judge that is always right: it picks the structure whose intensity is nearest."""

    def __init__(self, architecture: str = "BasicUNet") -> None:
        super().__init__(LABELS, architecture, features=(4, 4, 4, 4, 4, 4))

    def forward(self, image: Tensor) -> Tensor:
        distance = torch.stack([(image[:, 0] - level).abs() for level in INTENSITY], 1)
        return super().forward(image) * 0 - distance


class Names:
    names = NAMES


class Oracle:
    """Makes the true counterfactual. ``wrong`` changes the area of the other disc, too, by this number of pixels."""

    variables = Names()

    def __init__(self, wrong: int = 0) -> None:
        self.wrong = wrong

    def counterfactual(
        self, image: Tensor, values: Tensor, do: Mapping[str, Tensor], temperature: float = 0.0
    ) -> Counterfactual:
        values = values.clone()
        for name, target in do.items():
            values[:, NAMES.index(name)] = target
        drawn = values[:, :2].clone()
        if self.wrong and len(do) == 1:
            other = 1 - NAMES.index(next(iter(do)))
            drawn[:, other] += 100 * self.wrong / SIZE**2
        return Counterfactual(render(drawn)[0], values)


class Follower(Oracle):
    """Makes the true counterfactual of a model in which the right disc's area follows the left one's, by a quarter."""

    def counterfactual(
        self, image: Tensor, values: Tensor, do: Mapping[str, Tensor], temperature: float = 0.0
    ) -> Counterfactual:
        if "left_area" in do and "right_area" not in do:
            pixels = ((do["left_area"] - values[:, 0]) / 100 * SIZE**2 / 4).round()
            do = {**do, "right_area": values[:, 1] + 100 * pixels / SIZE**2}
        return super().counterfactual(image, values, do, temperature)
