"""The segmentor bundle as a user has it: copied into a folder of its own, run by the commands of its docs."""

import csv
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pydicom
import pytest
import torch
from bundle_docs import kept_logging, run_documented_commands, run_in_process
from drawn_chest import draw
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from monai_label import train_as_monai_label
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from small_chests import small_chests

from segcft_ext.checkpoints import CheckpointError, load_model, read_description
from segcft_ext.networks.segmentor import Segmentor

BUNDLE = Path(__file__).parent.parent / "bundles" / "lung_heart_segmentor"
TINY = ["--network_def#features", "[4,4,4,4,4,4]"]
SHORT = [*TINY, "--max_epochs", "1", "--val_interval", "1", "--batch_size", "2"]


def write_dicom(path, pixels, photometric):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3", "1.2"
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "DX", photometric, 1
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """One chest in every format, 70 rows by 50 columns."""
    folder = tmp_path_factory.mktemp("radiographs")
    grey, _ = draw(3, (70, 50))
    Image.fromarray(grey).save(folder / "grey8.png")
    Image.fromarray(grey.astype(np.uint16) * 200).save(folder / "grey16.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(folder / "colour.png")
    Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], -1)).save(folder / "transparent.png")
    write_dicom(folder / "bright_bones.dcm", grey.astype(np.uint16) * 16, "MONOCHROME2")
    write_dicom(folder / "dark_bones.dcm", 4095 - grey.astype(np.uint16) * 16, "MONOCHROME1")
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory, images):
    """The folder of the bundle after all documented commands."""
    folder = tmp_path_factory.mktemp("elsewhere") / "bundle"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models"))
    datalist = small_chests(tmp_path_factory.mktemp("chests"))
    small = {"train.json": SHORT, "inference.json": TINY}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        commands = run_documented_commands(
            folder, {"DATALIST": str(datalist.path), "IMAGES": str(images), "OMP_NUM_THREADS": "1"}, small, patch
        )
    assert len(commands) == 6
    return folder, datalist


def test_training_writes_model_and_state(ran):
    folder, datalist = ran
    model = load_model(folder / "models" / "model.pt", Segmentor)
    assert model.data["use"] == "guide" and model.data["image_size"] == list(datalist.size)
    assert (folder / "models" / "training.pt").is_file()


def test_several_devices_write_the_same_kind_of_model(ran):
    folder, _ = ran
    alone, together = (read_description(folder / "models" / name) for name in ("model.pt", "two_devices/model.pt"))
    assert alone == together


def test_evaluation_reports_structures_and_areas(ran):
    folder, datalist = ran
    report = json.loads((folder / "eval" / "segmentation.json").read_text())
    assert report["split"] == "test" and report["cases"] == 3
    assert list(report["structures"]) == ["left_lung", "right_lung", "heart"]
    assert set(report["structures"]["heart"]) == {"dice", "surface_distance", "hausdorff_distance_95"}
    assert set(report["variables"]["heart_area"]["soft"]) == {"mae", "mape", "bias"}
    with (folder / "eval" / "segmentation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [entry["id"] for entry in datalist.entries["test"]]
    for row, entry in zip(rows, datalist.entries["test"]):
        assert float(row["heart_area"]) == pytest.approx(entry["variables"]["heart_area"], rel=1e-5)


def test_every_stage_is_a_finished_run(ran):
    folder, _ = ran
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("segcft").experiment_id])
    # the resumed training went on with its run
    assert len(runs) == 3 == len({run.info.run_name for run in runs})
    assert {run.info.status for run in runs} == {"FINISHED"} and all(run.inputs.dataset_inputs for run in runs)
    evaluation = next(run for run in runs if "evaluate" in run.info.run_name)
    assert {"dice_heart", "mape_soft_heart_area"} <= set(evaluation.data.metrics)
    written = {artifact.path for artifact in client.list_artifacts(evaluation.info.run_id)}
    assert {"segmentation.json", "segmentation.csv", "segmentation.png"} <= written


def test_inference_gives_label_maps_of_the_pictures_own_size(ran, images):
    folder, _ = ran
    found = {path.stem: np.array(Image.open(folder / "eval" / f"{path.stem}_seg.png")) for path in images.iterdir()}
    for label in found.values():
        assert label.shape == (70, 50) and label.dtype == np.uint8 and label.max() <= 3
    first = found["grey8"]
    assert all((label == first).mean() > 0.98 for label in found.values())


def workflow(folder, name, **overrides):
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
def test_properties(ran, images, name):
    folder, datalist = ran
    source = {"dataset_dir": str(images)} if name == "inference.json" else {"datalist": str(datalist.path)}
    assert workflow(folder, name, **source).check_properties() == []


def test_inference_puts_the_anatomy_where_it_is(ran, tmp_path):
    """Padding, resizing and axis order are undone: what is bright in the network's input is marked in its place."""
    folder, _ = ran
    wanted = np.zeros((70, 50), bool)
    wanted[10:40, 28:44] = True
    Image.fromarray(np.where(wanted, 200, 20).astype(np.uint8)).save(tmp_path / "block.png")
    made = workflow(folder, "inference.json", dataset_dir=str(tmp_path))
    case = made.parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "block.png")})
    assert case["image"].shape == (1, 32, 32)
    assert (float(case["image"].min()), float(case["image"].max())) == pytest.approx((-1, 1), abs=0.01)
    bright = (case["image"] > 0).float()
    case["pred"] = 100 * torch.cat([1 - bright, 0 * bright, 0 * bright, bright])
    post = made.parser.get_parsed_content("postprocessing")
    label = post({**case})["pred"]
    assert label.dtype == torch.uint8 and label.shape == (50, 70)  # MONAI and MONAI Label have the columns first
    for found in (label.numpy().T, np.array(Image.open(folder / "eval" / "block_seg.png"))):
        overlap = ((found == 3) & wanted).sum()
        assert 2 * overlap / ((found == 3).sum() + wanted.sum()) > 0.9


def test_a_checkpoint_of_another_network_is_refused(ran, images):
    folder, _ = ran
    with kept_logging(), pytest.raises((CheckpointError, RuntimeError)) as error:
        run_in_process(
            [
                *("run", "--config_file", str(folder / "configs" / "inference.json"), "--bundle_root", str(folder)),
                *("--dataset_dir", str(images), "--network_def#features", "[8,8,8,8,8,8]"),
            ]
        )
    chain, messages = error.value, []
    while chain is not None:
        messages.append(str(chain))
        chain = chain.__cause__
    assert any("definition.features: the checkpoint holds [4, 4, 4, 4, 4, 4]" in message for message in messages)


def test_trains_as_monai_label_trains_it(ran, tmp_path, monkeypatch):
    """MONAI Label gives its own cases, by path alone, and its own loader of the last model; the bundle holds the
    datalist's header."""
    folder, _ = ran
    bundle = tmp_path / "bundle"
    shutil.copytree(folder, bundle, ignore=shutil.ignore_patterns("eval", "mlflow.db", "mlruns"))
    datalist = small_chests(bundle)
    before = (bundle / "models" / "model.pt").read_bytes()
    train_as_monai_label(bundle, datalist, tmp_path, monkeypatch)
    assert (bundle / "models" / "model.pt").read_bytes() != before


def test_trains_in_rounds_of_federated_learning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    datalist = small_chests(tmp_path / "data")
    settings = {"datalist": str(datalist.path), "device": "cpu", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    client = MonaiAlgo(
        str(tmp_path / "bundle"),
        local_epochs=2,
        config_evaluate_filename=None,
        train_kwargs={**settings, "network_def#features": [4] * 6, "output_dir": str(tmp_path)},
    )
    with kept_logging():
        client.initialize()
        weights = client.trainer.network.state_dict()
        for _ in range(2):
            client.train(ExchangeObject(weights=weights))
            weights = {name: weights[name] + change for name, change in client.get_weights().weights.items()}
    assert client.trainer.state.epoch == 4
    data = read_description(tmp_path / "model.pt")["data"]  # of this site, though the weights came without any
    assert (data["image_size"], data["use"]) == ([32, 32], "guide")
