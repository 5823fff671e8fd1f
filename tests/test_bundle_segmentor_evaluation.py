"""The bundle that judges: its properties, and its command on a data set of discs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from discs import NAMES, disc_datalist
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow

from segcft_ext.checkpoints import save_model
from segcft_ext.dscm import DSCM
from segcft_ext.networks.segmentor import Segmentor

BUNDLES = Path(__file__).parent.parent / "bundles"
BUNDLE = BUNDLES / "segmentor_evaluation"
CONFIGS = BUNDLE / "configs"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/datalist.json, judge.pt and dscm.pt."""
    folder = tmp_path_factory.mktemp("made")
    datalist = disc_datalist(folder / "data", training=8, test=2)
    torch.manual_seed(0)
    judge = Segmentor(datalist.labels, "UNet", channels=(4, 8), strides=(2,))
    judge.describe(datalist, use="judge")
    save_model(judge, folder / "judge.pt")
    dscm = DSCM(
        [{"name": name, "kind": "continuous"} for name in NAMES],
        hvae={"channels": (8, 8), "strides": (2,), "blocks": (0, 1), "latent_channels": 2},
    )
    values = torch.stack([torch.as_tensor(item["variables"]) for item in datalist.items("training")])
    dscm.variables.fit(values, ["percent", "percent", "years"])
    dscm.describe(datalist)
    save_model(dscm, folder / "dscm.pt")
    return folder


@pytest.mark.parametrize("methods", [{}, {"No-CFT": "dscm.pt"}])
def test_properties_of_evaluate(made: Path, methods: dict[str, str]) -> None:
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "evaluate.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        datalist=str(made / "data" / "datalist.json"),
        judge=str(made / "judge.pt"),
        methods={name: str(made / file) for name, file in methods.items()},
        tracking_uri=f"sqlite:///{made}/unused.db",
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_properties_of_inference(made: Path) -> None:
    workflow = ConfigWorkflow(
        config_file=str(CONFIGS / "inference.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        dataset_dir=str(made / "data" / "images"),
        judge=str(made / "judge.pt"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_follows_the_schema() -> None:
    schema = BUNDLES.parent.parent / "shared" / "data" / "monai_bundle_schema" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip("MONAI's metadata schema is not at hand")
    jsonschema.validate(read(CONFIGS / "metadata.json"), read(schema))


def test_the_judge_segments_as_the_guide_does() -> None:
    """One way from a radiograph to a label map: only network and checkpoint differ."""
    judge = read(CONFIGS / "inference.json")
    guide = read(BUNDLES / "lung_heart_segmentor" / "configs" / "inference.json")
    assert judge.pop("network_def") == read(CONFIGS / "train.json")["network_def"]
    guide_network = guide.pop("network_def")
    assert guide_network["architecture"] != read(CONFIGS / "train.json")["network_def"]["architecture"]
    assert judge == json.loads(json.dumps(guide).replace("@segmentor", "@judge").replace('"segmentor"', '"judge"'))


def test_evaluate_from_the_command_line(made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/evaluate.json"]
    command += ["--bundle_root", ".", "--datalist", str(made / "data" / "datalist.json")]
    command += ["--judge", str(made / "judge.pt")]
    command += ["--methods", json.dumps({"No-CFT": str(made / "dscm.pt")})]
    command += ["--output_dir", str(tmp_path / "out"), "--tracking_uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--interventions_per_case", "1", "--figure_cases", "1", "--run_name", "evaluation"]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    evaluation = read(tmp_path / "out" / "evaluation.json")
    assert list(evaluation["methods"]) == ["No-CFT"]
    assert evaluation["methods"]["No-CFT"]["composition"]["1"] < 1e-4
    assert evaluation["data"]["judge"]["data"]["use"] == "judge"
    assert {"evaluation.md", "evaluation.csv", "pairs.csv"} <= {p.name for p in (tmp_path / "out").iterdir()}
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("segcft")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "evaluation"
    assert "No-CFT/leakage/left_area" in run.data.metrics
    assert {"evaluation.json", "figures"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
