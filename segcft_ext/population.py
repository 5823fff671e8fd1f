"""Where structures grow: how the label maps of a population differ with the size of one structure.

An area says how much, not where. But a counterfactual is to come from p(x | pa) at other parents, with exogenous
variables that do not depend on them. So on average over the cases its masks have to differ from the factual ones as
the masks of real cases that differ in that variable alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from monai.data import Dataset
from monai.networks.utils import one_hot
from torch import Tensor

from segcft_ext.measurements import Measurement
from segcft_ext.networks.pooling import mean_near, scaled_radius

__all__ = ["blurred", "growth_maps"]

BLUR = 16.0  # pixels at an image of 256
RIDGE = 1e-6
LOGGER = logging.getLogger(__name__)


@torch.no_grad()
def growth_maps(
    measurements: Mapping[str, Measurement], dataset: Dataset, variables: Sequence[str], num_classes: int
) -> Tensor | None:
    """The gain of each pixel of a mask for one unit of its variable, the other variables being the same.

    .. math:: G_j(p) = \\partial E[m_j(p) | pa] / \\partial pa_j

    by a linear regression of each pixel of the label maps on all measured variables.

    Args:
        measurements: the measurement of each of J variables.
        dataset: cases with ``label`` (1, \\*spatial) and ``variables`` (K,) in physical units.
        variables: names of these K variables.
        num_classes: number of classes of the label maps.

    Returns:
        Share of each pixel, shape (J, \\*spatial), in the order of the measurements; None without any, and (with a
        warning) where too few cases have all of the variables for a regression on them.
    """
    if not measurements:
        return None
    columns = [list(variables).index(name) for name in measurements]
    values = torch.stack([torch.as_tensor(case["variables"])[columns] for case in dataset.data]).double()
    known = values.isfinite().all(1)
    if int(known.sum()) < len(columns) + 2:
        LOGGER.warning(
            "growth maps: found %d training cases in which all of %s are known, expected %d or more: nothing is said "
            "of where structures grow",
            int(known.sum()),
            list(measurements),
            len(columns) + 2,
        )
        return None
    spread = values[known].std(0).clamp(min=torch.finfo(torch.float32).tiny)
    predictors = (values[known] - values[known].mean(0)) / spread
    covariance = predictors.T @ predictors + RIDGE * len(predictors) * torch.eye(len(columns)).double()
    weights = torch.linalg.solve(covariance, predictors.T) / spread[:, None]
    maps = torch.zeros(())
    for case, weight in zip(known.nonzero()[:, 0].tolist(), weights.T.float(), strict=True):
        label = one_hot(torch.as_tensor(dataset[case]["label"])[None].float(), num_classes)
        masks = torch.cat([measurement.support(label) for measurement in measurements.values()], dim=1)[0]
        maps = maps + weight.view(-1, *[1] * (masks.ndim - 1)) * masks
    return maps


def blurred(masks: Tensor) -> Tensor:
    """Changes of masks (B, C, \\*spatial), averaged twice over 16 pixels each way at an image of 256.

    No two cases have their borders at the same place: only after a blur can a change be compared with the population's.
    """
    radius = scaled_radius(BLUR, masks)
    for _ in range(2):
        masks = mean_near(masks, radius)
    return masks
