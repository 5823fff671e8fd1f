"""The trained models in ``pretrained/``: they load, and make of an image what the README promises."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_docs import documented_commands, run_in_process
from drawn_chest import write_png
from real_data import CXR, needs_radiographs

from data_prep.phantom_chest import ChestPhantom
from segcft_ext.checkpoints import load_model
from segcft_ext.dscm import DSCM
from segcft_ext.networks.segmentor import Segmentor

ROOT = Path(__file__).parent.parent
AREAS = ["left_lung_area", "right_lung_area", "heart_area"]


def try_the_readme(image: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What ``variables.json`` says after the README's command."""
    (command,) = [line for line in documented_commands(ROOT / "README.md") if "pretrained/" in line]
    words = shlex.split(command)[3:]
    words[words.index("--image") + 1] = str(image)
    words[words.index("--output_dir") + 1] = str(folder)
    monkeypatch.chdir(ROOT)
    run_in_process(words)
    return json.loads((folder / image.stem / "variables.json").read_text(encoding="utf-8"))


def check_changes(content: dict, reached: float, kept: float) -> None:
    """A left lung 20 % smaller, then larger, and the others as they were, as the segmentor sees it."""
    for wanted, made in zip((-0.2, 0.2), content["counterfactuals"], strict=True):
        left, *others = [made["measured"][name] / content["measured"][name] - 1 for name in AREAS]
        assert left == pytest.approx(wanted, abs=reached)
        assert max(map(abs, others)) < kept
        assert made["folding"] == 0


def test_they_fit_each_other() -> None:
    dscm, segmentor = (load_model(ROOT / "pretrained" / f"{name}.pt") for name in ("seg_cft", "lung_heart_segmentor"))
    assert isinstance(dscm, DSCM) and isinstance(segmentor, Segmentor)
    assert dscm.variables.names == AREAS and dscm.deformation is not None
    assert dscm.data["image_size"] == segmentor.data["image_size"] == [64, 64]
    assert dscm.data["labels"] == segmentor.data["labels"]
    assert all(torch.isfinite(value).all() for value in [*dscm.parameters(), *segmentor.parameters()])


def test_the_command_of_the_readme_on_a_rendered_chest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phantom is no radiograph, so what is measured may be farther off than on radiographs."""
    phantom = ChestPhantom(128)
    image, _ = phantom.render(*phantom.sample(3))
    write_png(tmp_path / "chest.png", (255 * image).astype(np.uint8))
    check_changes(try_the_readme(tmp_path / "chest.png", tmp_path / "made", monkeypatch), reached=0.1, kept=0.1)


@needs_radiographs
def test_the_command_of_the_readme_on_radiographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for image in sorted((CXR / "wingspan" / "png").iterdir())[::60]:
        check_changes(try_the_readme(image, tmp_path, monkeypatch), reached=0.05, kept=0.08)
