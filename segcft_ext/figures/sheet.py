"""The layout of grids of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from segcft_ext.figures.style import COLOURS, DIFFERENCE, cell_size, lies_down
from segcft_ext.wording import words

__all__ = ["Sheet"]


class Sheet:
    """Pictures in rows and columns on one axis whose unit is the inch; rows come in blocks with a heading.

    Pictures at least twice as tall as wide, such as straightened vessels, are transposed, with their first row at the
    left. One axis holds everything, because hundreds of axes with an automatic layout take seconds to draw.

    Args:
        columns: number of columns.
        rows: number of rows of each block.
        shape: (H, W) of the pictures.
        header: height above each block, in inches.
        title: title above everything.
        legend: names of the structures in the legend below; without any, there is none.
        dotted: what dotted outlines are, in the legend.
    """

    GAP, LEFT, BAR = 0.05, 0.3, 0.75
    LETTERS_PER_INCH = 17  # of headings and legend

    def __init__(
        self,
        columns: int,
        rows: Sequence[int],
        shape: tuple[int, ...],
        header: float,
        title: str = "",
        legend: Sequence[str] = (),
        dotted: str = "before the intervention",
    ) -> None:
        self.lying = lies_down(shape)
        self.cell, self.height = cell_size(shape)
        step = self.height + self.GAP
        self.rows = list(rows)
        more = 0.16 * title.count("\n")
        self.top = [0.32 + more if title else 0.06]
        for count in rows:
            self.top.append(self.top[-1] + header + count * step + 0.04)
        self.header = header
        self.right = self.LEFT + columns * (self.cell + self.GAP)
        self.entries = [*map(words, legend), dotted] if legend else []
        length = sum(0.45 + len(entry) / self.LETTERS_PER_INCH for entry in self.entries)  # 0.45: line and gap
        self.lines = math.ceil(length / (self.right + self.BAR))  # of the legend
        below = 0.15 + 0.15 * self.lines if legend else 0
        size = (self.right + self.BAR, self.top[-1] + below + 0.05)
        self.figure = Figure(figsize=size, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axis: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axis.axis("off")
        if title:
            self.axis.text(self.LEFT, 0.19 + more / 2, title, fontsize=10, fontweight="bold", va="center")

    def _place(self, block: int, row: int, column: int) -> tuple[float, float]:
        """Left and upper edge of a cell in inches."""
        y = self.top[block] + self.header + row * (self.height + self.GAP)
        return self.LEFT + column * (self.cell + self.GAP), y

    def image(self, block: int, row: int, column: int, image: np.ndarray, limit: float | None = None) -> None:
        """Draw an image in [-1, 1] or, with the limit of its colour scale, a signed difference."""
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
        """Draw the outlines of the structures of a label map."""
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
        """Write the name of a block at its left."""
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

    def legend(self) -> None:
        *structures, dotted = self.entries
        drawn = [Line2D([], [], color=COLOURS[n % len(COLOURS)], label=name) for n, name in enumerate(structures)]
        drawn.append(Line2D([], [], color="0.4", linestyle=":", label=dotted))
        self.figure.legend(handles=drawn, loc="lower center", ncols=math.ceil(len(drawn) / self.lines))
