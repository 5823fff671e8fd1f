"""The whole chain for one datalist: from images with label maps to a report.

.. code-block:: bash

    python -m segcft_ext.chain run --datalist prepared/datalist.json --output_dir runs/mine
    python -m segcft_ext.chain demo
    python -m segcft_ext.chain demo --kind coronary

It runs the bundles' own commands. What it adds is their order, running two at a time, and skipping stages that need not
run again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import segcft_ext
from data_prep.options import read_chest_size, read_vessel_size
from data_prep.phantom_chest import ChestPhantom
from data_prep.phantom_coronary import CoronaryPhantom
from segcft_ext.chain_stages import Chain, project_code
from segcft_ext.command_line import read_names, read_whole, run_command
from segcft_ext.datalist import Datalist, read_datalist
from segcft_ext.evaluation.draws import intervened_variables
from segcft_ext.evaluation.tables import evaluation_tables
from segcft_ext.evaluation.truth import Truth
from segcft_ext.kinds import KINDS, kind_of
from segcft_ext.scheduler import StageError, run_stages
from segcft_ext.stage_settings import Settings, merged_settings, read_settings
from segcft_ext.stages import Stage
from segcft_ext.tracking import sqlite_uri
from segcft_ext.variables import Variables

__all__ = ["demo", "run"]

METHODS = ("No-CFT", "Reg-CFT", "Seg-CFT")
MECHANISMS = ("deformation", "hvae")
HEADLINE = ("effectiveness", "leakage")
DEMO_CASES = 320


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

    A stage whose outputs are complete and whose inputs are unchanged is skipped; an interrupted one resumes where it
    stopped. OUTPUT_DIR/commands.sh holds the commands, OUTPUT_DIR/logs what they print, OUTPUT_DIR/report.html the
    result. Runs are recorded in OUTPUT_DIR/mlflow.db, or in the store that MLFLOW_TRACKING_URI names.

    Example:

        python -m segcft_ext.chain run --datalist prepared/datalist.json --output_dir runs/mine
        --mechanisms deformation,hvae --set dscm_pretraining.max_epochs=200,seg_cft_hvae.max_epochs=50

    Args:
        datalist: the datalist.json that data_prep wrote.
        output_dir: folder to write to.
        methods: methods to compare, some of No-CFT,Reg-CFT,Seg-CFT.
        mechanisms: image mechanisms to fine-tune, some of deformation,hvae. The first trains a warp on top of the HVAE,
            the second the HVAE alone, with this project's objective.
        seed: random seed of all stages; that of the judge is derived from it.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if there is one.
        jobs: number of stages that run at a time, each in one thread.
        set: settings that override those of a stage's bundle, as STAGE.KEY=VALUE, several separated by commas. A value
            may be JSON. STAGE is the name shown while the stage runs; reg_cft and seg_cft stand for those of all
            mechanisms. KEY begins with a top-level key of the stage's configs.
        bundles: folder of the bundles, by default the one beside the package.
    """
    output = Path(output_dir).absolute()
    seed = read_whole("seed", seed, 0)
    data, folder = read_datalist(datalist), _bundles(bundles)
    kind = kind_of(data, folder)
    chosen, settings = _chosen("methods", methods, METHODS), read_settings(set)
    _check_cases(data)
    _check_variables(data, settings, chosen)
    chain = Chain(
        data.path,
        output,
        seed,
        device,
        settings,
        folder,
        kind=kind,
        positional=data.regions is not None,
        size=data.size,
    )
    _execute(chain, chain.stages(chosen, _mechanisms(mechanisms)), jobs)


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
    """The whole chain on rendered phantoms, in about a quarter of an hour on two CPU cores.

    A phantom's true counterfactual is known, so the report also compares with that.

    Args:
        output_dir: folder to write to; by default runs/demo, or runs/demo_coronary.
        kind: "chest", radiographs with lungs and heart; or "coronary", straightened arteries with plaques, edited
            region by region.
        count: number of phantoms.
        size: image size in pixels, by default 64 for a (square) chest and 128x32 (along x across) for a vessel.
        mechanisms: see the command run.
        seed: random seed of the phantoms and of all stages after them.
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
    pixels = shown.demo_size if size is None else _phantom_size(size, kind)
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
        code=project_code(),
    )
    settings, folder = merged_settings(shown.demo_settings, read_settings(set)), _bundles(bundles)
    datalist = phantoms.folder / "datalist.json"
    chain = Chain(
        datalist, output, seed, device, settings, folder, kind=shown, positional=shown.positional, size=pixels
    )
    _execute(chain, [phantoms, *chain.stages(METHODS, _mechanisms(mechanisms))], jobs)


def _execute(chain: Chain, stages: Sequence[Stage], jobs: Any) -> None:
    output, jobs = chain.output, read_whole("jobs", jobs, 1)
    for option, path in (("output_dir", output), ("datalist", chain.datalist), ("bundles", chain.bundles)):
        if "#" in str(path):
            raise ValueError(f"{option}: found {path}, expected a path without #: MONAI reads it as ::")
    # Small convolutions gain little from threads, and the numbers must not depend on how many there are.
    # glibc is told to keep the memory of feature maps: asking the kernel for it again costs up to a tenth of the time.
    environment = {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    }
    if not os.environ.get("MLFLOW_TRACKING_URI"):  # the user's own may hold a password, so it is written to no file
        environment["MLFLOW_TRACKING_URI"] = sqlite_uri(output / "mlflow.db")
    output.mkdir(parents=True, exist_ok=True)
    run_stages(stages, output / "logs", jobs, environment, output / "commands.sh")
    print(f"\n{_headline(output / 'evaluation' / 'evaluation.json')}\n\nreport: {output / 'report.html'}")


def _bundles(given: str | None) -> Path:
    folder = Path(given).absolute() if given else Path(segcft_ext.__file__).parent.parent / "bundles"
    if not (folder / "lung_heart_segmentor").is_dir():
        raise ValueError(
            f"{folder}: the bundles are not there; they lie in the folder bundles of the repository: give --bundles"
        )
    return folder


def _check_cases(datalist: Datalist) -> None:
    """Refuse at the start what only the last stages would refuse."""
    for split, use in (("training", "guide"), ("training", "judge"), ("validation", None), ("test", None)):
        if not datalist.fingerprints(split, use):
            cases = f"cases of use {use!r}" if use else "cases"
            raise ValueError(f"{datalist.path}: {split}: found no {cases}, expected at least one")
    if datalist.truth is not None:
        Truth(datalist)


def _check_variables(datalist: Datalist, settings: Settings, methods: Sequence[str]) -> None:
    """Refuse at the start variables that a later stage cannot model, or that the evaluation would miss."""
    modelled = _modelled_variables("dscm_pretraining", datalist, settings)
    intervened = intervened_variables(datalist, settings.get("evaluation", {}).get("interventions"))
    if not {*intervened} <= {*modelled}:
        option = "set: dscm_pretraining.variables"
        raise ValueError(f"{option}: found {modelled}, expected all of evaluation.interventions, {intervened}")
    if "Reg-CFT" in methods:
        _modelled_variables("regressor", datalist, settings)


def _modelled_variables(stage: str, datalist: Datalist, settings: Settings) -> list[str]:
    given = settings.get(stage, {}).get("variables")
    names = read_names(f"set: {stage}.variables", given or list(datalist.measurements()))
    try:
        Variables(datalist.definitions(names)).fit(**datalist.training_values(names))
    except ValueError as error:
        way = "--set dscm_pretraining.variables=[…],regressor.variables=[…],evaluation.interventions=[…]"
        raise ValueError(f"{datalist.path}: {error} ({way} names those to keep)") from error
    return names


def _phantom_size(given: Any, kind: str) -> tuple[int, ...]:
    """The size of a demo's phantoms, read and refused as ``data_prep phantom`` does, but before anything is run."""
    if kind == "chest":
        return (ChestPhantom(read_chest_size(given)).size,) * 2
    return CoronaryPhantom(read_vessel_size(given, dims=2)).size


def _chosen(option: str, given: Any, known: Sequence[str]) -> list[str]:
    """Some of the known names, in their order."""
    names = read_names(option, given)
    if not names or any(name not in known for name in names):
        raise ValueError(f"{option}: found {names}, expected some of {list(known)}")
    return [name for name in known if name in names]


def _mechanisms(given: Any) -> list[str]:
    return _chosen("mechanisms", given, MECHANISMS)


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
    """Run one command; errors in input, files or stages end with one line instead of a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running stages are ended
    commands: dict[str, Callable[..., None]] = {"run": run, "demo": demo}
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if sum(argument.partition("=")[0] == "--set" for argument in given) > 1:  # of which Fire would take the last
            raise ValueError("set: found twice, expected once, as STAGE.KEY=VALUE,STAGE.KEY=VALUE")
        run_command("python -m segcft_ext.chain", commands, given)
    except (StageError, ValueError, OSError) as error:
        sys.exit(f"chain: {error}")
    except KeyboardInterrupt:
        sys.exit("chain: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
