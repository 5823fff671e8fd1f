"""The demo in small: all bundles, one after the other, as the driver runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EPOCHS = {
    "lung_heart_segmentor": 4,
    "judge": 4,
    "regressor": 2,
    "dscm_pretraining": 1,
    "reg_cft": 1,
    "seg_cft": 1,
}
SETTINGS = [f"{stage}.max_epochs={epochs}" for stage, epochs in EPOCHS.items()]
SETTINGS += ["evaluation.interventions_per_case=1", "evaluation.figure_cases=1"]


def demo(output: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "segcft_ext.chain",
        "demo",
        str(output),
        "--count",
        "32",
        "--set",
        ",".join(SETTINGS),
    ]
    said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


@pytest.mark.timeout(900)
def test_demo_ends_with_a_report_and_gives_the_same_numbers_again(tmp_path: Path) -> None:
    output = tmp_path / "a demo"
    said = demo(output)
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

    # Without the segmentor it is trained again, and with the same weights nothing that depends on it has to run.
    (output / "lung_heart_segmentor" / "model.pt").unlink()
    evaluation.unlink()
    skipped = re.findall(r"^\S+ +(\w+) +complete", demo(output), re.MULTILINE)
    assert {"data_prep", "dscm_pretraining", "regressor", "judge", "seg_cft_deformation"} <= set(skipped)
    assert json.loads(evaluation.read_text(encoding="utf-8")) == figures
