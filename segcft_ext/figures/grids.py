"""Grids of pictures: counterfactuals, reconstructions, samples."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from segcft_ext.figures.sheet import Sheet
from segcft_ext.figures.style import STYLE, cell_size

__all__ = ["Panel", "counterfactual_grid", "reconstruction_grid", "sample_grid", "segmentation_grid"]

TITLE_LETTERS_PER_INCH = 10
SEGMENTATIONS_IN_A_ROW = 6


@dataclass(frozen=True)
class Panel:
    """One picture of a grid: an image, its label map, and two lines of text above."""

    image: np.ndarray
    mask: np.ndarray
    title: str = ""
    subtitle: str = ""


def counterfactual_grid(
    factual: Panel, blocks: Mapping[str, Sequence[Panel]], labels: Mapping[str, int], title: str = ""
) -> Figure:
    """Counterfactuals of one image: image, signed difference and contours below each other, side by side for a sweep.

    Args:
        factual: the image before the intervention, with its label map; the first column.
        blocks: rows of counterfactuals by name (a method, or a target).
        labels: label value of each structure whose contours are drawn.
        title: title above the grid.
    """
    limit = _limit([panel.image - factual.image for panels in blocks.values() for panel in panels])
    count = 1 + max(len(panels) for panels in blocks.values())
    cell = cell_size(factual.image.shape)[0]
    title = _title(title, count * (cell + Sheet.GAP))
    headings = {
        block: [_heading(panel, int(Sheet.LETTERS_PER_INCH * cell)) for panel in (factual, *panels)]
        for block, panels in blocks.items()
    }
    lines = max(2, *(1 + text.count("\n") for texts in headings.values() for text in texts))
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(
            count, [3] * len(blocks), factual.image.shape, header=0.1 + 0.12 * lines, title=title, legend=list(labels)
        )
        for block, (name, panels) in enumerate(blocks.items()):
            sheet.label(block, name)
            for column, panel in enumerate([factual, *panels]):
                sheet.heading(block, column, headings[name][column])
                sheet.image(block, 0, column, panel.image)
                sheet.image(block, 2, column, panel.image)
                sheet.contours(block, 2, column, panel.mask, labels, "-")
                if column == 0:
                    sheet.note(block, 1, column, "counterfactual\n– factual")
                else:
                    sheet.image(block, 1, column, panel.image - factual.image, limit)
                    sheet.contours(block, 2, column, factual.mask, labels, ":")
        sheet.colour_bar(limit)
        sheet.legend()
    return sheet.figure


def reconstruction_grid(images: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], title: str = "") -> Figure:
    """Images, their reconstructions and the signed differences, one column for each pair."""
    differences = [b - a for a, b in zip(images, reconstructions)]
    limit = _limit(differences)
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(len(images), [1, 1, 1], images[0].shape, header=0.04, title=title)
        for row, name in enumerate(("image", "reconstruction", "difference")):
            sheet.label(row, name)
        for column, rows in enumerate(zip(images, reconstructions, differences)):
            for row, image in enumerate(rows):
                sheet.image(row, 0, column, image, limit if row == 2 else None)
        sheet.colour_bar(limit)
    return sheet.figure


def segmentation_grid(
    cases: Sequence[Panel], truths: Sequence[np.ndarray], labels: Mapping[str, int], title: str = ""
) -> Figure:
    """Images with the outlines of their predicted label maps and, dotted, of the true ones (``truths``)."""
    columns = min(SEGMENTATIONS_IN_A_ROW, len(cases))
    cell = cell_size(cases[0].image.shape)[0]
    headings = [_heading(case, int(Sheet.LETTERS_PER_INCH * cell)) for case in cases]
    lines = 1 + max(text.count("\n") for text in headings)
    title = _title(title, columns * (cell + Sheet.GAP))
    with matplotlib.rc_context(STYLE):
        rows = [1] * -(-len(cases) // columns)
        shape, header = cases[0].image.shape, 0.1 + 0.12 * lines
        sheet = Sheet(columns, rows, shape, header, title, legend=list(labels), dotted="label map")
        for index, (case, truth) in enumerate(zip(cases, truths, strict=True)):
            row, column = divmod(index, columns)
            sheet.heading(row, column, headings[index])
            sheet.image(row, 0, column, case.image)
            sheet.contours(row, 0, column, case.mask, labels, "-")
            sheet.contours(row, 0, column, truth, labels, ":")
        sheet.legend()
    return sheet.figure


def sample_grid(images: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 8, title: str = "") -> Figure:
    """Pictures side by side, e.g. samples of a model, each with optional lines of text above."""
    columns = min(columns, len(images))
    lines = 1 + max((text.count("\n") for text in titles), default=0)
    header = 0.08 + 0.12 * lines if titles else 0.04
    title = _title(title, columns * (cell_size(images[0].shape)[0] + Sheet.GAP))
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(columns, [1] * -(-len(images) // columns), images[0].shape, header, title)
        for index, image in enumerate(images):
            row, column = divmod(index, columns)
            sheet.image(row, 0, column, image)
            if index < len(titles):
                sheet.heading(row, column, titles[index])
    return sheet.figure


def _title(text: str, width: float) -> str:
    """A title in lines that are no wider than this, in inches."""
    return textwrap.fill(text, max(TITLE_LETTERS_PER_INCH, int(TITLE_LETTERS_PER_INCH * width)))


def _heading(panel: Panel, letters: int) -> str:
    """Both texts of a panel, in lines of at most so many letters."""
    return "\n".join(textwrap.fill(text, letters) for text in (panel.title, panel.subtitle) if text)


def _limit(differences: Sequence[np.ndarray]) -> float:
    """Limit of the colour scale: nearly the largest difference, so that a single pixel does not wash out the rest."""
    known = np.abs(differences)[np.isfinite(differences)]  # a true counterfactual that cannot be has no intensities
    return max(0.05, float(np.quantile(known, 0.998))) if known.size else 0.05
