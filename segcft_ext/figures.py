"""Pictures of counterfactuals and of figures: every function takes arrays and returns a matplotlib figure.

Images are (H, W) with row 0 at the top and intensities in [-1, 1]; label maps are integers of the same shape; a volume
is shown by its middle slice (:func:`picture`). Signed differences share one colour scale, symmetric about zero, in
each figure. Small images are shown with bicubic interpolation.
"""

from __future__ import annotations

import io
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
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = [
    "Panel",
    "change_maps",
    "counterfactual_grid",
    "curves",
    "effectiveness_heatmap",
    "effectiveness_scatter",
    "picture",
    "reconstruction_grid",
    "sample_grid",
    "save_figure",
    "to_png",
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
    """An image (1, *spatial) or (*spatial) as (H, W); of a volume the middle slice through its shortest axis.

    That is a longitudinal cut of a straightened vessel, and the first axis of a cube.
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim < 3:
        return array
    axis = int(np.argmin(array.shape))
    return array.take(array.shape[axis] // 2, axis)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG, without matplotlib's version or a date in it: equal pictures are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_png(figure))
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
    limit = _limit([panel.image - factual.image for panels in blocks.values() for panel in panels])
    count = 1 + max(len(panels) for panels in blocks.values())
    with matplotlib.rc_context(STYLE):
        sheet = _Sheet(count, [3] * len(blocks), factual.image.shape, header=0.34, title=title, legend=True)
        for block, (name, panels) in enumerate(blocks.items()):
            sheet.label(block, name)
            for column, panel in enumerate([factual, *panels]):
                sheet.heading(block, column, "\n".join(filter(None, (panel.title, panel.subtitle))))
                sheet.image(block, 0, column, panel.image)
                sheet.image(block, 2, column, panel.image)
                sheet.contours(block, 2, column, panel.mask, labels, "-")
                if column == 0:
                    sheet.note(block, 1, column, "counterfactual\n– factual")
                else:
                    sheet.image(block, 1, column, panel.image - factual.image, limit)
                    sheet.contours(block, 2, column, factual.mask, labels, ":")
        sheet.colour_bar(limit)
        sheet.legend(labels)
    return sheet.figure


def reconstruction_grid(images: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], title: str = "") -> Figure:
    """Images, their reconstructions and the signed differences, one column for each pair."""
    differences = [b - a for a, b in zip(images, reconstructions)]
    limit = _limit(differences)
    with matplotlib.rc_context(STYLE):
        sheet = _Sheet(len(images), [1, 1, 1], images[0].shape, header=0.04, title=title)
        for row, name in enumerate(("image", "reconstruction", "difference")):
            sheet.label(row, name)
        for column, rows in enumerate(zip(images, reconstructions, differences)):
            for row, image in enumerate(rows):
                sheet.image(row, 0, column, image, limit if row == 2 else None)
        sheet.colour_bar(limit)
    return sheet.figure


def sample_grid(images: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 8, title: str = "") -> Figure:
    """Pictures side by side, e.g. samples of a model, each with an optional line of text above."""
    columns = min(columns, len(images))
    with matplotlib.rc_context(STYLE):
        sheet = _Sheet(columns, [1] * -(-len(images) // columns), images[0].shape, 0.2 if titles else 0.04, title)
        for index, image in enumerate(images):
            row, column = divmod(index, columns)
            sheet.image(row, 0, column, image)
            if index < len(titles):
                sheet.heading(row, column, titles[index])
    return sheet.figure


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
                    wanted, achieved, s=5, alpha=0.6, color=COLOURS[row % len(COLOURS)], linewidths=0, zorder=3
                )
                if math.isfinite(slope):
                    axis.plot(ends, slope * ends + intercept, color="0.1", linewidth=1, zorder=2)
                axis.text(0.05, 0.95, f"slope {round(slope, 2) + 0.0:.2f}", transform=axis.transAxes, va="top")
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


def change_maps(maps: Mapping[str, Mapping[str, np.ndarray]], lines: Sequence[float] = ()) -> Figure:
    """Mean absolute change of the image, a row for each intervention and a column for each method, on one scale.

    Args:
        maps: (H, W) by method and intervened variable.
        lines: borders of regions along the first axis, as fractions of the image.
    """
    interventions = list(next(iter(maps.values())))
    shape = next(iter(next(iter(maps.values())).values())).shape
    lying = _lying(shape)
    width, height = _cell(shape)
    limit = max(float(np.quantile(image, 0.998)) for each in maps.values() for image in each.values()) or 1.0
    with matplotlib.rc_context(STYLE):
        figure = _figure((width + 0.08) * len(maps) + 2.6, (height + 0.08) * len(interventions) + 0.5)
        axes = figure.subplots(len(interventions), len(maps), squeeze=False)
        for column, (method, each) in enumerate(maps.items()):
            for row, do in enumerate(interventions):
                axis: Axes = axes[row, column]
                image = each[do].T if lying else each[do]
                shown = axis.imshow(image, cmap="magma", vmin=0, vmax=limit, interpolation="bicubic")
                for line in lines:
                    draw = axis.axvline if lying else axis.axhline
                    draw(line * shape[0] - 0.5, color="white", linewidth=0.6, linestyle=":")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(method, fontweight="bold")
                if column == 0:
                    axis.set_ylabel(f"do({_words(do)})", rotation=0, ha="right", va="center")
        bar = figure.colorbar(shown, ax=axes, pad=0.02, fraction=0.04)
        bar.set_label("mean absolute change")
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
        caption: what the figure is, with its unit.
        digits: decimals shown.
    """
    limit = max(float(np.nanmax(m)) for m in matrices.values())
    with matplotlib.rc_context(STYLE):
        wide, high = 0.62 * len(measured) + 0.25, 0.5 * len(interventions)
        # large matrices stand in two columns, small ones in a row
        across = min(len(matrices), 2 if len(measured) > 5 else len(matrices))
        down = -(-len(matrices) // across)
        figure = _figure(wide * across + 1.9, (high + 0.3) * down + 1.0)
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
            axis.set_title(name, fontweight="bold")
            lowest = place + across >= len(matrices)
            axis.set_xticks(
                range(len(measured)), [_words(m) if lowest else "" for m in measured], rotation=35, ha="right"
            )
            axis.set_yticks(range(len(interventions)), [f"do({_words(d)})" for d in interventions])
            axis.tick_params(length=0, labelleft=place % across == 0)
            axis.spines[:].set_visible(False)
        bar = figure.colorbar(shown, ax=grid, pad=0.02, fraction=0.04)
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


class _Sheet:
    """Pictures in rows and columns on one axis whose unit is the inch; rows come in blocks with a heading.

    Pictures much taller than wide, such as straightened vessels, are laid down, their first row at the left.
    One axis for everything: hundreds of axes with an automatic layout take seconds to draw.

    Args:
        columns: number of columns.
        rows: number of rows of each block.
        shape: (H, W) of the pictures.
        header: height above each block.
        title: above everything.
        legend: leave room for one.
    """

    GAP, LEFT, BAR = 0.05, 0.3, 0.75

    def __init__(
        self,
        columns: int,
        rows: Sequence[int],
        shape: tuple[int, ...],
        header: float,
        title: str = "",
        legend: bool = False,
    ) -> None:
        self.lying = _lying(shape)
        self.cell, self.height = _cell(shape)
        step = self.height + self.GAP
        self.rows = list(rows)
        self.top = [0.32 if title else 0.06]
        for count in rows:
            self.top.append(self.top[-1] + header + count * step + 0.04)
        self.header = header
        self.right = self.LEFT + columns * (self.cell + self.GAP)
        size = (self.right + self.BAR, self.top[-1] + 0.3 * legend + 0.05)
        self.figure = Figure(figsize=size, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axis: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axis.axis("off")
        if title:
            self.axis.text(self.LEFT, 0.19, title, fontsize=10, fontweight="bold", va="center")

    def _place(self, block: int, row: int, column: int) -> tuple[float, float]:
        """Left and upper edge of a cell."""
        y = self.top[block] + self.header + row * (self.height + self.GAP)
        return self.LEFT + column * (self.cell + self.GAP), y

    def image(self, block: int, row: int, column: int, image: np.ndarray, limit: float | None = None) -> None:
        """An image in [-1, 1], or a signed difference with the limit of its colour scale."""
        x, y = self._place(block, row, column)
        self.axis.imshow(
            image.T if self.lying else image,
            cmap="gray" if limit is None else DIFFERENCE,
            vmin=-(limit or 1),
            vmax=limit or 1,
            extent=(x, x + self.cell, y + self.height, y),
            interpolation="bicubic",
        )
        # showing an image changes the axis's limits
        width, height = self.figure.get_size_inches()
        self.axis.set(xlim=(0, width), ylim=(height, 0), aspect="auto")

    def contours(
        self, block: int, row: int, column: int, mask: np.ndarray, labels: Mapping[str, int], style: str
    ) -> None:
        """Outlines of the structures of a label map."""
        x, y = self._place(block, row, column)
        mask = mask.T if self.lying else mask
        xs = x + (np.arange(mask.shape[1]) + 0.5) * self.cell / mask.shape[1]
        ys = y + (np.arange(mask.shape[0]) + 0.5) * self.height / mask.shape[0]
        for number, value in enumerate(labels.values()):
            inside = (mask == value).astype(float)
            if 0 < inside.mean() < 1:
                colour, width = COLOURS[number % len(COLOURS)], 1.1 if style == "-" else 0.8
                self.axis.contour(xs, ys, inside, [0.5], colors=[colour], linewidths=width, linestyles=style)

    def heading(self, block: int, column: int, text: str) -> None:
        x, y = self._place(block, 0, column)
        self.axis.text(x + self.cell / 2, y - 0.04, text, ha="center", va="bottom", linespacing=1.2, fontsize=7)

    def note(self, block: int, row: int, column: int, text: str) -> None:
        x, y = self._place(block, row, column)
        self.axis.text(x + self.cell / 2, y + self.height / 2, text, ha="center", va="center", color="0.45")

    def label(self, block: int, text: str) -> None:
        """The name of a block, at its left."""
        middle = self._place(block, 0, 0)[1] + self.rows[block] * (self.height + self.GAP) / 2
        self.axis.text(self.LEFT / 2, middle, text, rotation=90, ha="center", va="center", fontweight="bold")

    def colour_bar(self, limit: float) -> None:
        width, height = self.figure.get_size_inches()
        length = min(2.2, 0.6 * height)
        axis = self.figure.add_axes(
            ((self.right + 0.06) / width, 0.5 - length / height / 2, 0.1 / width, length / height)
        )
        scale = ScalarMappable(Normalize(-limit, limit), DIFFERENCE)
        bar = self.figure.colorbar(scale, cax=axis)
        bar.set_label("signed difference (images in [–1, 1])", fontsize=7)
        bar.ax.tick_params(width=0.4, length=2)
        bar.outline.set_linewidth(0.4)

    def legend(self, labels: Mapping[str, int]) -> None:
        lines = [Line2D([], [], color=COLOURS[n % len(COLOURS)], label=_words(name)) for n, name in enumerate(labels)]
        lines.append(Line2D([], [], color="0.4", linestyle=":", label="before the intervention"))
        self.figure.legend(handles=lines, loc="lower center", ncols=len(lines))


def _lying(shape: tuple[int, ...]) -> bool:
    """Whether pictures (H, W) of this shape are laid down: tall and narrow ones leave no room for their titles."""
    return shape[0] >= 2 * shape[1]


def _cell(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height of a picture in inches."""
    return (2.4, 2.4 * shape[1] / shape[0]) if _lying(shape) else (1.3, 1.3 * shape[0] / shape[1])


def _limit(differences: Sequence[np.ndarray]) -> float:
    """Of the colour scale: nearly the largest difference, so that a single pixel does not wash out the rest."""
    return max(0.05, float(np.quantile(np.abs(differences), 0.998)))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")


def _unit(units: Mapping[str, str], variable: str) -> str:
    return f" [{units[variable]}]" if units.get(variable) else ""
