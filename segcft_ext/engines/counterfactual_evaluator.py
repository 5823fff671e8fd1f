"""Inference with a DSCM: counterfactuals of images under the interventions that a user gave."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from monai.utils import ForwardMode, convert_to_tensor
from torch import Tensor, nn

from segcft_ext.checkpoints import CheckpointError
from segcft_ext.command_line import read_whole
from segcft_ext.dscm import Counterfactual, unwrap
from segcft_ext.evidence import factual_values, segmentor_ruler
from segcft_ext.interventions import beyond_training, expand_sweep, resolve
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.ruler import Ruler
from segcft_ext.seeding import mixed, same_draws

__all__ = ["CounterfactualEvaluator"]

LOGGER = logging.getLogger(__name__)


class CounterfactualEvaluator(Evaluator):
    """Makes the counterfactuals of each image; a sweep of S interventions gives S of them.

    Exogenous noise that the evidence does not determine (how large an absent plaque would be) is drawn with a seed
    computed from the images: all steps of a sweep, and later interventions on the same images, share this noise;
    different patients do not.

    Output for a batch, decollated before ``postprocessing``:

    ==================  ======================================================================================
    ``pred``            counterfactual images in [-1, 1], a channel for each intervention (B, S, *spatial)
    ``difference``      counterfactual minus factual image, same shape
    ``displacement``    movement by the deformation, in pixels (B, S D, *spatial); zero without a head
    ``residual``        counterfactual minus the moved factual image (B, S, *spatial)
    ``reconstruction``  what the model makes of the factual image without its exogenous residual (B, 1, *spatial)
    ``values``          factual variables in physical units (B, K)
    ``targets``         variables after the action (B, S, K)
    ``folding``         share of cells between pixels in which the deformation folds (B, S); zero without a head
    ``masks``           the segmentor's label maps, factual first (B, 1 + S, *spatial); with a segmentor only
    ``measured``        what is measured in these label maps (B, 1 + S, J); with a segmentor only
    ``uncertainty``     standard deviation of ``pred`` over particles, same shape; with particles only
    ==================  ======================================================================================

    Args:
        device: device to run on.
        val_data_loader: batches with ``image`` (B, 1, *spatial) in [-1, 1] and, where the unit of a variable needs it,
            ``spacing`` (B, D), the pixel spacing of these images in mm.
        network: the DSCM.
        intervention: see :mod:`segcft_ext.interventions`; an empty one returns the image.
        variables: known variables of the images, see :func:`segcft_ext.evidence.factual_values`.
        segmentor: measures the variables that are not known, and outlines the structures in the figure.
        particles: number of samples from the posterior of the latents for ``uncertainty``; 0 for none. ``pred`` is made
            from the posterior's mean.
        postprocessing: transforms that are applied to each decollated output.
        val_handlers: ignite handlers.

    Raises:
        CheckpointError: when the DSCM is untrained or the segmentor does not belong to the same kind of data.
        ValueError: when the intervention cannot be read or names an unknown variable, or there is one particle.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable[Any],
        network: nn.Module,
        intervention: str | Mapping[str, Any],
        variables: str | Mapping[str, Any] | None = None,
        segmentor: Segmentor | None = None,
        particles: int = 0,
        postprocessing: Callable[..., Any] | None = None,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            postprocessing=postprocessing,  # type: ignore[arg-type]
            val_handlers=val_handlers,
            mode=ForwardMode.EVAL,
        )
        self.dscm = self.network = unwrap(network)
        self.interventions = expand_sweep(intervention)
        self.intervention = intervention
        self.given = variables
        self.segmentor = segmentor
        self.particles = read_whole("particles", particles, 0)
        if self.particles == 1:
            raise ValueError("particles: found 1, expected 0, or 2 and more")
        self.ruler: Ruler | None = None
        self.warned: set[str] = set()
        self.add_event_handler(Events.STARTED, self._start)

    def _start(self) -> None:
        if not self.dscm.variables.fitted:
            raise CheckpointError("dscm: found an untrained model, expected the path of a DSCM's model.pt")
        self.warned.clear()
        if self.segmentor is not None:
            self.ruler = segmentor_ruler(self.dscm, self.segmentor)

    def _warn_beyond_training(self, do: Mapping[str, Tensor], values: Tensor, wanted: Tensor) -> None:
        """Warn about targets, and values that follow from them, beyond the training range; once for each variable."""
        variables = self.dscm.variables
        followed = {
            name: after[after != before]
            for name, before, after in zip(variables.names, values.unbind(1), wanted.unbind(1))
            if name not in do
        }
        for where, found in (
            ("intervention on %r", beyond_training(do, variables)),
            ("%r, which follows from the intervention", beyond_training(followed, variables, "value")),
        ):
            for name, text in found.items():
                if name not in self.warned:
                    LOGGER.warning(f"{where}: %s; the model has seen no such case", name, text)
                    self.warned.add(name)

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        image = batchdata["image"].to(self.state.device)
        with self.mode(self.network):
            output = self._counterfactuals(convert_to_tensor(image, track_meta=False), batchdata.get("spacing"))
        for key in ("displacement", "residual"):  # with the metadata, Invertd can undo the preprocessing
            output[key] = MetaTensor(output[key]).copy_meta_from(image)
        self.state.output = output
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _counterfactuals(self, image: Tensor, spacing: Tensor | None) -> dict[str, Tensor]:
        dscm = self.dscm
        spacing = None if spacing is None else spacing.to(image)
        label = None if self.ruler is None else self.ruler.segment(image)
        values = factual_values(dscm, image, self.intervention, self.given, self.ruler, spacing, label)
        abduction = dscm.abduct(image, values)
        seed = zlib.crc32(image.cpu().numpy().tobytes())
        made: list[Counterfactual] = []
        for intervention in self.interventions:
            do = resolve(intervention, dscm.variables, values, dscm.measured)
            noise = torch.Generator().manual_seed(seed)  # one draw for all steps of a sweep
            wanted = dscm.scm.counterfactual(values, do, noise)
            self._warn_beyond_training(do, values, wanted)
            made.append(dscm.predict(abduction, wanted))
        images, still = [each.image for each in made], image.new_zeros(len(image), image.ndim - 2, *image.shape[2:])
        displacements = [still if each.displacement is None else each.displacement for each in made]
        moved = [image if dscm.deformation is None else dscm.deformation.warp(image, field) for field in displacements]
        pred = torch.cat(images, dim=1)
        output = {
            "pred": pred,
            "difference": pred - image,
            "displacement": torch.cat(displacements, dim=1),
            "residual": pred - torch.cat(moved, dim=1),
            "reconstruction": abduction.posterior.mean.clamp(-1, 1),
            "values": values,
            "targets": torch.stack([each.values for each in made], dim=1),
            "folding": torch.stack([each.folded for each in made], dim=1),
        }
        if self.ruler is not None and label is not None:
            masks = [label, *map(self.ruler.segment, images)]
            measured = [self.ruler.measure(mask, x, spacing, label) for mask, x in zip(masks, [image, *images])]
            output["masks"] = torch.cat(masks, dim=1)
            output["measured"] = torch.stack(measured, dim=1)
        if self.particles:
            output["uncertainty"] = self._uncertainty(image, values, output["targets"], seed)
        return output

    def _uncertainty(self, image: Tensor, values: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Standard deviation of the counterfactuals over samples from the latents' posterior, (B, S, *spatial)."""
        with same_draws(mixed(seed, 0)):
            particles = [self.dscm.abduct(image, values, temperature=1) for _ in range(self.particles)]
        return torch.cat(
            [
                torch.stack([self.dscm.predict(particle, wanted).image for particle in particles]).std(0)
                for wanted in targets.unbind(1)
            ],
            dim=1,
        )
