"""Realism: do counterfactuals look like real test images to a network?

FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) compare the distribution of features of counterfactual images
with that of the real test images, through :mod:`torchmetrics`. The usual Inception network would have to be downloaded
and has never seen a radiograph; here the features are those at the judge's bottleneck, averaged over the image. They
are named in every table, because figures in the features of different networks cannot be compared. Features are
standardised by the real test images' mean and standard deviation, so that no channel dominates by its scale alone.

A counterfactual must not be compared with its own factual image: the less a method changes, the better it would do.
So the test cases are divided at random into two halves, the counterfactuals of each half are compared with the real
images of the other one, and this is repeated and averaged. Each time, one counterfactual of each case takes part,
because several of one case resemble each other more than cases do. The figure of the identity is then the distance
between two sets of *real* images.

With tens of images FID is biased upwards, for all methods alike, and only the ranking is meaningful; KID is unbiased.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from segcft_ext.seeding import same_draws

__all__ = ["BottleneckFeatures", "realism"]

SPLITS = 10
KID_SUBSETS = 10
KID_SUBSET_SIZE = 1000  # at most; the smaller set is used as a whole where it has fewer


class BottleneckFeatures(nn.Module):
    """Image -> features of a network at its lowest resolution, averaged over the image.

    The layer is found by running an example: among the layers whose output has the fewest pixels, the one with the most
    channels; of several such, the last.

    Args:
        network: a convolutional network on images (B, 1, *spatial).
        example: an image of the size that is used, shape (1, 1, *spatial).
        name: what to call the network.

    Attributes:
        name: network and layer, for tables.
        num_features: length of the features.

    Raises:
        ValueError: when no layer has a lower resolution than the image.
    """

    def __init__(self, network: nn.Module, example: Tensor, name: str) -> None:
        super().__init__()
        self.network = network
        pixels = example[0, 0].numel()
        calls: dict[str, list[Any]] = defaultdict(list)

        def look(layer: str) -> Any:
            return lambda module, inputs, output: calls[layer].append(output)

        handles = [m.register_forward_hook(look(layer)) for layer, m in network.named_modules() if layer]
        with torch.no_grad():
            network(example)
        for handle in handles:
            handle.remove()
        maps = {  # a layer that is used several times has no single output
            layer: outputs[0]
            for layer, outputs in calls.items()
            if len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == example.ndim
        }
        order = {layer: (-m[0, 0].numel(), m.shape[1], n) for n, (layer, m) in enumerate(maps.items())}
        self.layer = max(order, key=lambda layer: order[layer], default="")
        if not maps or maps[self.layer][0, 0].numel() >= pixels:
            raise ValueError(f"{name}: no layer has a lower resolution than the image, {tuple(example.shape[2:])}")
        self.num_features = maps[self.layer].shape[1]
        self.name = f"{name}, layer {self.layer}, averaged over the image ({self.num_features} features)"

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features of shape (B, num_features)."""
        kept: list[Tensor] = []
        handle = self.network.get_submodule(self.layer).register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        try:
            self.network(image)
        finally:
            handle.remove()
        return kept[-1].flatten(2).mean(2)


class _Given(nn.Module):
    """Takes the place of torchmetrics' feature network, since the features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def realism(
    features: Tensor, cases: Sequence[str], real: Tensor, real_cases: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """FID and KID between images and the real images of other cases, half against half.

    Args:
        features: features of the counterfactuals, or of further real images, shape (N, F).
        cases: the case of each of these, length N.
        real: features of the real test images, shape (M, F).
        real_cases: the case of each of these, length M.
        seed: seed of the halves.

    Returns:
        ``fid`` and ``kid``, means over the halves; ``kid_sd``, the standard deviation over them; and the number ``n``
        of images judged. NaN for fewer than four cases.
    """
    names, further = sorted(set(real_cases)), sorted(set(cases) - set(real_cases))
    if min(len(names), len(further) or math.inf) < 4:
        return {"fid": math.nan, "kid": math.nan, "kid_sd": math.nan, "n": len(features)}
    mean, deviation = real.double().mean(0), real.double().std(0)
    # a channel that is nearly silent on real images must not drown the others
    scale = deviation.clamp_min(0.01 * float(deviation.max()) or 1.0)
    features, real = ((f.double() - mean) / scale for f in (features, real))
    by_case = {case: [row for row, own in enumerate(cases) if own == case] for case in set(cases)}
    rng, found = np.random.default_rng(seed), []
    for _ in range(SPLITS):
        half = {case for group in (names, further) for case in rng.permutation(group)[: len(group) // 2].tolist()}
        for side in (True, False):
            own = [int(rng.choice(rows)) for case, rows in sorted(by_case.items()) if (case in half) == side]
            other = [n for n, case in enumerate(real_cases) if (case in half) != side]
            found.append(_distances(features[own], real[other], seed))
    fid, kid = zip(*found)
    return {"fid": fmean(fid), "kid": fmean(kid), "kid_sd": pstdev(kid), "n": len(features)}


def _distances(features: Tensor, real: Tensor, seed: int) -> tuple[float, float]:
    """FID and KID between two sets of features, at least two of each."""
    network = _Given(features.shape[1])
    fid = FrechetInceptionDistance(feature=network)
    size = min(KID_SUBSET_SIZE, len(features), len(real))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")
        kid = KernelInceptionDistance(feature=network, subsets=KID_SUBSETS, subset_size=size)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(features, real=False)
    with same_draws(seed):  # the subsets of KID are drawn from the global generator
        return float(fid.compute()), float(kid.compute()[0])
