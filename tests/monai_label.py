"""Training a bundle as MONAI Label trains it."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import pytest
from bundle_docs import kept_logging

from segcft_ext.datalist import Datalist


def train_as_monai_label(bundle: Path, datalist: Datalist, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a segmentor with few channels for one epoch from the last model, on cases given by path alone.

    Args:
        bundle: the bundle's folder, with ``models/model.pt`` in it.
        datalist: the cases; the first six training cases are for training, the others for validation.
        folder: folder in which the training runs and which holds its MLflow store.
        monkeypatch: sets folder and environment.
    """
    cases = [{key: item[key] for key in ("image", "label")} for item in datalist.items("training")]
    handlers = json.loads((bundle / "configs" / "train.json").read_text())["train"]["handlers"]
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(bundle / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    with kept_logging():
        monai.bundle.run(
            run_id="run",
            init_id=None,
            final_id=None,
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "train.json"),
            bundle_root=str(bundle),
            device="cpu",
            **{
                "train#trainer#max_epochs": 1,
                "train#dataset#data": cases[:6],
                "validate#dataset#data": cases[6:],
                "train#handlers": [loader, *handlers],
                "network_def#features": [4] * 6,
            },
        )
