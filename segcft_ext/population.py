"""Where structures grow: how the label maps of a population differ with the size of one structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.utils import one_hot
from torch import Tensor
from torch.utils.data import Dataset

from segcft_ext.guides import Guide, SegmentorGuide

__all__ = ["growth_maps"]

RIDGE = 1e-6


@torch.no_grad()
def growth_maps(
    guide: Guide | None, dataset: Dataset[Mapping[str, Any]], variables: Sequence[str], num_classes: int
) -> Tensor | None:
    """Where each structure grows in the population, the others being as large as they are.

    An area says how much, not where. But what is asked of a counterfactual is p(x | pa) at other parents, so on average
    over the cases its masks have to differ from the factual ones as the masks of real cases do:

    .. math:: G_j(p) = \\partial E[m_j(p) | pa] / \\partial pa_j

    taken from a linear regression of each pixel of the label maps on all variables that the guide measures.

    Args:
        guide: names the variables and knows where they live; only a segmentor guide does.
        dataset: training cases with ``label`` (1, \\*spatial) and ``variables`` (K,) in physical units.
        variables: names of these K.
        num_classes: of the label maps.

    Returns:
        Gained share of each pixel for one unit of the variable, shape (J, \\*spatial); None without a segmentor guide.

    Raises:
        ValueError: when fewer cases than that are known in all variables: two more than variables.
    """
    if not isinstance(guide, SegmentorGuide):
        return None
    columns = [list(variables).index(name) for name in guide.names]
    cases = range(len(dataset))  # type: ignore[arg-type]
    values = torch.stack([torch.as_tensor(dataset[i]["variables"])[columns] for i in cases]).double()
    known = values.isfinite().all(1)
    if int(known.sum()) < len(columns) + 2:
        raise ValueError(
            f"growth maps: found {int(known.sum())} training cases in which all of {guide.names} are known, expected "
            f"{len(columns) + 2} or more"
        )
    spread = values[known].std(0).clamp(min=torch.finfo(torch.float32).tiny)
    predictors = (values[known] - values[known].mean(0)) / spread
    covariance = predictors.T @ predictors + RIDGE * len(predictors) * torch.eye(len(columns)).double()
    weights = torch.linalg.solve(covariance, predictors.T) / spread[:, None]
    maps = 0.0
    for i, weight in zip(known.nonzero()[:, 0].tolist(), weights.T.float(), strict=True):
        label = one_hot(torch.as_tensor(dataset[i]["label"])[None].float(), num_classes)
        masks = torch.cat([m.support(label) for m in guide.measurements.values()], dim=1)[0]
        maps = maps + weight.view(-1, *[1] * (masks.ndim - 1)) * masks
    return torch.as_tensor(maps, device=next(guide.network.parameters()).device)
