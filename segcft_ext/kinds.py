"""The kinds of data that the chain knows: radiographs of the chest, and straightened coronary arteries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from segcft_ext.datalist import Datalist
from segcft_ext.stage_settings import Settings

__all__ = ["KINDS", "Kind", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """A kind of data: which bundles and configs it uses, and the settings of its demo.

    Attributes:
        segmentor: bundle of the guiding segmentor.
        overlay: name of the config that every other bundle lays over its ``train.json``, or "" for none.
        hvae_size: largest image size, in pixels, that the HVAE of these configs reduces to one pixel.
        demo_folder: where the demo writes by default.
        demo_size: size of the demo's phantoms, in pixels.
        demo_settings: settings of the demo by stage, which override the bundles'.
        positional: whether the phantoms' variables are measured in regions.
    """

    segmentor: str
    overlay: str
    hvae_size: tuple[int, ...]
    demo_folder: str
    demo_size: tuple[int, int]
    demo_settings: Settings
    positional: bool


KINDS = {
    "chest": Kind(
        segmentor="lung_heart_segmentor",
        overlay="",
        hvae_size=(64, 64),
        demo_folder="runs/demo",
        demo_size=(64, 64),
        demo_settings={
            "lung_heart_segmentor": {"max_epochs": 80},
            "regressor": {"max_epochs": 80},
            "dscm_pretraining": {"max_epochs": 22},
            "reg_cft": {"max_epochs": 40, "val_interval": 10},
            "seg_cft": {"max_epochs": 40, "val_interval": 10},
            "judge": {"max_epochs": 80},
            "evaluation": {"interventions_per_case": 2},
        },
        positional=False,
    ),
    "coronary": Kind(
        segmentor="plaque_lumen_segmentor",
        overlay="coronary",
        hvae_size=(256, 64, 64),
        demo_folder="runs/demo_coronary",
        demo_size=(128, 32),
        demo_settings={
            "plaque_lumen_segmentor": {"max_epochs": 80},
            "regressor": {"max_epochs": 80},
            "dscm_pretraining": {"max_epochs": 20},
            "reg_cft": {"max_epochs": 45, "val_interval": 23},
            "seg_cft": {"max_epochs": 45, "val_interval": 23},
            "evaluation": {"interventions_per_case": 1, "figure_cases": 1},
        },
        positional=True,
    ),
}


def kind_of(datalist: Datalist, bundles: Path) -> Kind:
    """The kind of data whose segmentor has the labels of the datalist."""
    known = {}
    for kind in KINDS.values():
        config = json.loads((bundles / kind.segmentor / "configs" / "train.json").read_text(encoding="utf-8"))
        known[kind.segmentor] = config["network_def"]["labels"]
        if known[kind.segmentor] == dict(datalist.labels):
            return kind
    raise ValueError(f"{datalist.path}: labels: found {dict(datalist.labels)}, expected those of a segmentor: {known}")
