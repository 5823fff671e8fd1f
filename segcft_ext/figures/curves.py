"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segcft_ext.figures.style import COLOURS, STYLE, new_figure

__all__ = ["curves"]

COLUMNS = 3  # plots side by side


def curves(series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Figure:
    """Training curves.

    Args:
        series: for each plot its lines, and for each line its steps and values.
    """
    rows, columns = -(-len(series) // COLUMNS), min(COLUMNS, len(series))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.0 * columns, 2.0 * rows + 0.1)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (name, lines) in zip(axes, series.items()):
            for number, (line, (steps, values)) in enumerate(lines.items()):
                marker = "o" if len(steps) == 1 else None
                axis.plot(
                    steps, values, color=COLOURS[number % len(COLOURS)], linewidth=1.1, label=line, marker=marker, ms=3
                )
            axis.set_title(name)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.25, linewidth=0.5)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(lines) > 1:
                axis.legend()
        for axis in axes[len(series) :]:
            axis.axis("off")
    return figure
