"""The stages of the chain: the commands of the bundles, with what each reads, writes and is set to."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_prep
import segcft_ext
from segcft_ext.bundle_settings import check_names, check_values
from segcft_ext.kinds import Kind
from segcft_ext.stage_settings import Settings
from segcft_ext.stages import Stage, code_digest

__all__ = ["Chain", "project_code"]

EXPERIMENT = "segcft"
JUDGE_SEED_OFFSET = 1000
POSITIONAL = "Pos-"
CONNECTIONS = {"bundle_root", "datalist", "output_dir", "resume", "dscm", "guide", "judge", "methods"}
PUBLISHED_SIZE = (224, 224)  # dscm_pretraining has an overlay with the published network


@dataclass(frozen=True)
class Chain:
    """The stages for one datalist.

    Attributes:
        datalist: path of the datalist.
        output: folder with a subfolder for each stage.
        seed: random seed of all stages; the judge's has an offset.
        device: device of all stages; None leaves the bundles' default.
        settings: settings that override the bundle's, by stage or family of stages (``seg_cft``).
        bundles: folder of the bundles.
        kind: kind of data.
        positional: whether variables are measured in regions, so that Seg-CFT is Pos-Seg-CFT.
        size: image size in pixels.
    """

    datalist: Path
    output: Path
    seed: int
    device: str | None
    settings: Settings
    bundles: Path
    kind: Kind
    positional: bool
    size: tuple[int, ...]

    def stages(self, methods: Sequence[str], mechanisms: Sequence[str]) -> list[Stage]:
        """All stages, each after those that it needs.

        Raises:
            ValueError: when there are settings for an unknown stage, or settings that a stage does not have.
        """
        segmentor = self.stage(self.kind.segmentor, self.kind.segmentor)
        dscm = self.stage("dscm_pretraining", "dscm_pretraining", own=self._strides())
        regressor = self.stage("regressor", "seg_cft_finetuning", config="train_regressor.json")
        judge = self.stage("judge", "segmentor_evaluation", own={"seed": self.seed + JUDGE_SEED_OFFSET})
        compared: dict[str, Path] = {"No-CFT": _model(dscm)} if "No-CFT" in methods else {}
        guides = {"Reg-CFT": regressor, "Seg-CFT": segmentor}
        tuned: dict[str, list[Stage]] = {method: [] for method in guides}
        for mechanism in mechanisms:
            for method, guide in guides.items():
                if method in methods:
                    family = method.lower().replace("-", "_")
                    made = self.stage(
                        f"{family}_{mechanism}",
                        "seg_cft_finetuning",
                        family=family,
                        inputs={"dscm": _model(dscm), "guide": _model(guide)},
                        own={"deformation": mechanism == "deformation"},
                    )
                    tuned[method].append(made)
                    shown = POSITIONAL + method if self.positional and guide is segmentor else method
                    compared[shown if len(mechanisms) == 1 else f"{shown}, {mechanism}"] = _model(made)
        evaluation = self.stage(
            "evaluation",
            "segmentor_evaluation",
            config="evaluate.json",
            inputs={"judge": _model(judge), "methods": compared},
            products=("evaluation.json", "evaluation.md", "evaluation.csv", "pairs.csv", "figures/figures.json"),
            progress="judged",
        )
        # What takes longest comes first.
        stages = [segmentor, dscm, *tuned["Seg-CFT"]]
        stages += [regressor, *tuned["Reg-CFT"]] if tuned["Reg-CFT"] else []
        stages += [judge, evaluation]
        known = {stage.name for stage in stages} | {"regressor", "reg_cft", "seg_cft"}
        if unknown := sorted(set(self.settings) - known):
            raise ValueError(f"settings for the stages {unknown}, expected some of {sorted(known)}")
        return [*stages, self.report(evaluation)]

    def stage(
        self,
        name: str,
        bundle: str,
        *,
        config: str = "train.json",
        family: str = "",
        inputs: Mapping[str, Path | Mapping[str, Path]] | None = None,
        own: Mapping[str, Any] | None = None,
        products: tuple[str, ...] = ("model.pt",),
        progress: str = "training.pt",
    ) -> Stage:
        """One command of a bundle.

        Raises:
            ValueError: when there is a setting that the bundle's configs do not have, which MONAI would ignore, one
                with a value that the bundle would refuse, or one that connects the stages.
        """
        root = self.bundles / bundle
        configs = [root / "configs" / config]
        if self.kind.overlay and config.startswith("train") and bundle != self.kind.segmentor:
            configs.append(root / "configs" / config.replace("train", self.kind.overlay))
        if bundle == "dscm_pretraining" and self.size == PUBLISHED_SIZE:
            configs.append(root / "configs" / "image_size_224.json")
        for given in dict.fromkeys((family, name)):
            asked = self.settings.get(given, {})
            check_names(asked, configs, said=f"set: {given}.")
            check_values(asked, said=f"set: {given}.")
            if wrong := sorted(CONNECTIONS & set(asked)):
                raise ValueError(f"set: {given}: found {wrong}, expected settings that do not connect the stages")
        settings = {"run_name": name, "seed": self.seed, **(own or {})}
        if self.device:
            settings["device"] = self.device
        return Stage(
            name=name,
            program=("-m", "monai.bundle", "run"),
            folder=self.output / name,
            products=products,
            places={"bundle_root": root},
            inputs={
                "config_file": configs if len(configs) > 1 else configs[0],
                "datalist": self.datalist,
                **(inputs or {}),
            },
            settings={**settings, **self.settings.get(family, {}), **self.settings.get(name, {})},
            splits=("training", "validation") if config.startswith("train") else (),
            version=segcft_ext.__version__,
            code=project_code(),
            progress=progress,
        )

    def _strides(self) -> dict[str, Any]:
        """Strides with which the HVAE reduces images to one pixel; empty where those of the bundle's configs do so."""
        if self.size == PUBLISHED_SIZE or all(n <= most for n, most in zip(self.size, self.kind.hvae_size)):
            return {}
        return {"network_def#hvae#strides": [2, 2, 2, 2, 2, [-(-n // 32) for n in self.size]]}

    def report(self, evaluation: Stage) -> Stage:
        return Stage(
            name="report",
            program=("-m", "segcft_ext.report"),
            folder=self.output,
            folder_option=None,
            products=("report.html",),
            places={
                "output": self.output / "report.html",
                "evaluation_dir": evaluation.folder,
                "data_dir": self.datalist.parent,
                "runs_dir": self.output,
            },
            reads={
                "evaluation": evaluation.folder / "evaluation.json",
                "figures": evaluation.folder / "figures" / "figures.json",
                "datalist": self.datalist,
            },
            settings={"experiment": EXPERIMENT},
            version=segcft_ext.__version__,
            code=project_code(),
        )


def _model(stage: Stage) -> Path:
    return stage.folder / "model.pt"


@functools.cache
def project_code() -> str:
    """The digest of this project's code; its sources are read only once."""
    return code_digest(segcft_ext, data_prep)
