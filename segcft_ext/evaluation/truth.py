"""The truth, where it is known: a phantom's counterfactual, rendered again with the same noise.

The datalist's ``truth`` names the renderer and each case keeps the ``exogenous`` noise it was drawn with. The true
counterfactual is the same case with the variable set, everything else as it was. Against it:

* ``psnr`` in dB and ``ssim`` of the image, ``mae`` of its intensities; images are in [-1, 1], so their range is 2;
* ``psnr_near``, the PSNR of the pixels near any structure, before or after (within the margin of the locality), because
  most pixels of an image of a vessel do not show it;
* ``dice`` of the judge's masks of the intervened variable;
* the error of the judge's measurements against the *true* variables, measured on the true label map.

Interventions that truly change no pixel of their variable's mask do not count: where many cases have no plaque, many
ask for none, and the PSNR of the identity would be infinite. Others ask for a change of less than a pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from monai.utils.module import optional_import
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from segcft_ext.datalist import Datalist
from segcft_ext.datalist_format import DatalistError

__all__ = ["Truth", "image_quality"]

RANGE = 2.0
LOGGER = logging.getLogger(__name__)


class Renderer(Protocol):
    def counterfactual(
        self, variables: Mapping[str, float], exogenous: Mapping[str, Any], do: Mapping[str, float]
    ) -> tuple[Mapping[str, float], np.ndarray, np.ndarray]: ...


class Truth:
    """Renders the true counterfactuals of a datalist's test cases.

    Args:
        datalist: with ``truth`` in its header and ``exogenous`` in its test entries.

    Raises:
        DatalistError: when the renderer is not one of ``data_prep``, or a test case lacks its noise.
    """

    def __init__(self, datalist: Datalist) -> None:
        config = dict(datalist.truth or {})
        target = str(config.pop("_target_", ""))
        module, _, name = target.rpartition(".")
        # a datalist is data: it may name our renderers, and nothing else
        found: Any = optional_import(module, name=name)[0] if module.startswith("data_prep.") else None
        if not (isinstance(found, type) and hasattr(found, "counterfactual")):
            raise DatalistError(
                f"{datalist.path}: truth._target_: found {target!r}, expected a phantom of data_prep with a "
                "'counterfactual' method"
            )
        self.renderer: Renderer = found(**config)
        self.size = datalist.size
        self.entries = {entry["id"]: entry for entry in datalist.entries["test"]}
        for key, entry in self.entries.items():
            if entry.get("exogenous") is None:
                raise DatalistError(f"{datalist.path}: test case {key!r}: exogenous: found nothing, expected its noise")

    def __call__(self, ids: Sequence[str], do: Mapping[str, Sequence[float]]) -> tuple[Tensor, Tensor]:
        """True counterfactuals of test cases.

        Args:
            ids: the cases, length B.
            do: target of each intervened variable for each case.

        Returns:
            Images (B, 1, *spatial) in [-1, 1] and integer label maps (B, 1, *spatial). Where the phantom has no room
            for the target, the image is NaN and the label map empty, which is logged.
        """
        images, labels = [], []
        for row, key in enumerate(ids):
            entry, action = self.entries[key], {name: float(targets[row]) for name, targets in do.items()}
            try:
                _, image, label = self.renderer.counterfactual(entry["variables"], entry["exogenous"], action)
            except ValueError as error:
                LOGGER.warning("test case %s has no true counterfactual under %s: %s", key, action, error)
                image, label = np.full(self.size, np.nan), np.zeros(self.size)
            images.append(torch.as_tensor(np.asarray(image, dtype=np.float32))[None] * 2 - 1)
            labels.append(torch.as_tensor(np.asarray(label, dtype=np.int64))[None])
        return torch.stack(images), torch.stack(labels)


def image_quality(image: Tensor, truth: Tensor, near: Tensor) -> dict[str, Tensor]:
    """PSNR (dB), SSIM and mean absolute error of images against true ones, (B, 1, *spatial) in [-1, 1].

    Args:
        image: the counterfactuals.
        truth: the true counterfactuals.
        near: boolean masks of the same shape, the pixels of ``psnr_near``.

    Returns:
        ``psnr``, ``psnr_near``, ``ssim`` and ``mae``, each of shape (B,). The PSNR of a perfect image is infinite.
    """
    difference, inside = (image - truth).flatten(1).double(), near.flatten(1).double()
    squared = difference.square().mean(1)
    squared_near = (difference.square() * inside).sum(1) / inside.sum(1)
    # SSIM compares local means by their ratio, so intensities must start at zero
    ssim = structural_similarity_index_measure(image + 1, truth + 1, data_range=RANGE, reduction="none")
    return {
        "psnr": 10 * torch.log10(RANGE**2 / squared),
        "psnr_near": 10 * torch.log10(RANGE**2 / squared_near),
        "ssim": torch.as_tensor(ssim).double().reshape(-1),
        "mae": difference.abs().mean(1),
    }
