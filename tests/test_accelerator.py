"""Training and evaluation where networks and images are not on the CPU: on a pretended accelerator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_chests import small_chests
from small_vessels import small_vessels

from segcft_ext.checkpoints import save_model
from segcft_ext.datalist import Datalist
from segcft_ext.networks.segmentor import Segmentor

BUNDLES = Path(__file__).parent.parent / "bundles"
HVAE = {
    "network_def#hvae#channels": [4] * 4,
    "network_def#hvae#strides": [2, 2, 4],
    "network_def#hvae#blocks": [0, 0, 1, 1],
}
HEAD = {"deformation_head#channels": [4, 4], "deformation_head#hidden_channels": 4, "deformation_head#grid_stage": 1}
JUDGE = {"network_def#channels": [4, 4, 4], "network_def#strides": [2, 2], "network_def#num_res_units": 1}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the helper in a process of its own, since PyTorch cannot forget a device."""
    helper = Path(__file__).with_name("pretended_accelerator.py")
    return subprocess.run([sys.executable, str(helper), *arguments], capture_output=True, text=True, timeout=600)


def test_the_pretended_accelerator_refuses_what_a_gpu_refuses() -> None:
    expected = {
        "there + torch.ones(2)": "same device",
        "torch.cat([there, torch.ones(2)])": "same device",
        "torch.ones(2)[there.long()]": "same device",
        "torch.rand(2, device=there.device, generator=torch.Generator())": "generator",
        "there.numpy()": "numpy",
        "there + torch.ones(())": "",
        "there[torch.tensor([0])].cpu() + torch.ones(1)": "",
    }
    done = run("--expressions", json.dumps(list(expected)))
    assert done.returncode == 0, done.stderr
    for (expression, message), error in zip(expected.items(), json.loads(done.stdout), strict=True):
        assert (message in error) if message else (error == ""), f"{expression}: {error}"


@pytest.mark.parametrize(
    ("data", "segmentor", "overlay"),
    [(small_chests, "lung_heart_segmentor", ""), (small_vessels, "plaque_lumen_segmentor", "coronary.json")],
)
def test_all_stages_run_on_an_accelerator(
    data: Callable[..., Datalist], segmentor: str, overlay: str, tmp_path: Path
) -> None:
    datalist = data(tmp_path / "data", training=4)
    guide = Segmentor(datalist.labels, "BasicUNet", features=[4] * 6)
    guide.describe(datalist, use="guide")
    save_model(guide, tmp_path / "guide.pt")
    stages: list[list[str]] = []

    def stage(bundle: str, config: str, output: str, **settings: Any) -> None:
        configs = [str(BUNDLES / bundle / "configs" / name) for name in (config, overlay) if name]
        if config != "train.json" or bundle == segmentor:
            del configs[1:]
        given = {
            "config_file": str(configs),
            "bundle_root": str(BUNDLES / bundle),
            "datalist": str(datalist.path),
            "output_dir": str(tmp_path / output),
            "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
            **({"max_epochs": 1, "batch_size": 2} if "train" in config else {}),
            **settings,
        }
        stages.append([w for k, v in given.items() for w in (f"--{k}", v if isinstance(v, str) else json.dumps(v))])

    stage(segmentor, "train.json", "segmentor", **{"network_def#features": [4] * 6})
    stage("segmentor_evaluation", "train.json", "judge", **JUDGE)
    stage("dscm_pretraining", "train.json", "dscm", **HVAE)
    tuned = {"dscm": str(tmp_path / "dscm" / "model.pt"), "guide": str(tmp_path / "guide.pt")}
    stage("seg_cft_finetuning", "train.json", "head", **tuned, **HEAD, deformation=1)
    stage("seg_cft_finetuning", "train.json", "hvae", **tuned)
    methods = {"head": str(tmp_path / "head" / "model.pt"), "hvae": str(tmp_path / "hvae" / "model.pt")}
    judged = {"judge": str(tmp_path / "judge" / "model.pt"), "methods": methods, "interventions_per_case": 1}
    stage("segmentor_evaluation", "evaluate.json", "evaluation", **judged)

    done = run("--stages", json.dumps(stages))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["methods"].keys() == methods.keys()
