"""Where a structure grows under an intervention, compared with where it grows in the population.

The mean change of its mask for one unit of its variable, by least squares over cases and interventions, should be that
of the population (:mod:`segcft_ext.population`). So the gain maps S of the counterfactuals, from the judge's masks, are
compared with the growth maps G of the real training cases, from their label maps:

    misplaced = sum |blur(S) - blur(G)| / (2 sum |blur(G)|)

0: the structure grows where it does in the population. 1/2: it does not change at all. 1: it grows elsewhere only.
"""

from __future__ import annotations

from torch import Tensor

from segcft_ext.population import blurred

__all__ = ["GainMap", "misplaced"]


class GainMap:
    """Least squares of the change of masks over the wanted change of their variable, through the origin."""

    def __init__(self, products: Tensor | float = 0.0, squares: Tensor | float = 0.0) -> None:
        self.products = products
        self.squares = squares

    def add(self, change: Tensor, wanted: Tensor) -> None:
        """Add changes of masks (B, *spatial) under wanted changes of the variable (B,)."""
        products = (change * wanted.view(-1, *[1] * (change.ndim - 1))).double().sum(0)
        self.merge(GainMap(products.cpu(), wanted.double().square().sum().cpu()))

    def merge(self, other: GainMap) -> None:
        """Add everything that another map has added up."""
        self.products = self.products + other.products
        self.squares = self.squares + other.squares

    def result(self) -> Tensor:
        """Gained share of each pixel for one unit, shape (*spatial); NaN where no change was wanted."""
        return self.products / self.squares  # type: ignore[return-value]


def misplaced(gained: Tensor, growth: Tensor) -> float:
    """How much of the growth is elsewhere than in the population, from two maps (*spatial)."""
    found, expected = (blurred(maps[None, None].double()) for maps in (gained, growth))
    return float((found - expected).abs().sum() / (2 * expected.abs().sum()))
