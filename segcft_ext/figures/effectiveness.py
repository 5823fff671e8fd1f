"""Figures of the effect of interventions: achieved over wanted change, heat maps of errors, and maps of changes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segcft_ext.figures.style import COLOURS, DIFFERENCE, STYLE, cell_size, lies_down, new_figure
from segcft_ext.wording import words, written_unit

__all__ = ["change_maps", "effectiveness_heatmap", "effectiveness_scatter"]


def effectiveness_scatter(
    changes: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    lines: Mapping[str, Mapping[str, tuple[float, float]]],
    units: Mapping[str, str],
) -> Figure:
    """Achieved over wanted change of the intervened variable.

    Args:
        changes: wanted and achieved changes, by method and intervened variable.
        lines: slope and intercept of the fitted line, by method and intervened variable.
        units: unit of each variable.
    """
    methods, variables = list(changes), list(next(iter(changes.values())))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(1.75 * len(methods) + 0.5, 1.75 * len(variables) + 0.6)
        axes = figure.subplots(len(variables), len(methods), squeeze=False)
        for row, variable in enumerate(variables):
            limit = 1.05 * max(max(np.abs(v).max() for v in changes[m][variable]) for m in methods)
            for column, method in enumerate(methods):
                axis: Axes = axes[row, column]
                wanted, achieved = changes[method][variable]
                slope, intercept = lines[method][variable]
                ends = np.array([-limit, limit])
                axis.plot(ends, ends, color="0.6", linewidth=0.7, linestyle="--", zorder=1)
                axis.scatter(
                    wanted, achieved, s=5, alpha=0.6, color=COLOURS[row % len(COLOURS)], linewidths=0, zorder=3
                )
                if math.isfinite(slope):
                    axis.plot(ends, slope * ends + intercept, color="0.1", linewidth=1, zorder=2)
                axis.text(0.05, 0.95, f"slope {round(slope, 2) + 0.0:.2f}", transform=axis.transAxes, va="top")
                axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
                axis.xaxis.set_major_locator(MaxNLocator(5))
                axis.yaxis.set_major_locator(MaxNLocator(5))
                if row == 0:
                    axis.set_title(textwrap.fill(method, 20), fontweight="bold")
                if column == 0:
                    axis.set_ylabel(f"{words(variable)}\nachieved change{_unit(units, variable)}")
                if row == len(variables) - 1:
                    axis.set_xlabel(f"wanted change{_unit(units, variable)}")
    return figure


def change_maps(
    maps: Mapping[str, Mapping[str, np.ndarray]], caption: str, lines: Sequence[float] = (), signed: bool = False
) -> Figure:
    """Maps of changes, with a row for each intervention and a column for each method, on one colour scale.

    Args:
        maps: the maps (H, W), by method and intervened variable.
        caption: what the maps show.
        lines: borders of regions along the first axis, as fractions of the image.
        signed: whether the changes have a sign; otherwise they are zero or more.
    """
    interventions = list(next(iter(maps.values())))
    shape = next(iter(next(iter(maps.values())).values())).shape
    lying = lies_down(shape)
    width, height = cell_size(shape)
    images = [np.abs(image) for each in maps.values() for image in each.values()]
    limit = max(float(np.nanquantile(image, 0.998)) for image in images) or 1.0
    colours, lowest = (DIFFERENCE, -limit) if signed else ("magma", 0.0)
    with matplotlib.rc_context(STYLE):
        figure = new_figure((width + 0.08) * len(maps) + 2.6, (height + 0.08) * len(interventions) + 0.5)
        figure.set_layout_engine("constrained", rect=(0.01, 0, 0.98, 1))  # the default would cut off the row names
        axes = figure.subplots(len(interventions), len(maps), squeeze=False)
        for column, (method, each) in enumerate(maps.items()):
            for row, do in enumerate(interventions):
                axis: Axes = axes[row, column]
                image = each[do].T if lying else each[do]
                shown = axis.imshow(image, cmap=colours, vmin=lowest, vmax=limit, interpolation="bicubic")
                for line in lines:
                    draw = axis.axvline if lying else axis.axhline
                    draw(line * shape[0] - 0.5, color="white", linewidth=0.6, linestyle=":")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(textwrap.fill(method, 16), fontweight="bold")
                if column == 0:
                    axis.set_ylabel(f"do({words(do)})", rotation=0, ha="right", va="center")
        bar = figure.colorbar(shown, ax=axes, pad=0.02, fraction=0.04)
        bar.set_label(caption)
        bar.outline.set_visible(False)
    return figure


def effectiveness_heatmap(
    matrices: Mapping[str, np.ndarray],
    interventions: Sequence[str],
    measured: Sequence[str],
    caption: str,
    digits: int = 1,
) -> Figure:
    """A matrix do(row) x measured column for each method, on one colour scale.

    Args:
        matrices: figures of each method, shape (interventions, measured); NaN stays empty.
        interventions, measured: names of rows and columns.
        caption: what the values are, with their unit.
        digits: decimals shown.
    """
    limit = max(float(np.nanmax(m)) for m in matrices.values())
    with matplotlib.rc_context(STYLE):
        wide, high = 0.62 * len(measured) + 0.25, 0.5 * len(interventions)
        # large matrices are arranged in two columns, small ones in one row
        across = min(len(matrices), 2 if len(measured) > 5 else len(matrices))
        down = -(-len(matrices) // across)
        figure = new_figure(wide * across + 1.9, (high + 0.3) * down + 1.0)
        grid = figure.subplots(down, across, squeeze=False)
        for axis in grid.ravel()[len(matrices) :]:
            axis.axis("off")
        for place, (name, matrix) in enumerate(matrices.items()):
            axis = grid.ravel()[place]
            shown = axis.imshow(matrix, cmap="YlOrRd", vmin=0, vmax=limit, aspect="auto")
            for row, column in np.ndindex(*matrix.shape):
                value = matrix[row, column]
                text = f"{value:.{digits}f}" if math.isfinite(value) else "–"
                dark = math.isfinite(value) and value > 0.6 * limit
                axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
            axis.set_title(textwrap.fill(name, max(16, int(12 * wide))), fontweight="bold")
            lowest = place + across >= len(matrices)
            axis.set_xticks(
                range(len(measured)), [words(m) if lowest else "" for m in measured], rotation=35, ha="right"
            )
            axis.set_yticks(range(len(interventions)), [f"do({words(d)})" for d in interventions])
            axis.tick_params(length=0, labelleft=place % across == 0)
            axis.spines[:].set_visible(False)
        bar = figure.colorbar(shown, ax=grid, pad=0.02, fraction=0.04)
        bar.set_label(caption)
        bar.outline.set_visible(False)
    return figure


def _unit(units: Mapping[str, str], variable: str) -> str:
    unit = units.get(variable)
    return f" [{written_unit(unit)}]" if unit else ""
