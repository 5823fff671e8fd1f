"""The bundle that judges: copied into a folder of its own, run by the commands of its docs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from bundle_docs import kept_logging, run_documented_commands, run_documented_python
from drawn_chest import draw
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from PIL import Image
from small_chests import small_chests

from segcft_ext.checkpoints import CheckpointError, load_model, read_description, save_model
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.provenance import upstream

BUNDLES = Path(__file__).parent.parent / "bundles"
BUNDLE = BUNDLES / "segmentor_evaluation"
TINY = ["--network_def#channels", "[4,4,4]", "--network_def#strides", "[2,2]", "--network_def#num_res_units", "1"]
SMALL = {
    "train.json": [*TINY, "--max_epochs", "1", "--val_interval", "1", "--batch_size", "2"],
    "evaluate.json": ["--interventions_per_case", "1", "--figure_cases", "1"],
}


def small_dscm(datalist: Datalist, path: Path, guide: Segmentor | None = None) -> Path:
    """An untrained model of all variables."""
    dscm = DSCM(
        [{"name": variable.name, "kind": variable.kind} for variable in datalist.variables],
        hvae={"channels": (8, 8), "strides": (2,), "blocks": (0, 1), "latent_channels": 2},
    )
    values = torch.stack([torch.as_tensor(item["variables"]) for item in datalist.items("training")])
    dscm.variables.fit(values, [variable.unit for variable in datalist.variables])
    dscm.describe(datalist)
    dscm.data["guide"] = upstream(guide) if guide else None
    save_model(dscm, path)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Datalist]:
    """The folder of the bundle after all documented commands, and the data."""
    folder = tmp_path_factory.mktemp("elsewhere") / BUNDLE.name
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models", "eval"))
    datalist = small_chests(tmp_path_factory.mktemp("chests"))
    torch.manual_seed(0)
    guide = Segmentor(datalist.labels, "BasicUNet", features=(4, 4, 4, 4, 4, 4))
    guide.describe(datalist, use="guide")
    images = tmp_path_factory.mktemp("images")
    Image.fromarray(draw(3, (50, 40))[0]).save(images / "chest.png")
    variables = {
        "DATALIST": str(datalist.path),
        "DATA": str(datalist.path.parent),
        "NO_CFT": str(small_dscm(datalist, folder / "no_cft.pt")),
        "SEG_CFT": str(small_dscm(datalist, folder / "seg_cft.pt", guide)),
        "IMAGES": str(images),
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        commands = run_documented_commands(folder, variables, SMALL, patch)
        blocks = run_documented_python(folder, variables, patch)
    assert len(commands) == 5 and blocks == 1
    return folder, datalist


def test_evaluation_is_complete(ran: tuple[Path, Datalist]) -> None:
    folder, _ = ran
    evaluation = json.loads((folder / "eval" / "evaluation.json").read_text())
    assert list(evaluation["methods"]) == ["No-CFT", "Seg-CFT"]
    for figures in evaluation["methods"].values():
        assert figures["composition"] == figures["composition_sampled"] == {"1": 0, "10": 0}
    assert evaluation["data"]["judge"]["data"]["use"] == "judge"
    assert evaluation["data"]["methods"]["Seg-CFT"]["data"]["guide"]["data"]["use"] == "guide"
    assert set(evaluation["judge"]) == {"left_lung", "right_lung", "heart"}
    assert {"evaluation.md", "evaluation.csv", "pairs.csv", "report.html"} <= {
        p.name for p in (folder / "eval").iterdir()
    }


def test_the_report_shows_the_training(ran: tuple[Path, Datalist]) -> None:
    assert 'id="training"' in (ran[0] / "eval" / "report.html").read_text(encoding="utf-8")


def test_evaluation_is_recorded(ran: tuple[Path, Datalist]) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{ran[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("segcft")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3  # the judge's trainings and the evaluation
    assert all(run.inputs.dataset_inputs for run in runs)
    (run,) = [run for run in runs if "methods" in run.data.params]
    assert "No-CFT/leakage/heart_area" in run.data.metrics
    assert {"evaluation.json", "figures"} <= {a.path for a in client.list_artifacts(run.info.run_id)}


def test_several_devices_write_the_same_kind_of_model(ran: tuple[Path, Datalist]) -> None:
    models = ran[0] / "models"
    assert read_description(models / "model.pt") == read_description(models / "two_devices" / "model.pt")


def test_inference_writes_a_label_map(ran: tuple[Path, Datalist]) -> None:
    (written,) = (ran[0] / "eval").glob("chest*.png")
    with Image.open(written) as label:
        assert label.size == (40, 50)
    assert (ran[0] / "eval" / "python" / written.name).is_file()


@pytest.mark.parametrize("methods", [{}, {"No-CFT": "no_cft.pt"}])
def test_properties_of_evaluate(ran: tuple[Path, Datalist], methods: dict[str, str]) -> None:
    folder, datalist = ran
    paths = {name: str(folder / file) for name, file in methods.items()}
    workflow = open_workflow("evaluate.json", folder, datalist=str(datalist.path), methods=paths)
    assert workflow.check_properties() == []
    *_, run = workflow.parser.get_parsed_content("handlers")
    assert run.id_file == workflow.parser.get_parsed_content("batches").folder / "run_id"


def test_properties_of_inference(ran: tuple[Path, Datalist]) -> None:
    folder, datalist = ran
    images = str(datalist.path.parent / "images")
    assert open_workflow("inference.json", folder, dataset_dir=images).check_properties() == []


@pytest.mark.parametrize("config", ["train.json", ["train.json", "coronary.json"]])
def test_properties_of_train(ran: tuple[Path, Datalist], config: str | list[str]) -> None:
    folder, datalist = ran
    workflow = open_workflow(config, folder, workflow_type="train", datalist=str(datalist.path))
    assert workflow.check_properties() == []


def open_workflow(
    config: str | list[str], folder: Path, workflow_type: str = "infer", **settings: object
) -> ConfigWorkflow:
    files = [str(folder / "configs" / name) for name in ([config] if isinstance(config, str) else config)]
    with kept_logging():
        workflow = ConfigWorkflow(
            config_file=files,
            meta_file=str(folder / "configs" / "metadata.json"),
            workflow_type=workflow_type,
            bundle_root=str(folder),
            **settings,
        )
        workflow.initialize()
    return workflow


def test_the_guide_cannot_be_the_judge(ran: tuple[Path, Datalist], tmp_path: Path) -> None:
    folder, datalist = ran
    judge = load_model(folder / "models" / "model.pt", Segmentor)
    dscm = small_dscm(datalist, tmp_path / "dscm.pt", guide=judge)
    workflow = open_workflow(
        "evaluate.json",
        folder,
        datalist=str(datalist.path),
        methods={"Seg-CFT": str(dscm)},
        output_dir=str(tmp_path),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
    with pytest.raises(RuntimeError) as refused:
        workflow.run()
    cause: BaseException | None = refused.value
    while cause is not None and not isinstance(cause, CheckpointError):
        cause = cause.__cause__
    assert cause is not None and "independent judge" in str(cause) and "Seg-CFT" in str(cause)
    assert not (tmp_path / "evaluation.json").exists()


def test_the_judge_segments_as_the_guide_does() -> None:
    """Judge and guide segment a radiograph in the same way: only network and checkpoint differ."""

    def read(bundle: str, name: str) -> dict:
        return json.loads((BUNDLES / bundle / "configs" / name).read_text(encoding="utf-8"))

    judge, guide = (read(bundle, "inference.json") for bundle in ("segmentor_evaluation", "lung_heart_segmentor"))
    network, guide_network = judge.pop("untrained"), guide.pop("network_def")
    del judge["network_def"], judge["imports"], guide["imports"]
    training = read("segmentor_evaluation", "train.json")
    assert network == training["network_def"] | {"labels": training["default_labels"], "spatial_dims": 2}
    assert network["architecture"] != guide_network["architecture"]
    assert judge["run"].pop(0) == "$require_checkpoint(@judge, 'judge', 'segmentor_evaluation')"
    assert judge["run"].pop(1) == "$check_preprocessing(@judge, @preprocessing)"  # the guide's labels are in its config
    assert guide["run"].pop(0) == "$require_checkpoint(@segmentor, 'segmentor', 'lung_heart_segmentor')"
    assert judge == json.loads(json.dumps(guide).replace("@segmentor", "@judge").replace('"segmentor"', '"judge"'))
    vessels = json.dumps(read("plaque_lumen_segmentor", "inference.json")).replace("@segmentor", "@judge")
    overlay = read("segmentor_evaluation", "coronary_inference.json")
    del overlay["+imports"]
    assert overlay.items() <= json.loads(vessels).items()
