"""Pictures to look at before training: cases with contours, the variables' distributions and correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from skimage.measure import find_contours

from segcft_ext.datalist import Datalist
from segcft_ext.datalist_format import SPLITS, Variable
from segcft_ext.figures import picture
from segcft_ext.figures.style import lies_down
from segcft_ext.folders import write_atomically
from segcft_ext.wording import words, written_unit

__all__ = [
    "correlation_figure",
    "draw_contact_sheet",
    "draw_variables",
    "sheet_figure",
    "shown_size",
    "spread_cases",
    "variables_figure",
]

AS_WRITTEN: Any = {"text.parse_math": False}
"""Names are given by the user: a dollar sign in them must not start a formula."""

MAX_CASES = 40
COLUMNS = 8
WIDTH = 12.8  # of a sheet, in inches


def draw_contact_sheet(datalist: Datalist, path: Path) -> None:
    """Draw cases of every source, spread evenly over the datalist, with one contour for each structure."""
    shown = spread_cases(datalist, MAX_CASES)
    titles = [f"{entry['source']} {entry['id'][:6]} {split}" for split, entry in shown]
    _save(sheet_figure(datalist, [entry for _, entry in shown], titles), path, dpi=110)


def draw_variables(datalist: Datalist, path: Path) -> None:
    """Draw the distribution of every variable, by split on the left and by source on the right."""
    _save(variables_figure(datalist), path, dpi=100)


@rc_context(AS_WRITTEN)
def sheet_figure(
    datalist: Datalist, entries: Sequence[Mapping[str, Any]], titles: Sequence[str], columns: int = COLUMNS
) -> Figure:
    """Cases side by side, each with one contour for each structure and a line of text above."""
    reader = datalist.reader()
    height, width = shown_size(datalist)
    lying = lies_down((height, width))
    if lying:
        height, width = width, height
        columns = max(1, round(columns * (height / width) ** 0.5))
    rows = -(-len(entries) // columns)
    side = WIDTH / columns
    title = 0.2 * width / side  # room above each picture, in pixels
    figure = Figure(figsize=(WIDTH, side * rows * (height + title) / width + 0.35))
    axis = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    axis.set(xlim=(-0.5, columns * width - 0.5), ylim=(rows * (height + title) - 0.5, -0.5))
    axis.axis("off")
    lines: dict[str, list[np.ndarray]] = {name: [] for name in datalist.structures}
    for i, (entry, text) in enumerate(zip(entries, titles)):
        x, y = (i % columns) * width, (i // columns) * (height + title) + title
        image, label = (picture(reader.get_data(datalist.path.parent / entry[key])[0]) for key in ("image", "label"))
        if lying:
            image, label = image.T, label.T
        low, high = datalist.intensity_range
        extent = (x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5)
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest", aspect="auto")
        for name, found in lines.items():
            contours = find_contours(label == datalist.labels[name], 0.5)
            found += [contour[:, ::-1] + (x, y) for contour in contours]
        axis.text(x, y - width / 64, text, fontsize=min(8, 3.75 * side), va="bottom")
    for i, (name, found) in enumerate(lines.items()):
        axis.add_collection(LineCollection(found, colors=f"C{i}", linewidths=0.9, label=name), autolim=False)
    figure.legend(loc="upper left", ncols=len(lines), fontsize=8, frameon=False)
    return figure


def shown_size(datalist: Datalist) -> tuple[int, int]:
    """Height and width in which a case is shown, upright."""
    height, width = picture(np.empty(datalist.size, np.uint8)).shape
    return height, width


@rc_context(AS_WRITTEN)
def variables_figure(datalist: Datalist) -> Figure:
    """The distribution of every variable, by split on the left and by source on the right."""
    entries = [{**entry, "split": split} for split in SPLITS for entry in datalist.entries[split]]
    figure = Figure(figsize=(9, 2.1 * len(datalist.variables)), layout="constrained")
    axes = figure.subplots(len(datalist.variables), 2, squeeze=False)
    for row, variable in zip(axes, datalist.variables):
        values = np.array([entry["variables"].get(variable.name) for entry in entries], float)
        for axis, key in zip(row, ("split", "source")):
            groups = list(dict.fromkeys(entry[key] for entry in entries))
            member = np.array([groups.index(entry[key]) for entry in entries])
            _draw_distribution(axis, variable, [values[member == g] for g in range(len(groups))], groups)
    return figure


@rc_context(AS_WRITTEN)
def correlation_figure(values: pd.DataFrame) -> Figure:
    """Pearson's correlation of every pair of columns, over the rows that have both."""
    matrix = values.corr().to_numpy()
    names = [words(name) for name in values.columns]
    side = 0.55 * len(names)
    figure = Figure(figsize=(side + 3.2, side + 1.6), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        text = f"{value:.2f}" if np.isfinite(value) else "–"
        colour = "white" if abs(value) > 0.65 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)
    return figure


def _save(figure: Figure, path: Path, dpi: float) -> None:
    write_atomically(path, lambda file: figure.savefig(file, dpi=dpi, format="png"))


def _draw_distribution(axis: Any, variable: Variable, values: list[np.ndarray], groups: list[str]) -> None:
    known = [v[np.isfinite(v)] for v in values]
    together = np.concatenate(known)
    if variable.categories:
        edges = np.arange(len(variable.categories) + 1) - 0.5
        axis.set_xticks(range(len(variable.categories)), variable.categories)
    else:
        edges = np.histogram_bin_edges(together, bins=24) if together.size else np.linspace(0, 1, 2)
    for g, (group, present) in enumerate(zip(groups, known)):
        missing = values[g].size - present.size
        text = f"{group}: {present.size}" + (f" ({missing} missing)" if missing else "")
        share = np.histogram(present, edges)[0] / max(present.size, 1)
        axis.stairs(100 * share, edges, color=f"C{g}", label=text)
    axis.set_xlabel(f"{variable.name} [{written_unit(variable.unit)}]" if variable.unit else variable.name, fontsize=8)
    axis.set_ylabel("% of cases", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)


def spread_cases(datalist: Datalist, wanted: int) -> list[tuple[str, Any]]:
    """At most ``wanted`` cases, as many of each source as of the others where there are enough."""
    of_source: dict[str, list[tuple[str, Any]]] = {}
    for split in SPLITS:
        for entry in datalist.entries[split]:
            of_source.setdefault(entry["source"], []).append((split, entry))
    shown = []
    for cases in of_source.values():
        chosen = np.linspace(0, len(cases) - 1, min(len(cases), max(1, wanted // len(of_source)))).round().astype(int)
        shown += [cases[i] for i in chosen]
    return shown
