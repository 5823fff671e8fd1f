"""Pictures during the training of a DSCM: reconstructions and counterfactual sweeps of validation cases, samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from matplotlib.figure import Figure
from monai.data import DataLoader, Dataset
from monai.engines import Trainer
from monai.networks.utils import eval_mode, one_hot
from torch import Tensor, nn
from torch.utils.data import Subset

from segcft_ext.datalist import Datalist
from segcft_ext.dscm import Counterfactual, unwrap
from segcft_ext.figures import Panel, counterfactual_grid, picture, reconstruction_grid, sample_grid, save_figure
from segcft_ext.guides import Guide, SegmentorGuide
from segcft_ext.seeding import same_draws
from segcft_ext.wording import quantity, words

__all__ = ["DSCMFigures"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class DSCMFigures:
    """Draws the outputs of a DSCM for some validation cases, every few epochs and at the end.

    The files are named by the epoch: ``reconstructions_0050.png``, ``samples_0050.png`` (images from the prior) and,
    for each case, ``counterfactuals_0050_1.png``: sweeps of each continuous variable over quantiles of the training
    split. The contours are those of a guiding segmentor's prediction, or else of the factual label map, warped.

    Args:
        network: the DSCM whose outputs are drawn, or a weight average of one.
        dataset: the validation cases; the first ones are drawn.
        prepare_batch: ``(batch, device, non_blocking) -> (image, values, spacing, reference)``, without augmentation.
        datalist: names the structures.
        folder: folder to write to.
        interval: number of epochs between drawings.
        guide: the guide, if there is one.
        cases: number of cases whose counterfactuals are drawn.
        reconstructions: number of reconstructions; 0 for none.
        samples: number of samples; 0 for none.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        prepare_batch: Callable[..., Any],
        datalist: Datalist,
        folder: str | os.PathLike[str],
        interval: int = 50,
        guide: Guide | None = None,
        cases: int = 2,
        reconstructions: int = 8,
        samples: int = 16,
    ) -> None:
        self.dscm = unwrap(network)
        self.dataset = dataset
        self.prepare_batch = prepare_batch
        self.labels = datalist.foreground
        self.size = datalist.size
        self.folder = Path(folder)
        self.interval = interval
        self.guide = guide
        self.cases = min(cases, len(dataset))
        self.reconstructions = min(reconstructions, len(dataset))
        self.samples = samples
        self.drawn: int | None = None

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def start(self, engine: Trainer) -> None:
        """Remove the figures of an earlier training, unless this one resumes it."""
        if engine.state.epoch == 0:
            for kind in ("reconstructions", "samples", "counterfactuals"):
                for stale in self.folder.glob(f"{kind}_[0-9]*.png"):
                    stale.unlink()

    def __call__(self, engine: Trainer) -> None:
        epoch = engine.state.epoch
        if engine.state.rank > 0 or epoch == self.drawn:
            return
        self.drawn = epoch
        for name, figure in self.figures(torch.device(engine.state.device), epoch):
            save_figure(figure, self.folder / name.format(f"{epoch:04d}"))

    @torch.no_grad()
    def figures(self, device: torch.device, epoch: int) -> Iterator[tuple[str, Figure]]:
        """The figures one by one, each with its file name, in which ``{}`` stands for the epoch."""
        count = max(self.cases, self.reconstructions)
        with eval_mode(self.dscm), same_draws(0):  # the same samples in every epoch
            batch = next(iter(DataLoader(Subset(self.dataset, range(count)), batch_size=count)))
            image, values, *_ = self.prepare_batch(batch, device, False)
            label = batch["label"].to(device)
            if self.reconstructions:
                first = slice(self.reconstructions)
                made = self.dscm.abduct(image[first], values[first]).posterior.mean.clamp(-1, 1)
                yield (
                    "reconstructions_{}.png",
                    reconstruction_grid(_pictures(image[first]), _pictures(made), f"Reconstructions, epoch {epoch}"),
                )
            if self.samples:
                made, _ = self.dscm.sample(self.samples, self.size)
                yield "samples_{}.png", sample_grid(_pictures(made), title=f"Samples, epoch {epoch}")
            for case in range(self.cases):
                one = slice(case, case + 1)
                title = f"Counterfactuals of validation case {case + 1}, epoch {epoch}"
                figure = self._sweeps(image[one], values[one], label[one], title)
                yield f"counterfactuals_{{}}_{case + 1}.png", figure

    def _sweeps(self, image: Tensor, values: Tensor, label: Tensor, title: str) -> Figure:
        variables = self.dscm.variables
        blocks: dict[str, list[Panel]] = {}
        abduction = self.dscm.abduct(image, values)
        for k, name in enumerate(variables.names):
            if variables.kinds[k] != "continuous":
                continue
            targets = torch.quantile(variables.quantiles[k], torch.tensor(LEVELS, device=image.device))
            panels = blocks[words(name)] = []
            for target in targets.split(1):
                noise = torch.Generator().manual_seed(0)  # one draw for the whole sweep
                made = self.dscm.predict(abduction, self.dscm.scm.counterfactual(values, {name: target}, noise))
                text = quantity(target.item(), variables.units[k])
                panels.append(Panel(picture(made.image[0]), picture(self._masks(made, label)[0]), text))
        return counterfactual_grid(Panel(picture(image[0]), picture(label[0]), "factual"), blocks, self.labels, title)

    def _masks(self, made: Counterfactual, label: Tensor) -> Tensor:
        if isinstance(self.guide, SegmentorGuide):
            return self.guide.network(made.image).argmax(1, keepdim=True)
        if self.dscm.deformation is None or made.displacement is None:
            return torch.zeros_like(made.image)
        masks = one_hot(label, max(self.labels.values()) + 1)
        return self.dscm.deformation.warp(masks, made.displacement).argmax(1, keepdim=True)


def _pictures(images: Tensor) -> list[Any]:
    return [picture(image) for image in images]
