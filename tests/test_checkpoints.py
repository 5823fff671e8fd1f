import copy
import dataclasses
import hashlib
import json
import re
import resource

import numpy as np
import pytest
import torch
from monai.networks.utils import copy_model_state
from small_chests import LABELS, small_chests
from torch import nn
from torch.optim.swa_utils import AveragedModel

from segcft_ext.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_model,
    plain,
    read_description,
    save_atomically,
    save_model,
)
from segcft_ext.compatibility import check_compatible, trained_image_size, trained_window
from segcft_ext.datalist import read_datalist
from segcft_ext.dscm import DSCM
from segcft_ext.extra_state import pack, unpack
from segcft_ext.figures import sample_grid, save_figure
from segcft_ext.folders import write_json_atomically, write_text_atomically
from segcft_ext.freezing import freeze
from segcft_ext.networks.regressor import Regressor
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.provenance import fingerprint

AREAS = [{"name": f"{name}_area", "kind": "continuous"} for name in ("left_lung", "right_lung", "heart")]
AREA = {"_target_": "segcft_ext.measurements.Area", "label": 1}
CONTENTS = [  # none of them a model of this project
    nn.Linear(2, 2).state_dict(),
    [1, 2],
    {"_extra_state": pack({"class": "Linear"})},
    {"_extra_state": torch.zeros(8, dtype=torch.uint8)},
    {"_extra_state": {"format_version": 1, "class": "Segmentor", "definition": {}, "data": {}}},
]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return small_chests(tmp_path_factory.mktemp("chests"))


def segmentor(datalist, **arguments):
    network = Segmentor(LABELS, "UNet", **{"channels": (4, 8), "strides": (2,), **arguments})
    network.describe(datalist, use="guide")
    return network


def regressor(datalist):
    network = Regressor(AREAS, channels=(8, 8))
    network.fit(datalist, use="guide")
    return network


def dscm(datalist):
    hvae = {"channels": [4, 4], "strides": [2], "blocks": [1, 1], "latent_channels": 2}
    network = DSCM(AREAS, {"heart_area": ["left_lung_area"]}, hvae)
    network.describe(datalist)
    network.variables.fit(**datalist.training_values(network.variables.names))
    return network


BUILDS = [segmentor, regressor, dscm]


@pytest.mark.parametrize("build", BUILDS)
def test_rebuilds_the_same_network(build, datalist, tmp_path):
    network = build(datalist).eval()
    save_model(network, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", type(network))
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded(image), network(image))
    assert loaded.definition == network.definition and loaded.data == network.data
    assert not loaded.training
    check_compatible(loaded, datalist)


def test_is_a_bare_state_dict_that_mentions_its_data(datalist, tmp_path):
    network = segmentor(datalist)
    save_model(network, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert set(state) == set(network.state_dict())
    another = segmentor(datalist)
    another.load_state_dict(state)
    description = read_description(tmp_path / "model.pt")
    assert description["data"]["labels"] == LABELS and description["data"]["use"] == "guide"
    cases = [item["id"] for item in datalist.items("training", "guide")]
    assert description["data"]["cases"] == sorted(hashlib.sha256(case.encode()).hexdigest()[:12] for case in cases)
    assert trained_image_size(tmp_path / "model.pt") == [32, 32]
    assert trained_image_size(tmp_path / "none.pt") is None


@pytest.mark.parametrize("build", BUILDS)
def test_holds_tensors_only_and_travels_with_the_tools_that_copy_them(build, datalist):
    """MONAI's tools ask every value for its shape and take the values whose shapes are those of the network."""
    trained = build(datalist)
    network = type(trained)(**trained.definition)
    taken = copy_model_state(network, trained.state_dict())[1]
    assert sorted(taken) == sorted(trained.state_dict())
    assert network.data == trained.data
    check_compatible(network, datalist)
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    averaged.update_parameters(network)
    assert averaged.module.data == trained.data


def test_description_is_no_part_of_the_fingerprint(datalist):
    network = segmentor(datalist)
    before = fingerprint(network)
    network.describe(datalist, use="judge")
    assert fingerprint(network) == before
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert fingerprint(network) != before


@pytest.mark.parametrize("letters", [0, 10, 20000])
def test_packed_values_are_what_they_were(letters):
    state = {"unit": "mm²" * letters, "range": [0.1, None, True]}
    packed = pack(state)
    assert packed.dtype == torch.uint8 and len(packed) % 16384 == 0
    assert unpack(packed) == state


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load_model(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"hi\n", b"PK\x03\x04 damaged"])
def test_damaged_file(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt: cannot be read as a checkpoint"):
        load_model(tmp_path / "model.pt")


def test_pickled_code_is_not_run(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="plain values"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("content", CONTENTS)
def test_checkpoint_of_something_else(content, tmp_path):
    save_atomically(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: not a model of this project"):
        load_model(tmp_path / "model.pt")


def test_wrong_class_is_named(datalist, tmp_path):
    save_model(regressor(datalist), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: class: .* holds a Regressor, asked for a Segmentor"):
        load_model(tmp_path / "model.pt", Segmentor)


def test_only_own_classes_are_built(datalist, tmp_path):
    state = segmentor(datalist).state_dict()
    state["_extra_state"] = pack({**unpack(state["_extra_state"]), "class": "Popen"})
    save_atomically(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds 'Popen', known are \['DSCM', 'Regressor', 'Segmentor'\]"):
        load_model(tmp_path / "model.pt")


def test_newer_format_is_refused(datalist, tmp_path):
    state = segmentor(datalist).state_dict()
    state["_extra_state"] = pack({**unpack(state["_extra_state"]), "format_version": 2})
    save_atomically(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="format_version: the checkpoint holds 2, asked for: 1"):
        load_model(tmp_path / "model.pt")


def test_missing_weights_are_named(datalist, tmp_path):
    state = segmentor(datalist).state_dict()
    key = next(key for key in state if key.endswith("weight"))
    del state[key]
    save_atomically(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=re.escape(key)):
        load_model(tmp_path / "model.pt")


def test_another_definition_is_refused_even_when_loaded_loosely(datalist):
    state = segmentor(datalist).state_dict()
    wider = segmentor(datalist, channels=(8, 8))
    with pytest.raises(
        CheckpointError, match=r"definition\.channels: .* holds \[4, 8\], asked for: \[8, 8\]; .*load_model"
    ):
        wider.load_state_dict(state, strict=False)


def test_training_state_is_refused_even_when_loaded_loosely(datalist):
    """MONAI Label offers every file of ``models/``, and loads what is chosen with ``strict=False``."""
    network = segmentor(datalist)
    with pytest.raises(
        CheckpointError, match=r"'_extra_state' is missing, the checkpoint holds \['network', 'optimizer'"
    ):
        network.load_state_dict({"network": network.state_dict(), "optimizer": {}}, strict=False)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("image", {"size": [64, 64], "intensity_range": [0, 65535]}, r"image_size: the checkpoint holds \[32, 32\]"),
        ("labels", {"background": 0, "left_lung": 2, "right_lung": 1, "heart": 3}, "data.labels"),
    ],
)
def test_other_data_are_refused(key, change, message, datalist, tmp_path):
    content = json.loads(datalist.path.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, key: change}))
    network = segmentor(datalist)
    with pytest.raises(CheckpointError, match=rf"{message}.*other\.json"):
        check_compatible(network, read_datalist(other, check_files=False))


def test_what_does_not_tell_all_of_its_data_is_refused(datalist, tmp_path):
    network = segmentor(datalist)
    del network.data["cases"]
    save_model(network, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: data: the checkpoint does not tell \['cases'\]"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": (-1000.0, 3000.0)}, r"data\.window: the checkpoint holds \[-150\.0, 750\.0\], asked for by .*3000"),
        ({"window": None}, r"data\.window: .*None"),
        ({"intensity_unit": "mg/ml"}, r"data\.intensity_unit: the checkpoint holds 'HU', asked for by .*'mg/ml'"),
    ],
)
def test_other_intensities_are_refused(change, message, datalist, tmp_path):
    vessels = dataclasses.replace(datalist, window=(-150.0, 750.0), intensity_unit="HU")
    save_model(segmentor(vessels), tmp_path / "model.pt")
    assert trained_window(tmp_path / "model.pt") == [-150, 750]
    assert trained_window(tmp_path / "none.pt") is None
    network = load_model(tmp_path / "model.pt")
    check_compatible(network, vessels)
    other = dataclasses.replace(vessels, **change)
    with pytest.raises(CheckpointError, match=message):
        check_compatible(network, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "renamed"}, r"has 'heart_area', .*other\.json has \["),
        (
            {"unit": "mm2", "measurement": AREA | {"unit": "mm2"}},
            r"heart_area\.unit: the checkpoint holds 'percent', asked for by .*other\.json: 'mm2'",
        ),
        ({"measurement": AREA}, r"heart_area\.measurement"),
    ],
)
def test_other_variables_are_refused(change, message, datalist, tmp_path):
    content = json.loads(datalist.path.read_text())
    for variable in content["variables"]:
        if variable["name"] == "heart_area":
            variable.update(change)
    for split in ("training", "validation", "test"):
        for entry in content[split]:
            entry["spacing"] = [1.0, 1.0]
            entry["variables"] = {v["name"]: entry["variables"].get(v["name"], 1.0) for v in content["variables"]}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        check_compatible(regressor(datalist), read_datalist(other, check_files=False))


def test_untrained_network_is_refused(datalist):
    with pytest.raises(CheckpointError, match="does not say what it was trained on"):
        check_compatible(Segmentor(LABELS, "UNet", channels=(4, 8), strides=(2,)), datalist)


def test_frozen_network_gets_no_gradient_but_passes_it_on(datalist):
    network = freeze(segmentor(datalist))
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    network(image)[:, 1].mean().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_frozen_network_stays_in_eval_mode(datalist):
    parent = nn.Sequential(nn.Dropout(), freeze(segmentor(datalist)))
    parent.train()
    assert parent.training and parent[0].training
    assert not any(module.training for module in parent[1].modules())
    copied = copy.deepcopy(parent[1])
    assert copied.train() is copied and not copied.training


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    save_atomically({"epoch": 1}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_atomically({"epoch": lambda: 2}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_atomically({"weights": torch.rand(100_000)}, path),
        lambda path: write_text_atomically(path, "new" * 10_000),
        lambda path: save_figure(sample_grid([np.random.rand(64, 64)]), path),
    ],
    ids=["checkpoint", "text", "figure"],
)
def test_a_full_disk_is_said_of_the_file_and_leaves_the_old_one(write, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"file: cannot be written \(File too large\)"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_json_holds_the_name_of_a_file_that_is_no_unicode(tmp_path):
    content = {"image": "caf\udce9.png", "unit": "mm²"}  # a name in Latin-1, as Python decodes it
    write_json_atomically(tmp_path / "file.json", content)
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("killed", [1, 3])
def test_what_a_killed_process_leaves_is_overwritten(killed, monkeypatch, tmp_path):
    def kill(*_):
        raise KeyboardInterrupt

    path = tmp_path / "model.pt"
    for pid in range(killed):
        with monkeypatch.context() as dying:
            dying.setattr("os.getpid", lambda pid=pid: pid)
            dying.setattr("os.replace", kill)
            dying.setattr("pathlib.Path.unlink", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                save_atomically({"epoch": pid}, path)
        assert len(list(tmp_path.iterdir())) == 1
    save_atomically({"epoch": killed}, path)
    assert load_checkpoint(path) == {"epoch": killed}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_plain_values_have_no_trace_of_numpy():
    found = plain({"a": np.float32(0.5), "b": (np.int64(1), torch.tensor([1.0])), "c": None})
    assert found == {"a": 0.5, "b": [1, [1.0]], "c": None}
    assert type(found["a"]) is float and type(found["b"]) is list
    with pytest.raises(TypeError, match="PosixPath cannot stand in a checkpoint"):
        plain({"path": __import__("pathlib").PosixPath("x")})
