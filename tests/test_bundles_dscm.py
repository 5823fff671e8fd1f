"""The bundles of pretraining and fine-tuning as a user has them: copied elsewhere, run as their docs say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from bundle_docs import kept_logging, run_documented_commands, run_documented_python
from drawn_chest import draw, write_png
from monai.bundle import ConfigParser, ConfigWorkflow
from small_chests import small_chests

from segcft_ext.checkpoints import load_model, read_description, save_model
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM
from segcft_ext.networks.regressor import Regressor
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.provenance import fingerprint

BUNDLES = Path(__file__).parent.parent / "bundles"
HVAE = {"channels": [4, 4, 4], "strides": [4, 4], "blocks": [0, 1, 1], "latent_channels": 2}
HEAD = {"channels": [4, 4], "hidden_channels": 4, "grid_stage": 1}
SHORT = ["--max_epochs", "1", "--batch_size", "2"]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Datalist:
    return small_chests(tmp_path_factory.mktemp("chests"))


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, datalist: Datalist) -> dict[str, str]:
    """The shell variables of the docs."""
    folder = tmp_path_factory.mktemp("upstream")
    segmentor = Segmentor(datalist.labels, "BasicUNet", features=[4] * 6)
    segmentor.describe(datalist, use="guide")
    save_model(segmentor, folder / "segmentor.pt")
    write_png(folder / "case.png", draw(5, (40, 50))[0])
    return {
        "DATALIST": str(datalist.path),
        "SEGMENTOR": str(folder / "segmentor.pt"),
        "IMAGE": str(folder / "case.png"),
        "OMP_NUM_THREADS": "1",
    }


def run_bundle(name: str, folder: Path, variables: dict[str, str], small: dict[str, list[str]], commands: int) -> Path:
    """The bundle's folder after all documented commands."""
    copy = folder / name
    shutil.copytree(BUNDLES / name, copy, ignore=shutil.ignore_patterns("models"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert len(run_documented_commands(copy, variables, small, patch)) == commands
    return copy


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory, upstream: dict[str, str]) -> Path:
    small = {"train.json": [*SHORT, "--network_def#hvae", json.dumps(HVAE)]}
    return run_bundle("dscm_pretraining", tmp_path_factory.mktemp("pretraining"), upstream, small, 8)


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory: pytest.TempPathFactory, upstream: dict[str, str], pretraining: Path) -> Path:
    variables = {**upstream, "DSCM": str(pretraining / "models" / "model.pt")}
    small = {
        "train.json": [*SHORT, "--deformation_head", json.dumps(HEAD)],
        "train_regressor.json": [*SHORT, "--network_def#channels", "[4,4]"],
    }
    return run_bundle("seg_cft_finetuning", tmp_path_factory.mktemp("fine_tuning"), variables, small, 10)


def runs(folder: Path) -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("segcft").experiment_id]))


def test_pretraining_writes_model_state_and_figures(pretraining: Path, datalist: Datalist) -> None:
    models = pretraining / "models"
    dscm = load_model(models / "model.pt", DSCM)
    assert dscm.variables.units == ["percent"] * 3
    trained = datalist.training_values(dscm.variables.names)["values"]
    torch.testing.assert_close(dscm.variables.low, trained.amin(0))
    assert (models / "training.pt").is_file()
    names = {path.name for path in (models / "figures").iterdir()}
    assert {"reconstructions_0001.png", "samples_0001.png", "counterfactuals_0001_1.png"} <= names


def test_graph_and_variables_are_the_users(pretraining: Path) -> None:
    dscm = load_model(pretraining / "models" / "with_graph" / "model.pt", DSCM)
    assert dscm.variables.names == ["heart_area", "age", "sex"]
    assert dscm.variables.categories[2] == ["F", "M"]
    assert dscm.scm.parents["heart_area"] == ["age", "sex"]


def test_several_devices_write_the_same_kind_of_model(pretraining: Path, fine_tuning: Path) -> None:
    for folder in (pretraining, fine_tuning):
        alone, together = (read_description(folder / "models" / n) for n in ("model.pt", "two_devices/model.pt"))
        assert alone == together


def test_evaluation_writes_its_figures(pretraining: Path, fine_tuning: Path) -> None:
    first, second = (json.loads((f / "eval" / "metrics.json").read_text()) for f in (pretraining, fine_tuning))
    assert first["split"] == "test" and first["metrics"].keys() == {"negative_elbo", "kl", "mechanisms"}
    assert second["split"] == "validation" and "effectiveness_heart_area" in second["metrics"]


def test_the_guide_alone_makes_the_method(fine_tuning: Path, pretraining: Path, upstream: dict[str, str]) -> None:
    models = fine_tuning / "models"
    segmentor = load_model(upstream["SEGMENTOR"], Segmentor)
    regressor = load_model(models / "regressor" / "model.pt", Regressor)
    start = load_model(pretraining / "models" / "model.pt", DSCM)
    for folder, guide in ((models, segmentor), (models / "seg_cft_hvae", segmentor), (models / "reg_cft", regressor)):
        tuned = load_model(folder / "model.pt", DSCM)
        assert tuned.data["guide"]["fingerprint"] == fingerprint(guide)
        assert tuned.data["guide"]["data"]["use"] == "guide"
        same = [torch.equal(a, b) for a, b in zip(tuned.hvae.parameters(), start.hvae.parameters())]
        head = tuned.deformation is not None
        assert all(same) if head else not all(same)
        assert head == (folder.name != "seg_cft_hvae")


def test_every_stage_is_a_finished_run_with_its_figures(pretraining: Path, fine_tuning: Path) -> None:
    for folder, count in ((pretraining, 6), (fine_tuning, 7)):  # the resumed training went on with its run
        found = runs(folder)
        assert len(found) == count == len({run.info.run_name for run in found})
        assert {run.info.status for run in found} == {"FINISHED"}
        assert all(run.inputs.dataset_inputs for run in found)
        assert list(folder.glob("mlruns/*/artifacts/figures/counterfactuals_0001_1.png"))
    (hvae,) = (r for r in runs(fine_tuning) if r.data.params.get("deformation") == "False" and "guide" in r.data.params)
    assert "'minimality': 8.0, 'overshoot': 800.0" in hvae.data.params["objective"]
    assert hvae.data.params["deformation_head"] == "None"
    lagrangian = {"slack": "0.1", "lambda_initial": "1.0", "lambda_learning_rate": "0.1", "damping": "0.0"}
    assert lagrangian.items() <= hvae.data.params.items()
    logged = {f"train_{name}" for name in ("loss", "effectiveness", "locality", "negative_elbo", "bound", "lambda")}
    assert logged | {"skipped_steps", "val_effectiveness", "val_drift_heart_area"} <= hvae.data.metrics.keys()


def test_inference_writes_counterfactuals(pretraining: Path, fine_tuning: Path) -> None:
    assert (pretraining / "eval" / "samples.png").is_file()
    found = json.loads((fine_tuning / "eval" / "case" / "variables.json").read_text())
    assert len(found["counterfactuals"]) == 4


def test_the_docs_are_true_in_python(
    pretraining: Path, fine_tuning: Path, upstream: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, blocks in ((pretraining, 1), (fine_tuning, 3)):
        assert run_documented_python(folder, {**upstream, "FOLDER": str(folder.parent)}, monkeypatch) == blocks
    found = json.loads((fine_tuning / "eval" / "python" / "case" / "variables.json").read_text())
    assert len(found["counterfactuals"]) == 2


def workflow(folder: Path, name: str, **overrides: Any) -> ConfigWorkflow:
    with kept_logging():
        made = ConfigWorkflow(
            str(folder / "configs" / name),
            workflow_type="train" if "train" in name else "infer",
            bundle_root=str(folder),
            **overrides,
        )
        made.initialize()
    return made


@pytest.mark.parametrize("name", ["train.json", "inference.json", "evaluate.json"])
@pytest.mark.parametrize("bundle", ["pretraining", "fine_tuning"])
def test_properties(bundle: str, name: str, upstream: dict[str, str], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(bundle)
    source = {"image": upstream["IMAGE"]} if name == "inference.json" else {"datalist": upstream["DATALIST"]}
    assert workflow(folder, name, **source).check_properties() == []


def test_properties_of_the_regressor(fine_tuning: Path, upstream: dict[str, str]) -> None:
    made = workflow(fine_tuning, "train_regressor.json", datalist=upstream["DATALIST"])
    assert made.check_properties() == []


def test_fine_tuning_without_a_pretrained_model_says_so(fine_tuning: Path, upstream: dict[str, str]) -> None:
    made = workflow(fine_tuning, "train.json", datalist=upstream["DATALIST"])
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "dscm: found no pretrained model, expected the path of a DSCM's model.pt" in str(caught.value.__cause__)
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "seg_cft_finetuning" / "configs" / "train.json"))
    parser["dscm"] = "nowhere.pt"
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("network_def")
    assert "--dscm: nowhere.pt: no such checkpoint" in str(caught.value.__cause__)
