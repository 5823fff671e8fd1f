"""The whole chain for one datalist: from images with label maps to a report.

.. code-block:: bash

    python -m segcft_ext.chain run --datalist prepared/datalist.json --output_dir runs/mine
    python -m segcft_ext.chain demo
    python -m segcft_ext.chain demo --kind coronary

It types the bundles' own commands; what it adds is their order, two at a time, and skipping what need not run again.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_prep
import segcft_ext
from segcft_ext.bundle_settings import check_names
from segcft_ext.command_line import read_names, read_sizes, read_whole, run_command
from segcft_ext.datalist import Datalist, read_datalist
from segcft_ext.evaluation.draws import intervened_variables
from segcft_ext.evaluation.tables import evaluation_tables
from segcft_ext.evaluation.truth import Truth
from segcft_ext.scheduler import StageError, run_stages
from segcft_ext.stages import Stage, code_digest
from segcft_ext.tracking import sqlite_uri

__all__ = ["demo", "run"]

METHODS = ("No-CFT", "Reg-CFT", "Seg-CFT")
MECHANISMS = ("deformation", "hvae")
HEADLINE = ("effectiveness", "leakage")
EXPERIMENT = "segcft"
JUDGE_SEED_OFFSET = 1000
PUBLISHED_SIZE = (224, 224)  # dscm_pretraining has an overlay with the published network

Settings = Mapping[str, Mapping[str, Any]]

POSITIONAL = "Pos-"


@dataclass(frozen=True)
class Kind:
    """A kind of data: what it needs of the bundles, and what its demo does.

    Attributes:
        segmentor: bundle of the guiding segmentor.
        overlay: name of the config that every other bundle lays over its ``train.json``, or "" for none.
        hvae_size: the largest images that the HVAE of these configs reduces to one pixel.
        demo_folder: where the demo writes by default.
        demo_size: size of the demo's phantoms, in pixels.
        smallest: smallest size in which its phantoms can be drawn, in pixels.
        square: whether its images are square.
        demo_settings: settings of the demo by stage, in place of the bundles'.
        positional: whether the phantoms' variables are measured in regions.
    """

    segmentor: str
    overlay: str
    hvae_size: tuple[int, ...]
    demo_folder: str
    demo_size: tuple[int, int]
    smallest: tuple[int, int]
    square: bool
    demo_settings: Settings
    positional: bool


DEMO_CASES = 320
KINDS = {
    "chest": Kind(
        segmentor="lung_heart_segmentor",
        overlay="",
        hvae_size=(64, 64),
        demo_folder="runs/demo",
        demo_size=(64, 64),
        smallest=(32, 32),
        square=True,
        demo_settings={
            "lung_heart_segmentor": {"max_epochs": 80},
            "regressor": {"max_epochs": 80},
            "dscm_pretraining": {"max_epochs": 30},
            "reg_cft": {"max_epochs": 40},
            "seg_cft": {"max_epochs": 40},
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
        smallest=(64, 24),
        square=False,
        demo_settings={
            "plaque_lumen_segmentor": {"max_epochs": 80},
            "regressor": {"max_epochs": 80},
            "dscm_pretraining": {"max_epochs": 20},
            "reg_cft": {"max_epochs": 45},
            "seg_cft": {"max_epochs": 45},
            "judge": {"max_epochs": 80},
            "evaluation": {"interventions_per_case": 1, "figure_cases": 1},
        },
        positional=True,
    ),
}


def run(
    *,
    datalist: str,
    output_dir: str,
    methods: Any = METHODS,
    mechanisms: Any = "deformation",
    seed: int = 0,
    device: str | None = None,
    jobs: int = 2,
    set: Any = (),
    bundles: str | None = None,
) -> None:
    """Train segmentor, DSCM, counterfactual fine-tuning and judge on a datalist, evaluate, and write a report.

    A stage whose outputs are complete and whose inputs are unchanged is skipped; one that was interrupted goes on where
    it was. OUTPUT_DIR/commands.sh holds the commands, OUTPUT_DIR/logs what they print, OUTPUT_DIR/report.html the
    result. Runs are recorded in OUTPUT_DIR/mlflow.db, or where MLFLOW_TRACKING_URI says.

    Example:

        python -m segcft_ext.chain run --datalist prepared/datalist.json --output_dir runs/mine
        --mechanisms deformation,hvae --set dscm_pretraining.max_epochs=200,seg_cft_hvae.max_epochs=50

    Args:
        datalist: what data_prep wrote.
        output_dir: folder to write to.
        methods: what to compare, some of No-CFT,Reg-CFT,Seg-CFT.
        mechanisms: image mechanisms to fine-tune, some of deformation,hvae. The first trains a warp on top of the HVAE,
            the second the HVAE alone, with this project's objective.
        seed: of everything; the judge has another one, made from it.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if there is one.
        jobs: number of stages that run at a time, each in one thread.
        set: settings in place of those of a stage's bundle, as STAGE.KEY=VALUE, several separated by commas. A value
            may be JSON. A stage is named as on the screen; reg_cft and seg_cft mean those of all mechanisms. A
            KEY begins with one that stands at the top of the stage's configs.
        bundles: folder of the bundles, by default the one beside the package.
    """
    output = Path(output_dir).absolute()
    seed = read_whole("seed", seed, 0)
    data, folder = read_datalist(datalist), _bundles(bundles)
    kind = _kind_of(data, folder)
    _check_cases(data)
    chain = Chain(
        data.path,
        output,
        seed,
        device,
        _settings(set),
        folder,
        kind=kind,
        positional=data.regions is not None,
        size=data.size,
    )
    _execute(chain, chain.stages(_chosen("methods", methods, METHODS), _mechanisms(mechanisms)), jobs)


def demo(
    output_dir: str | None = None,
    *,
    kind: str = "chest",
    count: int = DEMO_CASES,
    size: Any = None,
    mechanisms: Any = "deformation",
    seed: int = 0,
    device: str | None = None,
    jobs: int = 2,
    set: Any = (),
    bundles: str | None = None,
) -> None:
    """The whole chain on rendered phantoms: ten minutes on two cores for chests, a quarter of an hour for arteries.

    A phantom's true counterfactual is known, so the report compares with it too.

    Args:
        output_dir: folder to write to; by default runs/demo, or runs/demo_coronary.
        kind: "chest", radiographs with lungs and heart; or "coronary", straightened arteries with plaques, edited
            region by region.
        count: number of phantoms.
        size: in pixels; 64 of a square chest, 128x32 along and across a vessel.
        mechanisms: see the command run.
        seed: of the phantoms and of everything after them.
        device: see the command run.
        jobs: number of stages that run at a time, each in one thread.
        set: further settings of stages, see the command run.
        bundles: see the command run.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: found {kind!r}, expected one of {list(KINDS)}")
    seed = read_whole("seed", seed, 0)
    shown = KINDS[kind]
    output = Path(output_dir or shown.demo_folder).absolute()
    pixels = shown.demo_size if size is None else _phantom_size(size, shown)
    phantoms = Stage(
        name="data_prep",
        program=("-m", "data_prep", "phantom"),
        folder=output / "data",
        folder_option="out",
        products=("datalist.json",),
        settings={
            "kind": kind,
            "count": read_whole("count", count, 1),
            "size": "x".join(map(str, pixels)),
            "seed": seed,
            "name": f"{kind} phantoms",
        },
        version=segcft_ext.__version__,
        code=_code(),
    )
    chain = Chain(
        phantoms.folder / "datalist.json",
        output,
        seed,
        device,
        _merged(shown.demo_settings, _settings(set)),
        _bundles(bundles),
        kind=shown,
        positional=shown.positional,
        size=pixels,
    )
    _execute(chain, [phantoms, *chain.stages(METHODS, _mechanisms(mechanisms))], jobs)


def _execute(chain: Chain, stages: Sequence[Stage], jobs: Any) -> None:
    output, jobs = chain.output, read_whole("jobs", jobs, 1)
    for option, path in (("output_dir", output), ("datalist", chain.datalist), ("bundles", chain.bundles)):
        if "#" in str(path):
            raise ValueError(f"{option}: found {path}, expected a path without #: MONAI reads it as ::")
    # Small convolutions gain little from threads, and the numbers must not depend on how many there are.
    # And glibc is to keep the memory of feature maps: to ask the kernel for it anew costs up to a tenth of the time.
    environment = {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    }
    if not os.environ.get("MLFLOW_TRACKING_URI"):  # one that is given, perhaps with a password, is written nowhere
        environment["MLFLOW_TRACKING_URI"] = sqlite_uri(output / "mlflow.db")
    output.mkdir(parents=True, exist_ok=True)
    run_stages(stages, output / "logs", jobs, environment, output / "commands.sh")
    print(f"\n{_headline(output / 'evaluation' / 'evaluation.json')}\n\nreport: {output / 'report.html'}")


@dataclass(frozen=True)
class Chain:
    """The stages for one datalist.

    Attributes:
        datalist: the file.
        output: folder in which every stage has one of its own.
        seed: of all stages.
        device: for all stages, or None.
        settings: for each stage, or family of stages (seg_cft), what replaces its bundle's settings.
        bundles: folder of the bundles.
        kind: of the data.
        positional: whether variables are measured in regions, so that Seg-CFT is Pos-Seg-CFT.
        size: of the images.
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
            ValueError: when there are settings for a stage that there is not, or that a stage does not have.
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
            ValueError: when there is a setting that the bundle's configs do not have, which MONAI would ignore.
        """
        root = self.bundles / bundle
        configs = [root / "configs" / config]
        if self.kind.overlay and config.startswith("train") and bundle != self.kind.segmentor:
            configs.append(root / "configs" / config.replace("train", self.kind.overlay))
        if bundle == "dscm_pretraining" and self.size == PUBLISHED_SIZE:
            configs.append(root / "configs" / "image_size_224.json")
        for given in dict.fromkeys((family, name)):
            check_names(self.settings.get(given, {}), configs, said=f"set: {given}.")
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
            version=segcft_ext.__version__,
            code=_code(),
            progress=progress,
        )

    def _strides(self) -> dict[str, Any]:
        """The HVAE's strides that reduce images to one pixel, where those of the bundle's configs leave more."""
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
            code=_code(),
        )


def _model(stage: Stage) -> Path:
    return stage.folder / "model.pt"


def _bundles(given: str | None) -> Path:
    folder = Path(given).absolute() if given else Path(segcft_ext.__file__).parent.parent / "bundles"
    if not (folder / "lung_heart_segmentor").is_dir():
        raise ValueError(
            f"{folder}: the bundles are not there; they lie in the folder bundles of the repository: give --bundles"
        )
    return folder


def _kind_of(datalist: Datalist, bundles: Path) -> Kind:
    """The kind of data whose segmentor has the labels of the datalist."""
    known = {}
    for kind in KINDS.values():
        config = json.loads((bundles / kind.segmentor / "configs" / "train.json").read_text(encoding="utf-8"))
        known[kind.segmentor] = config["network_def"]["labels"]
        if known[kind.segmentor] == dict(datalist.labels):
            return kind
    raise ValueError(f"{datalist.path}: labels: found {dict(datalist.labels)}, expected those of a segmentor: {known}")


@functools.cache
def _code() -> str:
    """The digest of this code, whose sources are read once."""
    return code_digest(segcft_ext, data_prep)


def _check_cases(datalist: Datalist) -> None:
    """Refuse at the start data that only the last stages would refuse."""
    for split, use in (("training", "guide"), ("training", "judge"), ("validation", None), ("test", None)):
        if not datalist.fingerprints(split, use):
            cases = f"cases of use {use!r}" if use else "cases"
            raise ValueError(f"{datalist.path}: {split}: found no {cases}, expected at least one")
    intervened_variables(datalist)
    if datalist.truth is not None:
        Truth(datalist)


def _phantom_size(given: Any, kind: Kind) -> tuple[int, int]:
    """The size of a demo's phantoms from what is typed."""
    numbers = read_sizes(given)
    height, width = numbers * 2 if len(numbers) == 1 and kind.square else (*numbers, 0, 0)[:2]
    lowest = kind.smallest
    if len(numbers) > 2 or height < lowest[0] or width < lowest[1] or (kind.square and height != width):
        form = f"a square from {lowest[0]} on, as 64" if kind.square else f"from {lowest[0]}x{lowest[1]} on, as 128x32"
        raise ValueError(f"size: found {given!r}, expected {form}")
    return height, width


def _chosen(option: str, given: Any, known: Sequence[str]) -> list[str]:
    """Some of the known names, in their order."""
    names = read_names(option, given)
    if not names or any(name not in known for name in names):
        raise ValueError(f"{option}: found {names}, expected some of {list(known)}")
    return [name for name in known if name in names]


def _mechanisms(given: Any) -> list[str]:
    return _chosen("mechanisms", given, MECHANISMS)


def _settings(given: Any) -> dict[str, dict[str, Any]]:
    """From ``STAGE.KEY=VALUE`` to settings for each stage."""
    settings: dict[str, dict[str, Any]] = {}
    for text in _parts(given) if isinstance(given, str) else given:
        name, equals, value = str(text).partition("=")
        stage, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise ValueError(f"set: found {text!r}, expected STAGE.KEY=VALUE")
        try:
            settings.setdefault(stage, {})[key] = json.loads(value)
        except json.JSONDecodeError:
            settings.setdefault(stage, {})[key] = value
    return settings


def _parts(text: str) -> list[str]:
    """The text between commas, but for those inside brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "[{") - (character in "]}")
        if character == "," and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _merged(*layers: Settings) -> dict[str, dict[str, Any]]:
    """Settings for each stage; those of a later layer win."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for stage, settings in layer.items():
            merged.setdefault(stage, {}).update(settings)
    return merged


def _headline(path: Path) -> str:
    """The tables that matter most, as plain text."""
    tables = {table.key: table for table in evaluation_tables(json.loads(path.read_text(encoding="utf-8")))}
    text = []
    for table in (tables[key] for key in HEADLINE):
        rows = [["", *table.columns]]
        rows += [[name, *(cell.text(table.digits) for cell in cells)] for name, cells in table.rows]
        widths = [max(map(len, column)) for column in zip(*rows)]
        text.append(table.title)
        text += ["  " + "  ".join(f"{part:{width}}" for part, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what is not the software's fault ends with one line, not with a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running stages are ended
    commands: dict[str, Callable[..., None]] = {"run": run, "demo": demo}
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run_command("python -m segcft_ext.chain", commands, given)
    except (StageError, ValueError, OSError) as error:
        sys.exit(f"chain: {error}")
    except KeyboardInterrupt:
        sys.exit("chain: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
