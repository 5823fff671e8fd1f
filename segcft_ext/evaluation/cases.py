"""A batch of test cases on its way through the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from segcft_ext.evaluation.methods import Method

__all__ = ["Cases"]


@dataclass(frozen=True)
class Cases:
    """Test cases with everything that is known about them before an intervention.

    Attributes:
        ids: the cases, length B.
        image: shape (B, 1, *spatial), in [-1, 1].
        label: label maps, shape (B, 1, *spatial).
        spacing: in mm, shape (B, D), NaN where unknown.
        values: all variables in the datalist's order, shape (B, K), NaN where missing.
        variables: their names.
        before: the judge's measurements on the factual images, shape (B, J).
        measured: names of the measured variables.
    """

    ids: Sequence[str]
    image: Tensor
    label: Tensor
    spacing: Tensor
    values: Tensor
    variables: Sequence[str]
    before: Tensor
    measured: Sequence[str]

    @property
    def factual(self) -> Tensor:
        """The factual values of the measured variables, shape (B, J)."""
        return self.of(self.measured)

    def of(self, names: Sequence[str]) -> Tensor:
        """The factual values of these variables, in this order."""
        return self.values[:, [self.variables.index(name) for name in names]]

    def of_method(self, method: Method) -> Tensor:
        """The factual values in the order of a method's own variables."""
        return self.of(method.variables.names)

    def repeat(self, times: int) -> Cases:
        """Each case repeated ``times`` times in a row."""
        repeated: dict[str, Any] = {
            key: value.repeat_interleave(times, 0) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, ids=[key for key in self.ids for _ in range(times)], **repeated)

    def frame(self, figures: dict[str, Any], **constants: str) -> pd.DataFrame:
        """A table with a row for each case.

        Args:
            figures: columns, (B,) each; one of shape (B, J) becomes a column ``figure.variable`` for each measured
                variable.
            **constants: columns with the same value everywhere.
        """
        columns: dict[str, Any] = {**constants, "id": list(self.ids)}
        for name, values in figures.items():
            values = values.double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            if values.ndim == 2:
                columns |= {f"{name}.{variable}": values[:, j] for j, variable in enumerate(self.measured)}
            else:
                columns[name] = values
        return pd.DataFrame(columns)
