"""Settings whose names no config has, counts below one and missing devices are refused, in every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from segcft_ext.bundle_settings import check_settings

BUNDLES = Path(__file__).parents[1] / "bundles"
PROGRAM = "/somewhere/monai/bundle/__main__.py"
CONFIGS = [
    path
    for path in sorted(BUNDLES.glob("*/configs/*.json"))
    if "initialize" in json.loads(path.read_text(encoding="utf-8"))
]
DSCM = BUNDLES / "dscm_pretraining" / "configs"
TRAIN = str(DSCM / "train.json")
BOTH = f"['{TRAIN}', '{DSCM / 'image_size_224.json'}']"


@pytest.mark.parametrize(
    "given",
    [
        ["run", "--config_file", TRAIN, "--max_epochs", "3", "--resume=True", "--device", "cpu"],
        ["run", "training", "--config-file", TRAIN, "--batch-size", "3", "--network_def#hvae#beta", "-1"],
        ["run", "--config_file", BOTH, "--train::trainer::amp", "False", "--_meta_#version", "2"],
        ["run", "--config_file", f"{TRAIN},{DSCM / 'image_size_224.json'}", "--seed", "1"],
        [
            "run",
            "--config_file",
            TRAIN,
            "--mine",
            "4",
            "--max_epochs",
            "$@mine * 2",
            "--device",
            "$torch.device('cpu')",
        ],
        ["run", "--config_file", TRAIN, "--tracking", "mlflow", "--experiment_name", "a", "--run_name", "b"],
        ["run", "--run_id", "run", "--init_id", "initialize", "--logging_file", "x.conf", "--config_file", TRAIN],
        ["run", "--meta_file", "metadata.json"],
    ],
)
def test_what_the_configs_or_monai_know_is_taken(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [PROGRAM, *given])
    check_settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--max_epoch", "3"], "--max_epoch: found no 'max_epoch' in .*configs/train.json.*, expected perhaps 'max_"),
        (["--max-epoch=3"], "--max_epoch: found no 'max_epoch' in "),
        (["--network_deff#hvae#beta", "3"], "--network_deff#hvae#beta: found no 'network_deff' .* 'network_def'"),
        (["--zzz", "3"], r"--zzz: found no 'zzz' in .*, expected one of \["),
        (["--experiment_name", "a"], "--experiment_name: found no 'experiment_name' in "),
    ],
)
def test_what_nothing_would_read_is_refused(given: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for configs in (TRAIN, BOTH):
        monkeypatch.setattr("sys.argv", [PROGRAM, "run", *given, "--config_file", configs])
        with pytest.raises(SystemExit, match=f"^monai.bundle: {message}"):
            check_settings()
    monkeypatch.setattr("sys.argv", ["a_program_of_ones_own.py", *given])
    check_settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--max_epochs", "0"], "--max_epochs: found 0, expected a whole number from 1 on"),
        (["--max_epochs=-1"], "--max_epochs: found -1, expected a whole number from 1 on"),
        (["--batch_size", "0"], "--batch_size: found 0, expected a whole number from 1 on"),
        (["--train#trainer#max_epochs", "2.5"], "--train#trainer#max_epochs: found 2.5, expected a whole number"),
        (["--val_interval", "0"], "--val_interval: found 0, expected a whole number from 1 on"),
        (["--device", "gpu"], "--device: found 'gpu', expected a device that PyTorch has here: .*cuda"),
        (["--device", "cuda:99"], "--device: found 'cuda:99', expected a device that PyTorch has here: "),
    ],
)
def test_counts_below_one_and_missing_devices_are_refused(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [PROGRAM, "run", *given, "--config_file", TRAIN])
    with pytest.raises(SystemExit, match=f"^monai.bundle: {message}[^\n]*$"):
        check_settings()


def test_settings_from_a_file_of_arguments_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tmp_path / "args.json"
    for name in ("max_epochs", "max_epoch"):
        arguments.write_text(json.dumps({"config_file": TRAIN, name: 3}), encoding="utf-8")
        monkeypatch.setattr("sys.argv", [PROGRAM, "run", "--args_file", str(arguments)])
        if name == "max_epochs":
            check_settings()
        else:
            with pytest.raises(SystemExit, match=r"^monai.bundle: --max_epoch: found no 'max_epoch'"):
                check_settings()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_command_of_a_bundle_checks_its_settings_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [path] if path.stem != "multi_gpu_train" else [path.with_name("train.json"), path]
    parser = ConfigParser()
    parser.read_config(given)
    monkeypatch.setattr("sys.argv", [PROGRAM, "run", "--config_file", f"{list(map(str, given))}", "--sed", "1"])
    with pytest.raises(SystemExit, match="--sed: found no 'sed' in"):
        parser.get_parsed_content("initialize")
