"""The coronary segmentor as a user has it: copied into a folder of its own, run by the commands of its docs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import nibabel
import numpy as np
import pytest
import torch
from bundle_docs import kept_logging, run_documented_commands
from drawn_chest import write_png
from monai.bundle import ConfigWorkflow
from monai_label import train_as_monai_label
from PIL import Image
from small_vessels import draw_vessel, small_vessels, stored, write_nifti

from segcft_ext.checkpoints import CheckpointError, load_model, read_description, save_model
from segcft_ext.datalist import Datalist
from segcft_ext.networks.segmentor import Segmentor

BUNDLE = Path(__file__).parent.parent / "bundles" / "plaque_lumen_segmentor"
TINY = ["--network_def#features", "[4,4,4,4,4,4]"]
SHORT = [*TINY, "--max_epochs", "1", "--val_interval", "1", "--batch_size", "2"]
SIZE, SIZE_3D = (64, 16), (32, 16, 16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One vessel in every form in which it may be stored, 100 samples along and 30 across."""
    folder = tmp_path_factory.mktemp("cuts")
    hu, _ = draw_vessel(4, (100, 30))
    grey = (stored(hu) / 257).round().astype(np.uint8)
    write_png(folder / "grey16.png", stored(hu))
    write_png(folder / "grey8.png", grey)
    write_png(folder / "colour.png", np.stack([grey] * 3, -1))
    write_png(folder / "lying.png", stored(hu).T.copy())
    write_nifti(folder / "hu.nii.gz", hu.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    write_nifti(folder / "hu.nii.gz", draw_vessel(3, (40, 20, 18))[0].astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, images: Path, volumes: Path) -> tuple[Path, Datalist, Datalist]:
    """The folder of the bundle after all documented commands, and the data in 2-D and 3-D."""
    folder = tmp_path_factory.mktemp("elsewhere") / "bundle"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models"))
    datalist = small_vessels(tmp_path_factory.mktemp("vessels"), SIZE)
    datalist_3d = small_vessels(tmp_path_factory.mktemp("vessels_3d"), SIZE_3D)
    variables = {
        "DATALIST": str(datalist.path),
        "DATALIST_3D": str(datalist_3d.path),
        "IMAGES": str(images),
        "VOLUMES": str(volumes),
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        commands = run_documented_commands(folder, variables, {"train.json": SHORT, "inference.json": TINY}, patch)
    assert len(commands) == 7
    return folder, datalist, datalist_3d


def test_dimensions_follow_the_datalist(ran: tuple[Path, Datalist, Datalist]) -> None:
    folder, *datalists = ran
    for path, datalist in zip(("models/model.pt", "models/volumes/model.pt"), datalists):
        model = load_model(folder / path, Segmentor)
        assert model.definition["spatial_dims"] == datalist.spatial_dims
        assert model.data["use"] == "guide" and model.data["image_size"] == list(datalist.size)
        assert model.labels == datalist.labels


def test_several_devices_write_the_same_kind_of_model(ran: tuple[Path, Datalist, Datalist]) -> None:
    alone, together = (read_description(ran[0] / "models" / name) for name in ("model.pt", "two_devices/model.pt"))
    assert alone == together


def test_evaluation_reports_structures_lesions_and_areas(ran: tuple[Path, Datalist, Datalist]) -> None:
    folder, datalist, _ = ran
    report = json.loads((folder / "eval" / "segmentation.json").read_text())
    assert report["split"] == "test" and report["cases"] == 3
    assert list(report["structures"]) == ["lumen", "calcified_plaque", "noncalcified_plaque"]
    assert list(report["lesions"]) == ["calcified_plaque", "noncalcified_plaque"]
    true = [entry["variables"]["calcified_plaque_area"] for entry in datalist.entries["test"]]
    assert report["lesions"]["calcified_plaque"]["images_without"] == true.count(0.0) > 0
    assert report["structures"]["calcified_plaque"]["dice"]["undefined"] == true.count(0.0)
    area = report["variables"]["calcified_plaque_area"]
    assert area["unit"] == "mm2" and {"mae", "mape", "mae_present", "mae_absent"} <= set(area["hard"])
    with (folder / "eval" / "segmentation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["calcified_plaque_area"]) for row in rows] == pytest.approx(true, rel=1e-5)
    assert [row["dice_calcified_plaque"] == "" for row in rows] == [area == 0 for area in true]


def test_every_stage_is_a_finished_run(ran: tuple[Path, Datalist, Datalist]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{ran[0]}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("segcft").experiment_id])
    # the resumed training went on with its run
    assert len(runs) == 4 and {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.inputs.dataset_inputs for run in runs)
    evaluation = next(run for run in runs if "evaluate" in run.info.run_name)
    assert {"dice_lumen", "false_positives_per_image_calcified_plaque"} <= set(evaluation.data.metrics)
    assert "segmentation.png" in {artifact.path for artifact in client.list_artifacts(evaluation.info.run_id)}


def test_inference_gives_label_maps_of_the_images_own_size(ran: tuple[Path, Datalist, Datalist], images: Path) -> None:
    folder = ran[0] / "eval"
    found = {name: np.array(Image.open(folder / f"{name}_seg.png")) for name in ("grey16", "grey8", "colour", "lying")}
    found["hu"] = np.asarray(Image.open(folder / "hu_seg.png")).T  # a NIfTI's first axis is a picture's columns
    found["lying"] = found["lying"].T
    for name, label in found.items():
        assert label.shape == (100, 30) and label.dtype == np.uint8 and label.max() <= 3, name
        assert (label == found["grey16"]).mean() > 0.98, name


def test_inference_keeps_the_place_of_a_volume(ran: tuple[Path, Datalist, Datalist], volumes: Path) -> None:
    label, image = nibabel.load(ran[0] / "eval" / "hu_seg.nii.gz"), nibabel.load(volumes / "hu.nii.gz")
    assert label.shape == image.shape and label.get_data_dtype() == np.uint8
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-9)


def workflow(folder: Path, name: str, **overrides: Any) -> ConfigWorkflow:
    with kept_logging():
        made = ConfigWorkflow(
            str(folder / "configs" / name),
            workflow_type="train" if name == "train.json" else "infer",
            bundle_root=str(folder),
            **{"network_def#features": [4] * 6} if name != "evaluate.json" else {},
            **overrides,
        )
        made.initialize()
    return made


@pytest.mark.parametrize("name", ["train.json", "inference.json", "evaluate.json"])
def test_properties(ran: tuple[Path, Datalist, Datalist], images: Path, name: str) -> None:
    folder, datalist, _ = ran
    source = {"dataset_dir": str(images)} if name == "inference.json" else {"datalist": str(datalist.path)}
    assert workflow(folder, name, **source).check_properties() == []


@pytest.mark.parametrize("name", ["grey16.png", "lying.png", "hu.nii.gz"])
def test_inference_puts_the_anatomy_where_it_is(
    ran: tuple[Path, Datalist, Datalist], images: Path, tmp_path: Path, name: str
) -> None:
    """What is bright in the network's input is marked in its place, in MONAI's order of the file's axes."""
    made = workflow(ran[0], "inference.json", dataset_dir=str(images), output_dir=str(tmp_path))
    case = made.parser.get_parsed_content("preprocessing")({"image": str(images / name)})
    assert case["image"].shape == (1, *SIZE)
    bright = (case["image"] > -0.4).float()
    case["pred"] = 100 * torch.cat([1 - bright, bright, 0 * bright, 0 * bright])
    label = made.parser.get_parsed_content("postprocessing")({**case})["pred"]
    wanted = draw_vessel(4, (100, 30))[1] > 0
    wanted = wanted.T if name == "grey16.png" else wanted
    assert label.dtype == torch.uint8 and label.shape == wanted.shape
    seen = label.numpy() == 1
    assert 2 * (seen & wanted).sum() / (seen.sum() + wanted.sum()) > 0.9


def test_a_checkpoint_of_other_labels_is_refused(ran: tuple[Path, Datalist, Datalist], tmp_path: Path) -> None:
    folder, datalist, _ = ran
    content = json.loads(datalist.path.read_text())
    content["labels"] = {"background": 0, "left_lung": 1, "right_lung": 2, "heart": 3}
    other = datalist.path.with_name("other.json")
    other.write_text(json.dumps(content))
    made = workflow(
        folder,
        "evaluate.json",
        datalist=str(other),
        output_dir=str(tmp_path),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
    with pytest.raises(RuntimeError) as refused:
        made.run()
    assert isinstance(refused.value.__cause__, CheckpointError) and "data.labels" in str(refused.value.__cause__)


@pytest.mark.parametrize("size", [(64, 16), (64, 16, 16)], ids=["2-D", "3-D"])
def test_trains_as_monai_label_trains_it(
    size: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI Label gives its own cases, by path alone, and its own loader of the last model; the bundle holds the
    datalist's header."""
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models"))
    datalist = small_vessels(bundle, size)
    model = bundle / "models" / "model.pt"
    last = Segmentor(datalist.labels, "BasicUNet", len(size), features=[4] * 6)
    last.describe(datalist, use="guide")
    save_model(last, model)
    before = model.read_bytes()
    train_as_monai_label(bundle, datalist, tmp_path, monkeypatch)
    assert model.read_bytes() != before
    assert load_model(model, Segmentor).definition["spatial_dims"] == len(size)
