"""The deep structural causal model: mechanisms of the scalar variables and of the image.

Counterfactuals follow Pearl's three steps (Pawlowski et al. 2020): abduction of the exogenous noise, action and
prediction.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segcft_ext.checkpoints import SelfDescribing, load_model
from segcft_ext.datalist import Datalist
from segcft_ext.extra_state import EXTRA_STATE
from segcft_ext.networks.deformation import DeformationHead, Features, Sizes
from segcft_ext.networks.folding import folding, jacobian_determinant
from segcft_ext.networks.hvae import HVAE, Posterior
from segcft_ext.scm import SCM
from segcft_ext.variables import Variables

__all__ = ["DSCM", "Abduction", "Counterfactual", "pretrained", "unwrap"]


@dataclass(frozen=True)
class Abduction:
    """The exogenous noise of a batch of images, with the evidence it was abducted from.

    Image and posterior also hold u_x = (x - mu) / sigma.

    Attributes:
        image: the factual image, shape (B, 1, *spatial).
        values: its factual variables in physical units, shape (B, K).
        posterior: the HVAE's latents and its likelihood under the factual parents.
        features: the deformation head's features e, or None without a head.
    """

    image: Tensor
    values: Tensor
    posterior: Posterior
    features: Features | None


@dataclass(frozen=True)
class Counterfactual:
    """The outcome of a prediction: image and variables after an action.

    Attributes:
        image: shape (B, 1, *spatial), in [-1, 1].
        values: all variables after the action, in physical units, shape (B, K).
        displacement: phi - id in pixels, shape (B, D, *spatial), or None without a deformation head.
        velocity: the velocity field v with phi = exp(v), in pixels of the head's grid, shape (B, D, *grid), or None.
        paint: intensity that the head painted before the deformation, beyond the mean intensity of a tissue, shape of
            the image, or None.
        anatomy: logits of the label map that the head sees in the factual image, see
            :class:`~segcft_ext.networks.deformation.Features`, or None.
        gained: which pixels of each variable's structure were to appear by painting (above zero) or to vanish (below),
            in [-1, 1], shape (B, K, *spatial), or None.
    """

    image: Tensor
    values: Tensor
    displacement: Tensor | None = None
    velocity: Tensor | None = None
    paint: Tensor | None = None
    anatomy: Tensor | None = None
    gained: Tensor | None = None

    @property
    def jacobian_determinant(self) -> Tensor | None:
        """Smallest determinant of the deformation's Jacobian in each cell between pixels, (B, \\*(spatial - 1)).

        Zero or less is a fold. None without a deformation head.
        """
        return None if self.displacement is None else jacobian_determinant(self.displacement)

    @property
    def folded(self) -> Tensor:
        """Share of the cells between pixels in which the deformation folds, (B,); zero without a deformation head."""
        determinant = self.jacobian_determinant
        if determinant is None:
            return self.image.new_zeros(len(self.image))
        return folding(determinant)[0].float()


class DSCM(SelfDescribing):
    """Scalar mechanisms, hierarchical VAE and, optionally, deformation head in one network and one checkpoint.

    Args:
        variables: definitions of the scalar variables, see :class:`~segcft_ext.variables.Variables`.
        parents: the graph over them, ``{variable: [its parents]}``; no edges by default.
        hvae: arguments of :class:`~segcft_ext.networks.hvae.HVAE`.
        deformation: arguments of :class:`~segcft_ext.networks.deformation.DeformationHead`, with names of variables in
            place of channels in ``painted``, ``bands`` and ``areas``; None for no head.

    Example:
        >>> dscm = DSCM([{"name": "heart_area", "kind": "continuous"}])
        >>> dscm.variables.fit(torch.tensor([[5.0], [15.0]]), ["percent"])
        >>> image, values = torch.rand(2, 1, 64, 64), torch.tensor([[8.0], [9.0]])
        >>> dscm.counterfactual(image, values, {"heart_area": 1.2 * values[:, 0]}).image.shape
        torch.Size([2, 1, 64, 64])
    """

    def __init__(
        self,
        variables: Sequence[Mapping[str, Any]],
        parents: Mapping[str, Sequence[str]] | None = None,
        hvae: Mapping[str, Any] | None = None,
        deformation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            {
                "variables": variables,
                "parents": parents or {},
                "hvae": hvae or {},
                "deformation": None if deformation is None else dict(deformation),
            }
        )
        self.variables = Variables(variables)
        self.scm = SCM(self.variables, parents)
        self.hvae = HVAE(self.variables.encoded_channels, **(hvae or {}))
        self.deformation: DeformationHead | None = None
        if deformation is not None:
            by_channel = _renamed(deformation, self._channels)
            self.deformation = DeformationHead(self.variables.encoded_channels, **by_channel)

    @property
    def measured(self) -> dict[str, Mapping[str, Any]]:
        """How each measured variable was measured in the training data, as ``{"_target_": …}``."""
        described = self.data.get("variables", [])
        return {v["name"]: v["measurement"] for v in described if v["measurement"] is not None}

    def _channels(self, name: str) -> range:
        """The channels of a variable in the encoded parents."""
        return range(self.variables.encoded_channels)[self.variables.encoded_slice(name)]

    def with_deformation(self, deformation: Mapping[str, Any]) -> DSCM:
        """This model with a fresh deformation head, whose fields are zero: it makes the same counterfactuals."""
        extended = DSCM(**{**self.definition, "deformation": deformation})
        extended.data, extended.origin = self.data, self.origin
        kept = {key: value for key, value in self.state_dict().items() if not key.startswith("deformation.")}
        missing, unexpected = extended.load_state_dict({**kept, EXTRA_STATE: extended.get_extra_state()}, strict=False)
        wrong = [key for key in missing if not key.startswith("deformation.")] + unexpected
        assert not wrong, wrong
        return extended

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruction of images (B, 1, *spatial) whose variables are not known: the likelihood's mean in [-1, 1]."""
        unknown = image.new_full((len(image), len(self.variables)), torch.nan)
        posterior = self.hvae.posterior(image, self.variables.encode(unknown), temperature=0, with_kl=False)
        return posterior.mean.clamp(-1, 1)

    def abduct(self, image: Tensor, values: Tensor, temperature: float = 0.0) -> Abduction:
        """Infer the exogenous noise of images and their variables.

        Args:
            image: shape (B, 1, *spatial), in [-1, 1].
            values: physical units, shape (B, K), NaN where missing.
            temperature: factor on the posterior's standard deviation; 1 gives a sample, 0 the mean, for which no KL is
                computed.
        """
        posterior = self.hvae.posterior(image, self.variables.encode(values), temperature, with_kl=temperature > 0)
        features = None if self.deformation is None else self.deformation.features(image)
        return Abduction(image, values, posterior, features)

    def predict(self, abduction: Abduction, values: Tensor) -> Counterfactual:
        """The image under other values of its variables.

        Args:
            abduction: from :meth:`abduct`.
            values: all variables after the action, descendants included (see :attr:`scm`), shape (B, K).

        Returns:
            x~ = clamp(mu(z, pa~) + sigma(z, pa~) u_x, -1, 1); where there is a deformation head, gated by it and then
            warped by exp(v).
        """
        parents = self.variables.encode(values)
        size = abduction.image.shape[2:]
        posterior = abduction.posterior
        mean, log_scale = self.hvae.decode(posterior.latents, parents, size)
        # mu~ + sigma~ u_x, written as a change of x, so that rounding changes nothing where no action does.
        wider = torch.expm1(log_scale - posterior.log_scale)
        change = mean - posterior.mean + wider * (abduction.image - posterior.mean)
        image = (abduction.image + change).clamp(-1, 1)
        if self.deformation is None or abduction.features is None:
            return Counterfactual(image, values)
        factual = self.variables.encode(abduction.values)
        edit = self.deformation(abduction.features, factual, parents, self._sizes(abduction.values, values))
        image = self.deformation.blend(abduction.image, image, edit)
        displacement = self.deformation.displacement(edit.velocity, size)
        warped = self.deformation.warp(image, displacement)
        gained = None
        if edit.gained is not None:
            gained = edit.gained[:, [self._channels(name).start for name in self.variables.names]]
        anatomy = abduction.features.anatomy
        return Counterfactual(warped, values, displacement, edit.velocity, edit.paint, anatomy, gained)

    def _sizes(self, factual: Tensor, wanted: Tensor) -> Sizes:
        columns = self.variables.encoded_columns
        whole = [100 if self.variables.units[column] == "percent" else math.nan for column in columns]
        return Sizes(factual[:, columns], wanted[:, columns], factual.new_tensor(whole).expand(len(factual), -1))

    def counterfactual(
        self, image: Tensor, values: Tensor, do: Mapping[str, Tensor], temperature: float = 0.0
    ) -> Counterfactual:
        """Abduction, action and prediction.

        Args:
            image: shape (B, 1, *spatial), in [-1, 1].
            values: factual variables in physical units, shape (B, K), NaN where missing.
            do: target of each intervened variable in physical units, shape (B,).
            temperature: of the latents' posterior.
        """
        return self.predict(self.abduct(image, values, temperature), self.scm.counterfactual(values, do))

    def sample(self, count: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (count, 1, *size) and variables (count, K) from the model, with the prior's latents."""
        values = self.scm.sample(count)
        return self.hvae.sample(self.variables.encode(values), size), values

    def fit(self, datalist: Datalist) -> None:
        """Take ranges, units and categories of the variables from the training split, and note the data.

        Raises:
            ValueError: when a variable is unknown to the datalist, of another kind there, constant or always missing,
                or has a point mass at zero there that the model does not know.
        """
        own = self.variables
        for found, name, kind, inflated in zip(
            datalist.definitions(own.names), own.names, own.kinds, own.zero_inflated
        ):
            where = f"{datalist.path}: variables.{name}"
            if found["kind"] != kind:
                raise ValueError(f"{where}.kind: found {found['kind']!r}, the model has {kind!r}")
            if found.get("zero_inflated") and not inflated:
                raise ValueError(f'{where}: zero in many training cases, expected "zero_inflated" in its definition')
        self.variables.fit(**datalist.training_values(self.variables.names))
        self.describe(datalist)

    def negative_elbo(self, image: Tensor, values: Tensor) -> Tensor:
        """The negative ELBO of images (B, 1, \\*spatial) with their variables (B, K), in nats per dimension, (B,).

        Latents are sampled here, whatever the temperature of counterfactuals: at the posterior's mean, its width costs
        nothing but KL, and fine-tuning under such an ELBO would widen it until a sample decodes to noise.
        """
        return self.hvae.negative_elbo(image, self.hvae.posterior(image, self.variables.encode(values)))

    def measure_nothing(self) -> None:
        """Remove the areas from the deformation head, which then measures nothing."""
        if self.deformation is not None:
            self.deformation.areas = {}
            self.definition["deformation"]["areas"] = {}

    def select_trained(self, hvae: bool) -> DSCM:
        """For fine-tuning: gradients for the deformation head and, if asked, the HVAE; none for the mechanisms."""
        self.scm.requires_grad_(False)
        self.hvae.requires_grad_(hvae)
        if self.deformation is not None:
            self.deformation.requires_grad_(True)
        return self

    def parameter_groups(self, head: float, hvae: float) -> list[dict[str, Any]]:
        """The trainable weights (``requires_grad``) as an optimiser's parameter groups.

        Args:
            head: learning rate of the deformation head.
            hvae: learning rate of the HVAE.

        Raises:
            ValueError: when there are none.
        """
        groups = [
            {"params": parameters, "lr": rate}
            for module, rate in [(self.deformation, head), (self.hvae, hvae)]
            if module is not None and (parameters := [p for p in module.parameters() if p.requires_grad])
        ]
        if not groups:
            raise ValueError(f"{self.origin}: nothing to train: the HVAE is fixed and there is no deformation head")
        return groups


def pretrained(
    checkpoint: str | os.PathLike[str] | None = None,
    deformation: Mapping[str, Any] | None = None,
    default: Mapping[str, Any] | None = None,
) -> DSCM:
    """The DSCM of a checkpoint; with a fresh deformation head if asked for one that it does not have.

    Args:
        checkpoint: a ``model.pt``; None builds an untrained network, so that a bundle can be inspected without one.
        deformation: arguments of the head, or None to leave the model as it is. Variables in ``painted``, ``bands``
            and ``areas`` that the model does not have are ignored: it may have been pretrained on a subset.
        default: arguments of :class:`DSCM`, used without a checkpoint only.

    Raises:
        CheckpointError: when the file is missing or holds something else.
    """
    dscm = load_model(checkpoint, DSCM) if checkpoint else DSCM(**(default or {}))
    if deformation is not None and dscm.deformation is None:
        names = dscm.variables.names
        dscm = dscm.with_deformation(_renamed(deformation, lambda name: [name] if name in names else []))
    return dscm


def _renamed(deformation: Mapping[str, Any], keys: Callable[[str], Iterable[Any]]) -> dict[str, Any]:
    """Arguments of a deformation head with each variable's name replaced by all of ``keys(name)``, or dropped."""
    by_key = {
        argument: {key: found for name, found in deformation.get(argument, {}).items() for key in keys(name)}
        for argument in ("bands", "areas")
    }
    return {**deformation, "painted": [key for name in deformation.get("painted", ()) for key in keys(name)], **by_key}


def unwrap(network: nn.Module) -> DSCM:
    """The DSCM inside a weight average or ``DistributedDataParallel``, or the DSCM itself.

    Raises:
        TypeError: when the network is none of these.
    """
    found = network if isinstance(network, DSCM) else getattr(network, "module", network)
    if not isinstance(found, DSCM):
        raise TypeError(f"network is a {type(found).__name__}, expected a DSCM")
    return found
