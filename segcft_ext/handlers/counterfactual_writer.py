"""Writing the results of inference: counterfactual images, differences, a figure, and the variables as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from PIL import Image
from torch import Tensor

from segcft_ext.dscm import DSCM
from segcft_ext.engines.counterfactual_evaluator import CounterfactualEvaluator
from segcft_ext.figures import Panel, counterfactual_grid, picture, sample_grid, save_figure
from segcft_ext.folders import write_json_atomically
from segcft_ext.image_files import image_stem
from segcft_ext.interventions import parse_intervention
from segcft_ext.wording import quantity, words

__all__ = ["CounterfactualWriter"]

COLUMNS = 6
FIGURE_DPI = 320
FIGURE_PIXELS = 512  # of an image in the figure, along its longer side


class CounterfactualWriter:
    """Writes a folder for each image, named after it.

    It holds ``factual.png``; ``counterfactual_01.png`` and ``difference_01.png`` for the first intervention, and so on;
    the same with ``_original`` in the geometry of the image that was read; ``reconstruction.png``; ``figure.png``, a
    grid of all interventions; and ``variables.json``: the factual variables, the targets and, with a segmentor, what
    was achieved. With particles there is ``uncertainty_01.nii.gz``, too.

    PNG files, of 2-D images only, have 8 bits: black is -1 and white 1; in a difference, mid-grey is no change. NIfTI
    files hold the numbers.

    Args:
        folder: folder to write these folders to.
        extension: ".png" or ".nii.gz".
        header: further content for the top of ``variables.json``.
        samples: number of images to draw from the model itself into ``samples.png``; 0 for none.

    Raises:
        ValueError: when the extension is neither of these.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        extension: str = ".png",
        header: Mapping[str, Any] | None = None,
        samples: int = 0,
    ) -> None:
        if extension not in (".png", ".nii.gz"):
            raise ValueError(f"output_ext: found {extension!r}, expected '.png' or '.nii.gz'")
        self.folder = Path(folder)
        self.extension = extension
        self.header = dict(header or {})
        self.samples = samples

    def attach(self, engine: CounterfactualEvaluator) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.draw_samples)

    def write(self, engine: CounterfactualEvaluator) -> None:
        """Write the counterfactuals of each image of the batch."""
        for batch, output in zip(engine.state.batch, engine.state.output):
            source = Path(batch["image"].meta["filename_or_obj"])
            folder = self.folder / image_stem(source)
            folder.mkdir(parents=True, exist_ok=True)
            files = [self._images(output, step, folder) for step in range(len(engine.interventions))]
            self._save(_as_read(_factual(output)), folder / f"factual{self.extension}")
            self._save(batch["original"][0], folder / f"factual_original{self.extension}")
            self._save(_as_read(output["reconstruction"][0]), folder / f"reconstruction{self.extension}")
            self._figure(engine, output, folder)
            content = {**self.header, "image": str(source), **_variables(engine, output)}
            for entry, names in zip(content["counterfactuals"], files):
                entry["files"] = names
            write_json_atomically(folder / "variables.json", content)

    def draw_samples(self, engine: CounterfactualEvaluator) -> None:
        """Draw images from the prior, with their variables."""
        if not self.samples:
            return
        dscm = engine.dscm
        with torch.no_grad():
            images, values = dscm.sample(self.samples, dscm.data["image_size"])
        titles = [_lines([v if isinstance(v, str) else f"{v:.3g}" for v in _values(dscm, row)]) for row in values]
        title = f"Samples: {' / '.join(map(words, dscm.variables.names))}"
        save_figure(sample_grid([picture(image) for image in images], titles, title=title), self.folder / "samples.png")

    def _images(self, output: Mapping[str, Any], step: int, folder: Path) -> dict[str, str]:
        """Write the images of one intervention; returns the file names."""
        names = {}
        for key, kind in (("pred", "counterfactual"), ("difference", "difference")):
            for suffix in ("", "_original"):
                image = output[f"{key}{suffix}"][step]
                names[f"{kind}{suffix}"] = f"{kind}_{step + 1:02d}{suffix}{self.extension}"
                self._save(image if suffix else _as_read(image), folder / names[f"{kind}{suffix}"])
        if "uncertainty" in output:
            names["uncertainty"] = f"uncertainty_{step + 1:02d}.nii.gz"
            self._save(_as_read(output["uncertainty"][step]), folder / names["uncertainty"])
        return names

    def _save(self, image: Tensor, path: Path) -> None:
        """Write an image (W, H), or a volume, in [-1, 1]; in NIfTI, a MetaTensor keeps its affine matrix."""
        array = image.detach().cpu().numpy().astype(np.float32)
        if path.suffix == ".png":
            Image.fromarray(np.round((array.T.clip(-1, 1) + 1) * 127.5).astype(np.uint8)).save(path)
            return
        affine = image.affine if isinstance(image, MetaTensor) else np.eye(4)
        nibabel.save(nibabel.Nifti1Image(array, np.asarray(affine)), path)

    def _figure(self, engine: CounterfactualEvaluator, output: Mapping[str, Any], folder: Path) -> None:
        dscm = engine.dscm
        masks = output.get("masks", torch.zeros(1 + len(engine.interventions), *output["pred"].shape[1:]))
        steps = [parse_intervention(intervention) for intervention in engine.interventions]
        texts = {name: [step[name].text for step in steps] for name in steps[0]}
        varied = [name for name, each in texts.items() if len(set(each)) > 1] or list(texts)
        fixed = [f"{words(name)} {each[0]}" for name, each in texts.items() if name not in varied]
        title = "; ".join([", ".join(map(words, varied)), *fixed])
        axis = int(np.argmin(masks.shape[1:]))  # of the model's size, since the file's may be shortest elsewhere
        images = [_shrunk(picture(image, axis)) for image in output["detailed"]]
        typed = [", ".join(texts[name][step] for name in varied) or "no action" for step in range(len(steps))]
        factual, *panels = (
            Panel(image, picture(mask, axis), text, _quantities(dscm, varied, values))
            for image, mask, text, values in zip(
                images, masks, ["factual", *typed], [output["values"], *output["targets"]], strict=True
            )
        )
        rows = {}
        for start in range(0, len(panels), COLUMNS):
            row = panels[start : start + COLUMNS]
            rows[f"{start + 1} – {start + len(row)}" if len(panels) > COLUMNS else ""] = row
        labels = {name: value for name, value in dscm.data["labels"].items() if value != 0}
        save_figure(counterfactual_grid(factual, rows, labels, title), folder / "figure.png", FIGURE_DPI)


def _factual(output: Mapping[str, Any]) -> Tensor:
    """The factual image at the model's size."""
    return output["pred"][0] - output["difference"][0]


def _shrunk(image: np.ndarray) -> np.ndarray:
    """A large picture (H, W), shrunk by a whole factor: means of blocks."""
    factor = -(-max(image.shape) // FIGURE_PIXELS)
    return torch.nn.functional.avg_pool2d(torch.from_numpy(image)[None], factor)[0].numpy()


def _as_read(image: Tensor) -> Tensor:
    """A 2-D image (H, W) of the networks as (W, H), the order in which files are read; a volume as it is."""
    return image.transpose(0, 1) if image.ndim == 2 else image


def _variables(engine: CounterfactualEvaluator, output: Mapping[str, Any]) -> dict[str, Any]:
    variables = engine.dscm.variables
    ruler = engine.ruler
    measured = [dict(zip(ruler.names, _numbers(row))) for row in output["measured"]] if ruler is not None else []
    factual = {
        name: {"value": value, "unit": unit}
        for name, unit, value in zip(variables.names, variables.units, _values(engine.dscm, output["values"]))
    }
    counterfactuals = []
    for step, (intervention, targets) in enumerate(zip(engine.interventions, output["targets"])):
        entry: dict[str, Any] = {
            "intervention": intervention,
            "variables": dict(zip(variables.names, _values(engine.dscm, targets))),
        }
        if measured:
            entry["measured"] = measured[1 + step]
        if engine.dscm.deformation is not None:
            entry["folding"] = float(output["folding"][step])
        counterfactuals.append(entry)
    head = {"variables": factual} | ({"measured": measured[0]} if measured else {})
    return {**head, "counterfactuals": counterfactuals}


def _numbers(row: Tensor) -> list[float | None]:
    """Plain numbers with seven digits; None where missing."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in row.tolist()]


def _values(dscm: DSCM, row: Tensor) -> list[float | str | None]:
    """As :func:`_numbers`, and categories by their names."""
    return [
        names[int(value)] if names and value is not None else value
        for names, value in zip(dscm.variables.categories, _numbers(row))
    ]


def _quantities(dscm: DSCM, names: Sequence[str], values: Tensor) -> str:
    """Values of some variables with their units, as text."""
    variables = dscm.variables
    found = []
    for k in map(variables.index, names):
        value, unit = float(values[k]), variables.units[k]
        if not math.isfinite(value):
            found.append("?")
        elif variables.categories[k]:
            found.append(variables.categories[k][int(value)])
        else:
            found.append(quantity(value, unit))
    return ", ".join(found)


def _lines(texts: Sequence[str]) -> str:
    """The texts joined, three in a line."""
    return "\n".join(" / ".join(texts[start : start + 3]) for start in range(0, len(texts), 3))
