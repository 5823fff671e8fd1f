"""The style of all figures: colours, fonts, the size of pictures."""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["COLOURS", "DIFFERENCE", "STYLE", "cell_size", "lies_down", "new_figure"]

# Okabe & Ito: distinguishable with every kind of colour vision, and on grey
COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")
DIFFERENCE = "RdBu_r"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "text.parse_math": False,  # users give names: a dollar sign in them must not start a formula
}


def lies_down(shape: tuple[int, ...]) -> bool:
    """Whether pictures (H, W) of this shape are transposed: tall and narrow ones leave no room for their titles."""
    return shape[0] >= 2 * shape[1]


def cell_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height, in inches, at which pictures (H, W) of this shape are drawn."""
    return (2.4, 2.4 * shape[1] / shape[0]) if lies_down(shape) else (1.3, 1.3 * shape[0] / shape[1])


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure
