"""The demo in small: all bundles, one after the other, as the driver runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EPOCHS = {"judge": 4, "regressor": 2, "dscm_pretraining": 1, "reg_cft": 1, "seg_cft": 1}
SEGMENTORS = {"chest": "lung_heart_segmentor", "coronary": "plaque_lumen_segmentor"}


def demo(output: Path, kind: str, *settings: str, size: str) -> str:
    epochs = [f"{stage}.max_epochs={count}" for stage, count in {SEGMENTORS[kind]: 4, **EPOCHS}.items()]
    few = ["evaluation.interventions_per_case=1", "evaluation.figure_cases=1"]
    command = [sys.executable, "-m", "segcft_ext.chain", "demo", str(output), "--kind", kind, "--count", "32"]
    command += ["--size", size, "--set", ",".join([*epochs, *few, *settings])]
    said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


@pytest.mark.timeout(900)
def test_demo_ends_with_a_report_and_gives_the_same_numbers_again(tmp_path: Path) -> None:
    output = tmp_path / "a demo"
    said = demo(output, "chest", size="64")
    assert re.search(r"Seg-CFT +[\d.]+", said) and said.rstrip().endswith(f"report: {output / 'report.html'}")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "data:image/webp;base64," in page and "Seg-CFT" in page
    commands = (output / "commands.sh").read_text(encoding="utf-8").splitlines()
    assert [line.strip("$ ") for line in said.splitlines() if line.startswith("  $ ")] == sorted(
        (line for line in commands if line.startswith("python ")), key=said.index
    )
    evaluation = output / "evaluation" / "evaluation.json"
    figures = json.loads(evaluation.read_text(encoding="utf-8"))
    assert list(figures["methods"]) == ["No-CFT", "Reg-CFT", "Seg-CFT"]

    # These are trained again, and with the same weights nothing that depends on them has to run.
    trained = {"lung_heart_segmentor", "regressor", "dscm_pretraining", "judge"}
    for stage in trained:
        (output / stage / "model.pt").unlink()
    evaluation.unlink()
    skipped = set(re.findall(r"^\S+ +(\w+) +complete", demo(output, "chest", size="64"), re.MULTILINE))
    assert {"data_prep", "reg_cft_deformation", "seg_cft_deformation"} <= skipped and not trained & skipped
    assert json.loads(evaluation.read_text(encoding="utf-8")) == figures


@pytest.mark.timeout(900)
def test_the_demo_of_vessels_edits_region_by_region(tmp_path: Path) -> None:
    asked = ["lumen_area_mid", "calcified_plaque_area_proximal"]
    said = demo(tmp_path, "coronary", f"evaluation.interventions={json.dumps(asked)}", size="64x24")
    assert "Pos-Seg-CFT" in said
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(evaluation["methods"]) == ["No-CFT", "Reg-CFT", "Pos-Seg-CFT"]
    areas = [
        f"{structure}_area_{region}"
        for structure in ("lumen", "calcified_plaque", "noncalcified_plaque")
        for region in ("proximal", "mid", "distal")
    ]
    for figures in evaluation["methods"].values():
        assert set(figures["positional"]) == set(figures["truth"]) == set(asked)
        assert all(set(measured) == set(areas) for measured in figures["effectiveness"].values())
    shown = json.loads((tmp_path / "evaluation" / "figures" / "figures.json").read_text(encoding="utf-8"))
    sweeps = {figure["file"] for figure in shown if figure["kind"] == "sweep"}
    assert "sweep-calcified_plaque_area_proximal-3-pos-seg-cft-1.png" in sweeps
    assert "Pos-Seg-CFT" in (tmp_path / "report.html").read_text(encoding="utf-8")
