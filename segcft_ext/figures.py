"""Pictures of counterfactuals and of figures: every function takes arrays and returns a matplotlib figure.

Images are (H, W) with row 0 at the top and intensities in [-1, 1]; label maps are integers of the same shape; a volume
is shown by its middle slice (:func:`picture`). Signed differences share one colour scale, symmetric about zero, in
each figure.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = [
    "Panel",
    "counterfactual_grid",
    "curves",
    "effectiveness_heatmap",
    "effectiveness_scatter",
    "picture",
    "reconstruction_grid",
    "sample_grid",
    "save_figure",
]

# Okabe & Ito: told apart with every kind of colour vision, and on grey
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
}
DPI = 160


@dataclass(frozen=True)
class Panel:
    """One picture of a grid: an image, what a segmentor sees in it, and two lines of text above."""

    image: np.ndarray
    mask: np.ndarray
    title: str = ""
    subtitle: str = ""


def picture(image: Tensor | np.ndarray) -> np.ndarray:
    """An image (1, *spatial) or (*spatial) as (H, W); of a volume (D, H, W) the middle slice."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array[array.shape[0] // 2] if array.ndim == 3 else array


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a PNG.

    Only the picture is written, without matplotlib's version or a date, so that equal pictures are equal files.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def counterfactual_grid(
    factual: Panel, blocks: Mapping[str, Sequence[Panel]], labels: Mapping[str, int], title: str = ""
) -> Figure:
    """Counterfactuals of one image: image, signed difference and contours below each other, side by side for a sweep.

    Args:
        factual: the image before the intervention, with its label map; the first column.
        blocks: rows of counterfactuals by name (a method, or a target), all equally long.
        labels: the structures whose contours are drawn, by name.
        title: above everything.
    """
    columns = 1 + max(len(panels) for panels in blocks.values())
    differences = [panel.image - factual.image for panels in blocks.values() for panel in panels]
    limit = max(0.05, float(np.quantile(np.abs(differences), 0.998)))
    with matplotlib.rc_context(STYLE):
        height, width = factual.image.shape
        cell = 1.25
        rows = 3 * len(blocks)
        figure = _figure(cell * columns + 1.1, cell * height / width * rows + 0.36 * len(blocks) + 0.75)
        grid = figure.add_gridspec(len(blocks), 1, hspace=0.13)
        shown: Any = None
        for block, (name, panels) in enumerate(blocks.items()):
            inner = grid[block].subgridspec(3, columns, wspace=0.04, hspace=0.04)
            for column, panel in enumerate([factual, *panels]):
                axes = [figure.add_subplot(inner[row, column]) for row in range(3)]
                _show(axes[0], panel.image)
                axes[0].set_title("\n".join(filter(None, (panel.title, panel.subtitle))), pad=3, linespacing=1.15)
                if column == 0:
                    axes[1].axis("off")
                    axes[1].text(0.5, 0.5, "counterfactual\n– factual", ha="center", va="center", color="0.4")
                    _label(axes[0], name)
                else:
                    shown = axes[1].imshow(panel.image - factual.image, cmap=DIFFERENCE, vmin=-limit, vmax=limit)
                    _bare(axes[1])
                _show(axes[2], panel.image)
                _contours(axes[2], panel.mask, labels, "-")
                if column > 0:
                    _contours(axes[2], factual.mask, labels, ":")
        bar = figure.colorbar(shown, ax=figure.axes, shrink=0.35, aspect=18, pad=0.015, fraction=0.03)
        bar.set_label("signed difference (images in [–1, 1])", fontsize=7)
        bar.outline.set_linewidth(0.4)
        _legend(figure, labels)
        if title:
            figure.suptitle(title)
    return figure


def reconstruction_grid(images: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], title: str = "") -> Figure:
    """Images, their reconstructions and the signed differences, one column for each pair."""
    differences = [b - a for a, b in zip(images, reconstructions)]
    limit = max(0.05, float(np.quantile(np.abs(differences), 0.998)))
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.25 * len(images) + 1.2, 1.25 * 3 + 0.5)
        axes = figure.subplots(3, len(images), squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
        for column, (image, reconstruction, difference) in enumerate(zip(images, reconstructions, differences)):
            _show(axes[0, column], image)
            _show(axes[1, column], reconstruction)
            shown = axes[2, column].imshow(difference, cmap=DIFFERENCE, vmin=-limit, vmax=limit)
            _bare(axes[2, column])
        for row, name in enumerate(("image", "reconstruction", "difference")):
            _label(axes[row, 0], name)
        bar = figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.35, aspect=12, pad=0.015, fraction=0.03)
        bar.outline.set_linewidth(0.4)
        if title:
            figure.suptitle(title)
    return figure


def sample_grid(images: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 8, title: str = "") -> Figure:
    """Pictures side by side, e.g. samples of a model, each with an optional line of text."""
    rows = -(-len(images) // columns)
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.25 * min(columns, len(images)) + 0.1, (1.25 + 0.2 * bool(titles)) * rows + 0.4)
        axes = figure.subplots(rows, min(columns, len(images)), squeeze=False)
        for index, axis in enumerate(axes.ravel()):
            if index < len(images):
                _show(axis, images[index])
                axis.set_title(titles[index] if index < len(titles) else "", pad=2, fontsize=6)
            else:
                axis.axis("off")
        if title:
            figure.suptitle(title)
    return figure


def effectiveness_scatter(
    changes: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    lines: Mapping[str, Mapping[str, tuple[float, float]]],
    units: Mapping[str, str],
) -> Figure:
    """Achieved over wanted change of the intervened variable.

    Args:
        changes: for each method and intervened variable the wanted and the achieved changes.
        lines: for each method and intervened variable the slope and the intercept of the fitted line.
        units: unit of each variable.
    """
    methods, variables = list(changes), list(next(iter(changes.values())))
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.75 * len(methods) + 0.5, 1.75 * len(variables) + 0.6)
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
                    wanted, achieved, s=5, alpha=0.45, color=COLOURS[row % len(COLOURS)], linewidths=0, zorder=2
                )
                if math.isfinite(slope):
                    axis.plot(ends, slope * ends + intercept, color="0.1", linewidth=1, zorder=3)
                axis.text(0.05, 0.95, f"slope {slope:.2f}", transform=axis.transAxes, va="top")
                axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
                axis.xaxis.set_major_locator(MaxNLocator(5))
                axis.yaxis.set_major_locator(MaxNLocator(5))
                if row == 0:
                    axis.set_title(method, fontweight="bold")
                if column == 0:
                    axis.set_ylabel(f"{_words(variable)}\nachieved change{_unit(units, variable)}")
                if row == len(variables) - 1:
                    axis.set_xlabel(f"wanted change{_unit(units, variable)}")
    return figure


def effectiveness_heatmap(
    matrices: Mapping[str, np.ndarray], interventions: Sequence[str], measured: Sequence[str], caption: str
) -> Figure:
    """A matrix do(row) x measured column for each method, on one colour scale.

    Args:
        matrices: figures of each method, shape (interventions, measured); NaN stays empty.
        interventions, measured: names of rows and columns.
        caption: what the figure is, with its unit.
    """
    limit = max(float(np.nanmax(m)) for m in matrices.values())
    with matplotlib.rc_context(STYLE):
        wide, high = 0.62 * len(measured) + 0.25, 0.5 * len(interventions)
        figure = _figure(wide * len(matrices) + 1.9, high + 1.3)
        axes = figure.subplots(1, len(matrices), squeeze=False)[0]
        for axis, (name, matrix) in zip(axes, matrices.items()):
            shown = axis.imshow(matrix, cmap="YlOrRd", vmin=0, vmax=limit, aspect="auto")
            for row, column in np.ndindex(*matrix.shape):
                value = matrix[row, column]
                text = f"{value:.1f}" if math.isfinite(value) else "–"
                dark = math.isfinite(value) and value > 0.6 * limit
                axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
            axis.set_title(name, fontweight="bold")
            axis.set_xticks(range(len(measured)), [_words(m) for m in measured], rotation=35, ha="right")
            axis.set_yticks(range(len(interventions)), [f"do({_words(d)})" for d in interventions])
            axis.tick_params(length=0, labelleft=axis is axes[0])
            axis.spines[:].set_visible(False)
        bar = figure.colorbar(shown, ax=list(axes), pad=0.02, fraction=0.04)
        bar.set_label(caption)
        bar.outline.set_visible(False)
    return figure


def curves(series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], columns: int = 3) -> Figure:
    """Training curves.

    Args:
        series: for each plot its lines, and for each line its steps and values.
        columns: plots side by side.
    """
    rows = -(-len(series) // columns)
    columns = min(columns, len(series))
    with matplotlib.rc_context(STYLE):
        figure = _figure(3.0 * columns, 2.0 * rows + 0.1)
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


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _show(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    _bare(axis)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, fontweight="bold")


def _contours(axis: Axes, mask: np.ndarray, labels: Mapping[str, int], style: str) -> None:
    for number, value in enumerate(labels.values()):
        inside = (mask == value).astype(float)
        if 0 < inside.mean() < 1:
            width = 1.1 if style == "-" else 0.7
            axis.contour(inside, [0.5], colors=[COLOURS[number % len(COLOURS)]], linewidths=width, linestyles=style)


def _legend(figure: Figure, labels: Mapping[str, int]) -> None:
    lines = [Line2D([], [], color=COLOURS[n % len(COLOURS)], label=_words(name)) for n, name in enumerate(labels)]
    lines.append(Line2D([], [], color="0.4", linestyle=":", label="before the intervention"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _unit(units: Mapping[str, str], variable: str) -> str:
    return f" [{units[variable]}]" if units.get(variable) else ""
