"""What MONAI's tools ask of a bundle, for every bundle of the repository."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import monai.bundle
import pytest
import torch
from bundle_docs import kept_logging
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from segcft_ext.checkpoints import DATA, save_model

ROOT = Path(__file__).parent.parent
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/metadata.json"))
SCHEMA = json.loads((Path(__file__).parent / "data" / "meta_schema_20240725.json").read_text(encoding="utf-8"))
CONFIGS = ("train.json", "inference.json", "evaluate.json", "multi_gpu_train.json")
USUAL_KEYS = (
    *("name", "changelog", "intended_use", "data_source", "data_type", "image_classes", "label_classes"),
    *("pred_classes", "eval_metrics", "references"),
)

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def config(bundle, name):
    return json.loads((bundle / "configs" / name).read_text(encoding="utf-8"))


def test_is_complete(bundle):
    wanted = [f"configs/{name}" for name in (*CONFIGS, "metadata.json", "logging.conf")]
    wanted += ["docs/README.md", "docs/data_license.txt", "LICENSE"]
    assert [name for name in wanted if not (bundle / name).is_file()] == []
    assert (bundle / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_metadata_follow_the_schema(bundle):
    metadata = config(bundle, "metadata.json")
    jsonschema.validate(metadata, SCHEMA)
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"]["segcft_ext"]
    assert [key for key in USUAL_KEYS if key not in metadata] == []


def test_metadata_name_one_input_and_one_output(bundle):
    formats = config(bundle, "metadata.json")["network_data_format"]
    assert list(formats["inputs"]) == ["image"] and list(formats["outputs"]) == ["pred"]


def test_network_does_what_the_metadata_say(bundle):
    formats = config(bundle, "metadata.json")["network_data_format"]
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def").eval()
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    with torch.no_grad():
        found = network(torch.rand(1, image["num_channels"], *image["spatial_shape"]))
    assert isinstance(found, torch.Tensor)
    assert found.shape == (1, pred["num_channels"], *pred["spatial_shape"])
    assert str(found.dtype) == f"torch.{pred['dtype']}"


def test_monai_loads_it_from_its_folder(bundle, tmp_path):
    """MONAI's defaults load the weights of ``models/model.pt`` and the description of the data stored with them."""
    shutil.copytree(bundle / "configs", tmp_path / bundle.name / "configs")
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(tmp_path)
    network = parser.get_parsed_content("network_def")
    network.data = {**dict.fromkeys(DATA), "name": "phantoms", "image_size": [64, 64]}
    save_model(network, tmp_path / bundle.name / "models" / "model.pt")
    with kept_logging():
        loaded = monai.bundle.load(bundle.name, bundle_dir=tmp_path, source="github", device="cpu")
    assert loaded.data == network.data
    state = loaded.state_dict()
    torch.testing.assert_close(state, network.state_dict(), rtol=0, atol=0, equal_nan=True)


def test_initializes_without_data_and_checkpoints(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with kept_logging():
        workflow = ConfigWorkflow(
            str(bundle / "configs" / "train.json"), workflow_type="train", bundle_root=str(bundle)
        )
        workflow.initialize()
    assert isinstance(workflow.network_def, torch.nn.Module)
    assert list(tmp_path.iterdir()) == []


def test_inference_takes_one_image(bundle, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    parser = ConfigParser(config(bundle, "inference.json"))
    parser["bundle_root"] = str(tmp_path)
    assert "image" in parser
    parser["image"] = str(tmp_path / "a.png")
    parser["dataset"] = {"data": parser["dataset"]["data"]}
    assert parser.get_parsed_content("dataset")["data"] == [{"image": str(tmp_path / "a.png")}]


@pytest.mark.parametrize(("file", "key"), [("inference.json", "run#0"), ("evaluate.json", "network_def")])
def test_the_option_of_a_missing_checkpoint_is_named(bundle, file, key, tmp_path):
    parser = ConfigParser(config(bundle, file))
    parser["bundle_root"] = str(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content(key)
    option = {"segmentor_evaluation": "judge"}.get(bundle.name, "dscm" if "dscm" in parser else "segmentor")
    assert f"--{option}: {tmp_path}/models/model.pt: no such checkpoint" in str(caught.value.__cause__)
    assert f"bundle {bundle.name} writes" in str(caught.value.__cause__)


def test_inference_refuses_images_of_another_size_than_the_trained(bundle, tmp_path):
    parser = ConfigParser(config(bundle, "inference.json"))
    parser["bundle_root"] = str(tmp_path)
    network = parser.get_parsed_content("network_def")
    network.data = {**dict.fromkeys(DATA), "name": "phantoms", "image_size": [96, 32]}
    save_model(network, tmp_path / "models" / "model.pt")
    for size in ([96, 32], (96, 32)):
        parser["image_size"] = size
        parser.parse(True)
        assert parser.get_parsed_content("run#1") is None
    for size in ([32, 96], [96, 32, 32], 96):
        parser["image_size"] = size
        parser.parse(True)
        with pytest.raises(RuntimeError) as caught:
            parser.get_parsed_content("run#1")
        message = f"--image_size: found {size}, expected [96, 32], on which {tmp_path}/models/model.pt was trained"
        assert message in str(caught.value.__cause__)


def test_inference_writes_pictures_or_nifti_files(bundle, tmp_path):
    parser = ConfigParser(config(bundle, "inference.json"))
    parser["bundle_root"], parser["output_ext"] = str(tmp_path), ".jpg"
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("handlers" if "intervention" in parser else "postprocessing")
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert str(error) == "output_ext: found '.jpg', expected '.png' or '.nii.gz'"


def test_inference_leaves_out_images_that_cannot_be_read(bundle):
    assert config(bundle, "inference.json")["dataloader"]["_target_"] == "segcft_ext.image_loader.ImageLoader"


def test_several_devices_may_be_typed_as_cpu(bundle, monkeypatch):
    """This holds on machines with GPUs, too."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.json", "multi_gpu_train.json")])
    parser["device"] = "cpu"
    backends = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.distributed.init_process_group", backends.append)
    for key in ("network#device_ids", "initialize#1", "initialize#2"):
        assert parser.get_parsed_content(key) is None
    assert backends == ["gloo"]


@pytest.mark.parametrize("name", CONFIGS[:3])
def test_handlers_are_written_inline(bundle, name):
    """Tools read the ``_target_`` of every handler before anything is resolved."""
    parser = ConfigParser(config(bundle, name))
    handlers = [
        handler for key in ("handlers", "train#handlers", "validate#handlers") for handler in parser.get(key) or []
    ]
    assert handlers and all(isinstance(handler, dict) and handler["_target_"] for handler in handlers)


@pytest.mark.parametrize("name", CONFIGS[:3])
def test_has_the_required_properties_under_their_ids(bundle, name):
    parser = ConfigParser(config(bundle, name))
    properties = (TrainProperties if name == "train.json" else InferProperties).values()
    required = [p[BundlePropertyConfig.ID] for p in properties if p[BundleProperty.REQUIRED]]
    assert required and [key for key in required if key not in parser] == []


def test_inference_refers_to_no_metadata(bundle):
    """MONAI Label reads the config without ``metadata.json``."""
    assert "@_meta_" not in (bundle / "configs" / "inference.json").read_text(encoding="utf-8")


def test_keeps_its_code_in_the_package(bundle):
    assert not (bundle / "scripts").exists()
    for name in CONFIGS:
        targets = re.findall(r'"_target_": "([^"]+)"', (bundle / "configs" / name).read_text(encoding="utf-8"))
        packages = {target.split(".")[0] for target in targets if "." in target}
        assert packages and packages <= {"torch", "monai", "segcft_ext"}


def test_stores_nothing_of_this_machine(bundle):
    for file in bundle.rglob("*.json"):
        assert not re.search(r'"/(?!\')\w+/', file.read_text(encoding="utf-8")), file
