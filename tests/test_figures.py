"""Figures are drawn, look the same every time, and their colour scale is symmetric."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from segcft_ext import figures
from segcft_ext.figures import Panel
from segcft_ext.figures.grids import _limit
from segcft_ext.handlers.counterfactual_writer import _lines

LABELS = {"left_lung": 1, "heart": 3}


def panel(seed: int, size: tuple[int, int] = (24, 32)) -> Panel:
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, int)
    mask[4:12, 5:15] = 1
    mask[10:20, 12:28] = 3
    return Panel(rng.uniform(-1, 1, size), mask, f"do({seed} %)", "judged 3 %")


def drawn(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figures.to_png(figure))).convert("RGB")).astype(int)


def test_grid_shows_differences_on_a_symmetric_scale() -> None:
    factual = Panel(np.zeros((24, 24)), np.zeros((24, 24), int), "factual")
    up, down = (Panel(np.full((24, 24), value), factual.mask) for value in (0.5, -0.5))
    image = drawn(figures.counterfactual_grid(factual, {"Seg-CFT": [up, down]}, LABELS, "do(heart area)"))
    sheet_row = image[image.shape[0] // 2]
    strong = [tuple(pixel) for pixel in sheet_row if pixel.max() - pixel.min() > 60]
    assert any(r > b for r, _, b in strong) and any(b > r for r, _, b in strong)


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    numbers = np.linspace(-2, 2, 9)
    changes = {m: {"heart_area": (numbers, s * numbers)} for m, s in (("identity", 0.0), ("Seg-CFT", 0.9))}
    lines = {m: {"heart_area": (s, 0.0)} for m, s in (("identity", 0.0), ("Seg-CFT", 0.9))}

    images = [panel(i).image for i in range(3)]
    tall = {"Seg-CFT": {"lumen_area_mid": np.eye(64)[:, ::4], "lumen_area_distal": np.zeros((64, 16))}}
    drawings = {
        "maps": figures.change_maps(tall, "change", [0.5]),
        "grid": figures.counterfactual_grid(panel(0), {"a": [panel(1)], "b": [panel(2)]}, LABELS),
        "reconstructions": figures.reconstruction_grid(images[:2], images[1:], "epoch 3"),
        "segmentation": figures.segmentation_grid([panel(0), panel(1)], [panel(2).mask, panel(3).mask], LABELS),
        "samples": figures.sample_grid(images, [f"sample {i}" for i in range(3)], columns=2),
        "scatter": figures.effectiveness_scatter(changes, lines, {"heart_area": "percent"}),
        "heatmap": figures.effectiveness_heatmap(
            {"Seg-CFT": np.array([[1.0, np.nan]])}, ["heart_area"], ["heart_area", "left_lung_area"], "error, %"
        ),
        "curves": figures.curves({"loss": {"training": ([1, 2], [3, 2]), "validation": ([2], [2.5])}}),
    }
    for name, figure in drawings.items():
        assert figures.save_figure(figure, tmp_path / "figures" / f"{name}.png").stat().st_size > 3000


def test_a_vessel_is_laid_down_with_its_first_row_at_the_left() -> None:
    image = -np.ones((120, 24))
    image[:30] = 1
    mask = np.zeros((120, 24), int)
    figure = figures.counterfactual_grid(Panel(image, mask), {"a": [Panel(image, mask)]}, LABELS)
    width, height = figure.get_size_inches()
    assert width > 5 and height < 3
    # the middle line of the first picture, 160 pixels for each inch
    line = drawn(figure)[int(160 * 0.64), int(160 * 0.35) : int(160 * 2.65)].mean(1)
    assert line[: len(line) // 6].min() > 200 and line[len(line) // 2 :].max() < 60


@pytest.mark.parametrize("shape", [(16, 16), (64, 16)])
def test_texts_of_samples_overlap_nothing(shape: tuple[int, int]) -> None:
    values = _lines(["1.23e-05", "222", "333"] * 3)
    title = " / ".join(f"noncalcified plaque area {region}" for region in ("proximal", "mid", "distal") * 3)
    figure = figures.sample_grid([np.zeros(shape)] * 6, [values] * 6, columns=3, title=title)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    boxes += [picture.get_window_extent() for picture in figure.axes[0].images]
    assert len(boxes) == 13 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_nothing_of_a_single_counterfactual_is_cut_off() -> None:
    values = "12.3 mm², 144 mm², 9.85 mm²"
    panels = [Panel(np.zeros((32, 32)), np.zeros((32, 32), int), text, values) for text in ("factual", "-20%, +20%, 9")]
    labels = {"left_lung": 1, "right_lung": 2, "heart": 3}
    title = "left lung area, right lung area, heart area; age 61; sex F"
    figure = figures.counterfactual_grid(panels[0], {"": panels[1:]}, labels, title)
    figure.canvas.draw()
    texts = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    texts += [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(texts) == 8 and all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in texts)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(texts, 2))


def test_names_are_written_as_they_are() -> None:
    for name in ("$x_$", "a $\\bad$", "$x$"):
        for figure in (
            figures.counterfactual_grid(panel(0), {name: [panel(1)]}, LABELS, name),
            figures.effectiveness_heatmap({name: np.ones((1, 1))}, ["a"], ["a"], name),
        ):
            figures.to_png(figure)
            shown = [text for text in figure.findobj(Text) if name in text.get_text()]
            assert shown and not any(text.get_parse_math() for text in shown)


def test_equal_pictures_are_equal_files() -> None:
    first, second = (figures.to_png(figures.sample_grid([panel(0).image])) for _ in range(2))
    assert first == second


def test_pictures_of_volumes_are_middle_slices() -> None:
    volume = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 4, 5)
    assert np.array_equal(figures.picture(volume), np.ones((4, 5)))
    assert np.array_equal(figures.picture(volume, 2), np.arange(3.0)[:, None].repeat(4, 1))
    assert figures.picture(torch.zeros(1, 4, 5)).shape == (4, 5)
    assert figures.picture(np.zeros((4, 5))).shape == (4, 5)


def test_a_truth_that_cannot_be_does_not_set_the_scale_of_the_differences() -> None:
    impossible = np.full((4, 4), np.nan)
    assert _limit([impossible, np.full((4, 4), 0.7)]) == pytest.approx(0.7)
    assert _limit([impossible]) == 0.05


def test_no_change_at_all_can_be_drawn() -> None:
    same = panel(0)
    assert drawn(figures.counterfactual_grid(same, {"identity": [same]}, LABELS)).std() > 0
