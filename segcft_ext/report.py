"""One HTML file that shows an evaluation: pictures, tables, data, training curves, settings and versions.

.. code-block:: bash

    python -m segcft_ext.report --evaluation_dir evaluation --output report.html [--data_dir data]

The file is self-contained: pictures are embedded, nothing is requested from anywhere, so it can be mailed or archived.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from segcft_ext.command_line import read_names, run_command
from segcft_ext.evaluation.methods import FLOOR, ZERO
from segcft_ext.evaluation.table import Cell, Table
from segcft_ext.evaluation.tables import evaluation_tables, judge_rows, summary_line
from segcft_ext.figures import curves, to_png
from segcft_ext.html import figure, folded, listing, table, write_page
from segcft_ext.runs import Run, finished_runs
from segcft_ext.tracking import default_tracking_uri
from segcft_ext.wording import words, written_unit

__all__ = ["report"]

VERSIONS = ("segcft-ext", "torch", "monai", "pytorch-ignite", "mlflow", "zuko", "numpy")


def report(
    *,
    evaluation_dir: str | Path,
    output: str | Path,
    data_dir: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str = "segcft",
    runs: Any = None,
    title: str | None = None,
    runs_dir: str | Path | None = None,
) -> None:
    """Show an evaluation on one self-contained HTML page.

    Example:

        python -m segcft_ext.report --evaluation_dir eval --output report.html
        --data_dir prepared --title "Of mine"

    Args:
        evaluation_dir: folder that the bundle segmentor_evaluation wrote, with evaluation.json.
        output: the HTML file to write.
        data_dir: folder of the datalist, for the section on the data; left out by default.
        tracking_uri: the MLflow store of the trainings, for the section with their curves; by default the one that
            MLFLOW_TRACKING_URI names, else mlflow.db in the current folder if it exists; "" leaves the section out.
        experiment: name of the MLflow experiment in the store.
        runs: names of the runs to show, in order, a,b,c; by default the newest finished run of each stage, except
            those of datalists outside of data_dir and those that wrote outside of runs_dir.
        title: title of the page; by default it names the data.
        runs_dir: folder with the output folders of the trainings, if the store also holds other runs on the same data.

    Raises:
        FileNotFoundError: when there is no evaluation in the folder, no folder of the data, or no such store.
        ValueError: when a file of the evaluation is damaged; names it.
    """
    evaluation_dir, output = Path(evaluation_dir), Path(output)
    data_dir = None if data_dir is None else Path(data_dir)
    if not (evaluation_dir / "evaluation.json").is_file():
        raise FileNotFoundError(f"{evaluation_dir}: no evaluation.json in it, expected what segmentor_evaluation wrote")
    if data_dir is not None and not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir}: no such folder, expected that of a datalist.json")
    if tracking_uri is None:
        recorded = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlflow.db").is_file()
        tracking_uri = default_tracking_uri() if recorded else ""
    names = None if runs is None else read_names("runs", runs)
    shown_runs: list[Run] = []
    if tracking_uri:
        folder = None if runs_dir is None else Path(runs_dir)
        shown_runs = finished_runs(tracking_uri, experiment, names, data_dir, folder)
    evaluation = _read(evaluation_dir / "evaluation.json")
    figures = _read(evaluation_dir / "figures" / "figures.json")
    try:
        tables = {made.key: made for made in evaluation_tables(evaluation)}
    except (KeyError, TypeError) as error:
        expected = "expected what segmentor_evaluation of this version writes"
        raise ValueError(f"{evaluation_dir / 'evaluation.json'}: {error!r}, {expected}") from error
    title = title or f"Counterfactual images: {evaluation['data']['name']}"

    def shown(*kinds: str) -> list[str]:
        return [
            figure((evaluation_dir / "figures" / entry["file"]).read_bytes(), entry["caption"])
            for entry in figures
            if entry["kind"] in kinds
        ]

    headline = ("effectiveness", "slope", "leakage", "positional_leakage")
    first = [key for key in tables if key in headline or key.startswith("presence")]
    sections = [
        ("result", "The result", [_introduction(evaluation), *(_table(tables[key]) for key in first)]),
        ("pictures", "Counterfactuals, all methods side by side", [_reading_pictures(), *shown("comparison")]),
        ("sweeps", "Sweeps of each method", [folded("Show the sweeps", shown("sweep"))]),
        ("plots", "Wanted and achieved", shown("scatter", "heatmap", "maps")),
        (
            "tables",
            "Drift, axioms, realism, truth",
            [_table(t) for key, t in tables.items() if key not in first] + [_judge_table(evaluation)],
        ),
        ("data", "The data", _data(data_dir) if data_dir else []),
        ("training", "Training", [_run(run, [*evaluation["floor"], *evaluation["judge"]]) for run in shown_runs]),
        ("settings", "Settings and versions", [_settings(evaluation)]),
    ]
    write_page(output, title, summary_line(evaluation), sections)
    print(f"report: {output}")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error


def _introduction(evaluation: Mapping[str, Any]) -> str:
    names = ", ".join(f"<b>{escape(name)}</b>" for name in evaluation["methods"])
    example = escape(words(evaluation["data"]["interventions"][0]))
    return f"""<p>A counterfactual answers: <em>how would this very image look if this one quantity had been
different?</em> Here each method ({names}) was asked to change the size of one structure at a time, to values drawn from
the training data. An independent segmentor, the <b>judge</b>, which no method has seen, then measured every structure
in the result. A good counterfactual reaches the wanted size, leaves the other structures as they were, and still looks
like the real thing.</p>
<p><b>do({example})</b> heads what follows when this one variable, and nothing else, is set to another value.
{_units(evaluation)}</p>
<p>Two rows frame every table. <b>{escape(ZERO)}</b> is what one gets for leaving the image as it is.
<b>{escape(FLOOR)}</b> is the judge's own error on real images: what is about as low cannot be told apart. The best
method of each column is <span class="best">marked</span>.</p>"""


def _units(evaluation: Mapping[str, Any]) -> str:
    """One sentence on the units of the variables."""
    units = dict.fromkeys(filter(None, evaluation["data"]["units"].values()))
    meanings = ["percent of the image" if unit == "percent" else written_unit(unit) for unit in units]
    return f"Variables are given in {' or '.join(map(escape, meanings))}." if meanings else ""


def _reading_pictures() -> str:
    return """<p>In each block, from above: the image; what changed (<span class="up">brighter</span> /
<span class="down">darker</span>); the outlines (solid) over the outlines before the change (dotted): those that the
judge sees, but in the factual image and in the truth those of the label map. The cases are spread evenly over the test
cases, not picked. Look for what no number shows: borders that tear, haze, doubled contours.</p>"""


def _table(made: Table) -> str:
    rows = "".join(
        f'<tr class="{ {ZERO: "frame", FLOOR: "frame"}.get(name, "") }"><th>{escape(name)}</th>'
        + "".join(_cell(cell, made.digits) for cell in cells)
        + "</tr>"
        for name, cells in made.rows
    )
    return (
        f'<h3 id="table-{made.key}">{escape(made.title)}</h3><p class="note">{escape(made.note)}</p>'
        f'<div class="scroll"><table><thead>{_head(made.columns)}</thead><tbody>{rows}</tbody></table></div>'
    )


def _head(columns: Sequence[str]) -> str:
    """The column headings, in two rows where all of them read "do(…): …"."""
    parts = [column.partition(": ") for column in columns]
    groups = ""
    if all(separator for _, separator, _ in parts):
        for group, members in itertools.groupby(parts, key=lambda part: part[0]):
            groups += f'<th class="group" colspan="{len(list(members))}">{escape(group)}</th>'
        groups = f"<tr><th></th>{groups}</tr>"
        columns = [column for _, _, column in parts]
    return f"{groups}<tr><th></th>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr>"


def _cell(cell: Cell, digits: int) -> str:
    value, _, interval = cell.text(digits).partition(" ")
    small = f"<small>{escape(interval)}</small>" if interval else ""
    return f"<td{' class=best' if cell.best else ''}>{escape(value)}{small}</td>"


def _judge_table(evaluation: Mapping[str, Any]) -> str:
    return (
        '<h3>The judge on real test images</h3><p class="note">Dice overlap with the reference outlines, and the error '
        "of the area in %. The judge was trained on cases that no guide has seen.</p>"
        + table(["", "Dice", "area error, %"], judge_rows(evaluation))
    )


def _data(folder: Path) -> list[str]:
    captions = {
        "contact_sheet.png": "Some cases with the outlines of their label maps.",
        "variables.png": "Distributions of the variables.",
    }
    return [
        figure((folder / file).read_bytes(), caption) for file, caption in captions.items() if (folder / file).is_file()
    ]


def _run(run: Run, names: Sequence[str]) -> str:
    plots: dict[str, dict[str, Any]] = {}
    for metric, points in run.curves.items():
        # the curves of the variables of one quantity, and of training and validation, share a plot
        found = next((name for name in sorted(names, key=len, reverse=True) if name in metric), "")
        stem = metric.replace(found, "").strip("_/ ") if found else metric
        part = "training" if stem.startswith("train_") else "validation" if stem.startswith("val_") else ""
        stem = stem.removeprefix("train_").removeprefix("val_")
        line = " ".join(filter(None, (words(found), part)))
        plots.setdefault(words(stem), {})[line or words(stem)] = points
    parts = []
    if plots:
        guide = "/".join(Path(run.parameters.get("guide", "")).parts[-2:])
        guided = f", fine-tuned with the guide {guide}" if guide not in ("", "None") else ""
        parts.append(figure(to_png(curves(plots)), f"Training curves of {run.name}, by epoch{guided}."))
    parts.append(folded("Parameters", [listing(run.parameters)]))
    return f"<h3>{escape(run.name)}</h3>" + "\n".join(parts)


def _settings(evaluation: Mapping[str, Any]) -> str:
    data = evaluation["data"]
    listed = {
        "image size": " × ".join(map(str, data["image_size"])),
        "test cases": data["cases"],
        "interventions": ", ".join(map(words, data["interventions"])),
        "interventions per case and variable": data["interventions_per_case"],
        "seed": data["seed"],
        "features for realism": data["realism_features"],
    }
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONS}
    checkpoints = {"judge": data["judge"], **data["methods"]}
    return (
        listing(listed)
        + "<h3>Versions</h3>"
        + listing(versions)
        + "<h3>Checkpoints</h3>"
        + "".join(
            folded(
                f"{name}: {c['class']}, weights {c['fingerprint'][:12]}",
                [f"<pre>{escape(json.dumps(c, indent=1))}</pre>"],
            )
            for name, c in checkpoints.items()
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a report; errors in input, files or the store end with one line instead of a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run_command("python -m segcft_ext.report", report, given)
    except (ValueError, OSError, MlflowException) as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
