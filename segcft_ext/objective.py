"""The objective of counterfactual fine-tuning (docs/method.md): hit the target, subject to the ELBO of real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor

from segcft_ext.dscm import Counterfactual
from segcft_ext.guides import GuidePrediction
from segcft_ext.networks.pooling import max_near, mean_near, scaled_radius
from segcft_ext.population import blurred
from segcft_ext.variables import Variables

__all__ = ["Asked", "CFTObjective", "CFTTerms", "draw_interventions"]

WARM_UP_FROM = 0.05
SMALLEST_SIZE = 0.1
HUBER = 0.01  # error in scaled units from which the Huber loss grows linearly
FOLDING_MARGIN = 0.2  # Jacobian determinant below which the folding barrier begins
NEARBY, OUTSIDE, FINE = 16.0, 5.0, 4.0  # pixels at an image of 256
CONTRAST = 10.0
SEEN = DiceCELoss(softmax=True, include_background=False, batch=True)


def draw_interventions(values: Tensor, columns: Sequence[int], quantiles: Tensor) -> tuple[Tensor, Tensor]:
    """One intervention for each case of a batch: a variable at random, its target from the training marginal.

    A case in which a zero-inflated variable is zero gets a target above zero, since zero would be no intervention. A
    variable that is missing in a case is not intervened on there, unless all of them are missing.

    Args:
        values: factual variables in physical units, shape (B, K).
        columns: the variables that may be intervened on.
        quantiles: of the training split at evenly spaced levels from 0 to 1, shape (K, Q); see
            :class:`~segcft_ext.variables.Variables`.

    Returns:
        Targets (B, K) and a boolean mask (B, K) with one True in each row.
    """
    count = len(values)
    drawn = torch.randint(len(columns), (count,), device=values.device)
    missing = values[:, columns].isnan()
    if missing.any():
        possible = ~missing | missing.all(1, keepdim=True)
        drawn = torch.multinomial(possible.float(), 1)[:, 0]
    chosen = torch.tensor(columns, device=values.device)[drawn]
    mask = F.one_hot(chosen, values.shape[1]).bool()
    marginal = quantiles[chosen]
    # Where the marginal has a point mass at its lower end, a case that is there already is drawn from the rest.
    mass = (marginal == marginal[:, :1]).sum(1) - 1
    lowest = torch.where((values == quantiles[:, 0]).gather(1, chosen[:, None])[:, 0], mass, 0)
    highest = marginal.shape[1] - 1
    level = lowest + torch.rand(count, device=values.device) * (highest - lowest)
    below = level.floor().long().clamp(max=highest - 1)[:, None]
    left, right = (marginal.gather(1, index) for index in (below, below + 1))
    quantile = torch.lerp(left, right, (level[:, None] - below).to(marginal))
    return torch.where(mask, quantile.to(values), values), mask


def bending_energy(field: Tensor) -> Tensor:
    """Mean squared second derivative of a vector field (B, D, *spatial) (Rueckert et al. 1999).

    Mixed derivatives count twice.
    MONAI's ``BendingEnergyLoss`` relies on an indexing that PyTorch has deprecated as of 2.9.
    """
    axes = range(2, field.ndim)
    pure = sum(field.diff(n=2, dim=a).square().mean() for a in axes)
    mixed = sum(2 * field.diff(dim=a).diff(dim=b).square().mean() for a in axes for b in axes if a < b)
    return torch.as_tensor(pure + mixed)


@dataclass(frozen=True)
class CFTTerms:
    """Terms of the objective, scalars.

    Attributes:
        effectiveness: distance between the guide's variables that the action changes and their targets, in scaled
            units.
        relabelling: cross-entropy of the pixels that have to enter or leave the guide's masks for these to have the
            sizes wanted, or of those that the counterfactual was to let appear, in scaled units; zero for a guide that
            does not count pixels.
        others: distance of the variables that the action leaves unchanged from their targets, in scaled units.
        locality: change of the image where no changed variable lives, divided by the size of the structures that do
            change, on average in the batch.
        paint: mean absolute intensity that the head paints beyond the means of tissues; zero where nothing is painted.
        minimality: mean squared change of the image.
        overshoot: mean squared intensity beyond the range of the factual image nearby, and ten times that of the local
            contrast.
        smoothness: bending energy of the velocity in units of the image's shorter side; zero without a deformation
            head.
        folding: mean squared shortfall of the Jacobian determinant below 0.2; zero without a deformation head.
        anatomy: Dice loss and cross-entropy of the label map that the deformation head predicts for the factual image;
            zero where it predicts none.
        preservation: size of what the guide's masks of variables that the action leaves unchanged gain and lose, in
            scaled units; zero for a regressor, which has no masks.
        growth: squared difference, blurred, between what the masks of changed variables gain and what such masks gain
            in the population, in scaled units; zero without growth maps.
    """

    effectiveness: Tensor
    relabelling: Tensor
    others: Tensor
    locality: Tensor
    preservation: Tensor
    growth: Tensor
    paint: Tensor
    minimality: Tensor
    overshoot: Tensor
    smoothness: Tensor
    folding: Tensor
    anatomy: Tensor


@dataclass(frozen=True)
class Asked:
    """What an action asks of the guide's J variables.

    Attributes:
        columns: column of each of them among the model's K variables.
        factual: values before the action, shape (B, J).
        wanted: values after the action, same shape.
        changed: whether the action changes a variable, boolean, same shape; False where one of the values is unknown.
        kept: whether the action leaves a variable unchanged, likewise.
        vanishes: whether the action changes a variable to zero, likewise.
        scale: scaled units per physical unit, shape (J,).
        growth: growth maps of the variables, shape (J, *spatial), see :func:`~segcft_ext.population.growth_maps`; None
            if the place of a change is not asked for.
    """

    columns: Sequence[int]
    factual: Tensor
    wanted: Tensor
    changed: Tensor
    kept: Tensor
    vanishes: Tensor
    scale: Tensor
    growth: Tensor | None

    @classmethod
    def of(
        cls,
        values: Tensor,
        wanted: Tensor,
        variables: Variables,
        columns: Sequence[int],
        growth: Tensor | None = None,
    ) -> Asked:
        """From all variables before and after the action, shape (B, K) each."""
        factual, wanted = values[:, columns], wanted[:, columns]
        known = wanted.isfinite() & factual.isfinite()
        changed, kept = known & (wanted != factual), known & (wanted == factual)
        scale = 2 / (variables.high - variables.low)[columns]
        return cls(columns, factual, wanted, changed, kept, changed & (wanted == 0), scale, growth)


@dataclass(frozen=True)
class CFTObjective:
    """L_cf (docs/method.md) over all variables of the guide, so that an edit that moves another variable is punished.

    The main parts that go beyond the paper:

    * ``anchored``: the guide errs on real images too, and an edit should not correct that error. The target of each
      variable is shifted by the guide's error on the factual image, so that no action asks for no change.
    * ``locality`` punishes change where none of the changed variables lives, as the guide sees it on the factual and on
      the counterfactual image. A regressor cannot say where, so for it the term is zero.
    * ``relabelling``: where a segmentor is certain, its area has no gradient, so nothing could appear and little
      vanish. The term takes the nearest mask of the wanted area (the pixels with the highest log-odds) and asks for it
      by cross-entropy.
    * ``growth``: an area says how much, not where. The term asks for the change where real cases differ that differ in
      that area.

    Args:
        anchored: shift targets by the guide's error on the factual image.
        relabelling: weight of the pixels that have to enter or leave a mask.
        others: weight of the variables that the action leaves unchanged, against 1 for those that it changes: a higher
            one trades effectiveness for less drift.
        locality: weight of the change outside the changed structures. The change is divided by their size, but at least
            by a tenth of the image: with larger values of this term, the head of a vessel learned to do nothing.
        preservation: weight of what the masks of the other variables gain and lose: a structure that is pushed aside
            keeps its area, but not its place.
        growth: weight of the place at which the changed structures grow or shrink.
        paint: weight of what is painted. Movement is preferred where it suffices: paint is for small structures that
            appear or vanish, not for a haze over a whole vessel.
        minimality: weight of the squared change. A fine-tuned HVAE paints what a segmentor takes for an edge, and
            without this term more than an edge needs. A movement, however, changes every pixel that it passes.
        overshoot: weight of intensities and local contrasts that no neighbour has. A guide that is sure of an edge does
            not mind if it is painted brighter than any bone, darker than any lung beside it, or as a row of dots; a
            radiologist does.
        smoothness: weight of the velocity's bending energy.
        folding: weight of the folding barrier: the exponential of a field cannot fold, its samples on a grid can.
        anatomy: weight of the deformation head's prediction of the label map.
        warm_up: share of the training over which the weights of ``others``, ``locality``, ``preservation``, ``paint``,
            ``minimality`` and ``overshoot`` rise from a twentieth. An edit is found before it is confined: a network
            that does not know yet where a variable lives moves everything at once, and would learn to move nothing.
    """

    anchored: bool = True
    relabelling: float = 0.3
    others: float = 2.0
    locality: float = 0.2
    preservation: float = 1.0
    growth: float = 2.0
    paint: float = 8.0
    minimality: float = 0.0
    overshoot: float = 0.0
    smoothness: float = 0.00023
    folding: float = 300.0
    anatomy: float = 1.0
    warm_up: float = 0.6

    def __call__(
        self,
        image: Tensor,
        reference: Tensor,
        counterfactual: Counterfactual,
        asked: Asked,
        before: GuidePrediction,
        after: GuidePrediction,
    ) -> CFTTerms:
        """Compare a counterfactual with what was asked for.

        Args:
            image: factual images, shape (B, 1, *spatial).
            reference: one-hot label maps of the factual images, shape (B, C, *spatial).
            counterfactual: image and variables after the action.
            asked: what the action asks of the guide's variables.
            before: the guide's prediction for the factual images.
            after: the guide's prediction for the counterfactual images.
        """
        distance = self._distance(asked, before, after)
        zero, moved = image.new_zeros(()), counterfactual.velocity
        determinant, anatomy = counterfactual.jacobian_determinant, counterfactual.anatomy
        return CFTTerms(
            # Means of their own, so that the balance does not depend on how many variables are measured.
            effectiveness=_mean_where(asked.changed, distance),
            others=_mean_where(asked.kept, distance),
            relabelling=_relabelled(asked, before, after, counterfactual.gained),
            locality=self._outside(asked, image, counterfactual.image, before, after),
            preservation=_exchanged(asked, before, after),
            growth=_misplaced(asked, before, after),
            paint=zero if counterfactual.paint is None else counterfactual.paint.abs().mean(),
            minimality=(counterfactual.image - image).square().mean(),
            overshoot=_overshoot(image, counterfactual.image),
            smoothness=zero if moved is None else bending_energy(moved) * min(moved.shape[2:]) ** 2,
            folding=zero if determinant is None else F.relu(FOLDING_MARGIN - determinant).square().mean(),
            anatomy=zero if anatomy is None else _unseen(anatomy, reference),
        )

    def _distance(self, asked: Asked, before: GuidePrediction, after: GuidePrediction) -> Tensor:
        """Distance of the guide's variables from their targets, (B, J), in scaled units; zero where unknown."""
        anchor = before.values - asked.factual if self.anchored else torch.zeros_like(asked.factual)
        # No anchor for a structure that is to vanish: it must vanish for the guide too, however much the guide saw.
        target = torch.where(asked.vanishes, 0, asked.wanted + anchor)
        error = torch.where(asked.changed | asked.kept, (after.values - target) * asked.scale, 0)
        return F.huber_loss(error, torch.zeros_like(error), delta=HUBER, reduction="none") / HUBER

    def _outside(
        self, asked: Asked, image: Tensor, counterfactual: Tensor, before: GuidePrediction, after: GuidePrediction
    ) -> Tensor:
        """Change of the image where no changed variable lives, divided by the mean size of those that do in the batch.

        An action on a variable whose value is missing asks for nothing.
        """
        where = asked.changed.view(*asked.changed.shape, *[1] * (image.ndim - 2))
        inside = torch.where(where, torch.maximum(before.support, after.support.detach()), 0)
        outside = 1 - max_near(inside.amax(1, keepdim=True), scaled_radius(OUTSIDE, image))
        sizes = (asked.changed * before.support.flatten(2).mean((0, 2))).sum(1).clamp(min=SMALLEST_SIZE)
        found = (outside * (counterfactual - image).abs()).flatten(1).mean(1) / sizes
        return torch.where(asked.changed.any(1), found, 0).mean()

    def total(self, terms: CFTTerms, progress: float = 1.0) -> Tensor:
        """The weighted sum of the terms.

        Args:
            terms: from a call.
            progress: share of the training that is over.
        """
        confining = (
            self.others * terms.others
            + self.locality * terms.locality
            + self.preservation * terms.preservation
            + self.paint * terms.paint
            + self.minimality * terms.minimality
            + self.overshoot * terms.overshoot
        )
        return (
            terms.effectiveness
            + self.relabelling * terms.relabelling
            + self.growth * terms.growth
            + min(1.0, max(WARM_UP_FROM, progress / self.warm_up if self.warm_up else 1.0)) * confining
            + self.smoothness * terms.smoothness
            + self.folding * terms.folding
            + self.anatomy * terms.anatomy
        )


def _unseen(anatomy: Tensor, reference: Tensor) -> Tensor:
    """Loss of the label map that the deformation head predicts (logits, shape (B, C, *finest))."""
    return SEEN(anatomy, F.interpolate(reference, size=anatomy.shape[2:], mode="area"))


def _overshoot(image: Tensor, counterfactual: Tensor) -> Tensor:
    """Excess of a counterfactual's intensity and of its local contrast, which is the difference to the mean around."""
    radius = scaled_radius(FINE, image)
    contrast, made = (maps - mean_near(maps, radius, beyond=False) for maps in (image, counterfactual))
    return _beyond(image, counterfactual) + CONTRAST * _beyond(contrast, made)


def _beyond(factual: Tensor, made: Tensor) -> Tensor:
    """Mean squared amount by which pixels are above or below all factual ones nearby."""
    radius = scaled_radius(NEARBY, factual)
    above, below = made - max_near(factual, radius), -max_near(-factual, radius) - made
    return (F.relu(above).square() + F.relu(below).square()).mean()


def _mean_where(mask: Tensor, values: Tensor) -> Tensor:
    """Mean over cases of the mean of values (B, J) over the variables in the mask (B, J), zero if there are none."""
    return (torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def _exchanged(asked: Asked, before: GuidePrediction, after: GuidePrediction) -> Tensor:
    """What the masks of the variables that are kept gain and lose."""
    if after.pixel is None:
        return after.values.new_zeros(())
    exchanged = (after.support - before.support).abs().flatten(2).sum(2)
    return _mean_where(asked.kept, exchanged * after.pixel * asked.scale)


def _misplaced(asked: Asked, before: GuidePrediction, after: GuidePrediction) -> Tensor:
    """Blurred difference between what masks of changed variables gain and what they gain in the population."""
    if after.pixel is None or asked.growth is None:
        return after.values.new_zeros(())
    change = (asked.wanted - asked.factual).nan_to_num(0)
    expected = change.view(*change.shape, *[1] * (asked.growth.ndim - 1)) * asked.growth
    difference = blurred(after.support - before.support - expected)
    return _mean_where(asked.changed, difference.square().flatten(2).sum(2) * after.pixel * asked.scale)


def _relabelled(asked: Asked, before: GuidePrediction, after: GuidePrediction, gained: Tensor | None) -> Tensor:
    """The term ``relabelling`` of :class:`CFTTerms`; ``gained`` has the shape (B, K, \\*spatial)."""
    if before.log_odds is None or after.log_odds is None or after.pixel is None:
        return after.values.new_zeros(())
    change = torch.where(asked.changed & (after.pixel > 0), (asked.wanted - asked.factual) / after.pixel, 0)
    wrong = _wrong_side(before.log_odds, after.log_odds, change.masked_fill(asked.vanishes, -torch.inf))
    if gained is not None:
        appears = gained[:, asked.columns].clamp(min=0).flatten(2)
        missing = torch.where(appears > 0, F.softplus(-after.log_odds.flatten(2)), 0)
        wrong = torch.where(appears.sum(2) > 0, (appears * missing).sum(2), wrong)
    return _mean_where(asked.changed, wrong * after.pixel * asked.scale)


def _wrong_side(before: Tensor, after: Tensor, change: Tensor) -> Tensor:
    """Cross-entropy of the pixels between a mask and the nearest one with a given number of pixels more or fewer.

    Args:
        before: log-odds of the factual pixels, shape (B, J, *spatial), minus infinity outside the variable's region.
        after: the same of the counterfactual ones, through which the gradient flows.
        change: wanted change in pixels, shape (B, J); minus infinity for none left.

    Returns:
        The sum over the pixels in nats, shape (B, J); zero where no change is wanted.
    """
    rows = change.nonzero(as_tuple=True)
    ordered = after[rows].flatten(1).sort(1, descending=True).values
    room = ordered.isfinite().sum(1)
    count = (ordered > 0).sum(1)
    wanted = ((before[rows].flatten(1) > 0).sum(1) + change[rows].round()).clamp(min=0).minimum(room)
    rank = torch.arange(ordered.shape[1], device=after.device)
    appear = (rank >= count[:, None]) & (rank < wanted[:, None])
    vanish = (rank >= wanted[:, None]) & (rank < count[:, None])
    wrong = torch.where(appear, -ordered, torch.where(vanish, ordered, -torch.inf))
    return torch.zeros_like(change).index_put(rows, F.softplus(wrong).sum(1))
