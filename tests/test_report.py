"""The report is one file that asks nobody for anything and shows every method, the zero and the floor."""

from __future__ import annotations

import copy
import json
import re
import shutil
from functools import partialmethod
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from segcft_ext.evaluation.files import write_evaluation
from segcft_ext.evaluation.tables import evaluation_tables
from segcft_ext.figures import curves, save_figure
from segcft_ext.report import main, report
from segcft_ext.runs import finished_runs
from segcft_ext.tracking import without_password


def figures_of_merit(mape: float) -> dict[str, Any]:
    error = {"mape": mape, "ci95": [mape - 1, mape + 1], "mae": 0.1, "mae_ci95": [0.1, 0.1], "n": 8}
    return {
        "effectiveness": {
            do: {j: {**error, "drift": 1.0, "drift_ci95": [0, 2]} if j != do else error for j in AREAS} for do in AREAS
        },
        "slope": {do: {"slope": 0.9, "ci95": [0.8, 1.0], "intercept": 0.0, "n": 8} for do in AREAS},
        "leakage": {do: 0.1 for do in AREAS},
        "locality": {
            do: {"leakage": 0.1, "ci95": [0, 1], "outside": 0.1, "inside": 1.0, "n": 8, "n_inside": 8} for do in AREAS
        },
        "presence": {},
        "positional": {},
        "place": {do: 0.2 for do in AREAS},
        "composition": {"1": 0.0, "10": 0.0},
        "composition_sampled": {"1": 0.0, "10": 0.0},
        "reversibility": {do: 0.01 for do in AREAS},
        "folding": {do: {"share": 0.0, "minimum": 0.4} for do in AREAS},
        "realism": {"fid": 1.0, "kid": 0.1, "kid_sd": 0.1, "n": 8},
        "truth": None,
    }


AREAS = ["left_lung_area", "heart_area"]
CHECKPOINT = {"class": "DSCM", "definition": {"architecture": "UNet"}, "data": {}, "fingerprint": "0123456789abcdef"}
EVALUATION = {
    "methods": {"No-CFT": figures_of_merit(30.0), "Seg-CFT <& co>": figures_of_merit(4.0)},
    "identity": figures_of_merit(31.0),
    "judge": {"left_lung": {"dice": 0.97, "area_mape": 2.0}, "heart": {"dice": 0.94, "area_mape": 6.0}},
    "floor": {j: {"mape": 3.0, "ci95": [2, 4], "mae": 0.2, "mae_ci95": [0, 1], "n": 4} for j in AREAS},
    "floor_drift": None,
    "floor_place": {},
    "floor_presence": {},
    "realism_of_real_images": None,
    "data": {
        "name": "phantoms",
        "image_size": [64, 64],
        "cases": 4,
        "figure": "mape",
        "interventions": AREAS,
        "interventions_per_case": 2,
        "seed": 0,
        "units": {j: "percent" for j in AREAS},
        "realism_features": "judge (UNet), layer x",
        "judge": CHECKPOINT,
        "methods": {"No-CFT": CHECKPOINT, "Seg-CFT <& co>": CHECKPOINT},
    },
}


@pytest.fixture
def evaluation_dir(tmp_path: Path) -> Path:
    write_evaluation(EVALUATION, tmp_path / "evaluation")
    shown = []
    for kind in ("comparison", "sweep", "scatter", "heatmap"):
        save_figure(curves({kind: {"a": ([1, 2], [1, 2])}}), tmp_path / "evaluation" / "figures" / f"{kind}.png")
        shown.append({"file": f"{kind}.png", "kind": kind, "caption": f"a {kind}"})
    (tmp_path / "evaluation" / "figures" / "figures.json").write_text(json.dumps(shown))
    return tmp_path / "evaluation"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    tmp_path = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("segcft", artifact_location=str(tmp_path / "mlruns"))
    for name, status in (("pretraining", "FINISHED"), ("broken", "FAILED"), ("finetuning", "FINISHED")):
        run = client.create_run(experiment, run_name=name)
        client.log_param(run.info.run_id, "learning_rate", 0.001)
        for step in (1, 2, 3):
            for metric in ("train_loss", "val_loss", "val_mape_heart_area", "val_mape_left_lung_area"):
                client.log_metric(run.info.run_id, metric, 1 / step, step=step)
        client.log_metric(run.info.run_id, "once", 1.0)
        client.set_terminated(run.info.run_id, status)
    return uri


class Links(HTMLParser):
    """Every address in a document, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(evaluation_dir: Path, folder: Path, tracking_uri: str = "") -> str:
    report(evaluation_dir=evaluation_dir, output=folder / "report.html", tracking_uri=tracking_uri)
    return (folder / "report.html").read_text()


def test_report_is_self_contained(evaluation_dir: Path, store: str, tmp_path: Path) -> None:
    text = shown(evaluation_dir, tmp_path, store)
    parser = Links()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in parser.addresses)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    ids = re.findall(r'id="([^"]+)"', text)
    assert all(address[1:] in ids for address in parser.addresses if address.startswith("#"))
    # four figures of the evaluation and the curves of two finished runs
    assert sum(address.startswith("data:") for address in parser.addresses) == 4 + 2
    assert str(tmp_path) not in text


def test_report_shows_zero_floor_best_and_versions(evaluation_dir: Path, tmp_path: Path) -> None:
    text = shown(evaluation_dir, tmp_path)
    table = text.split('id="table-effectiveness"')[1].split("<tbody>")[1].split("</tbody>")[0]
    assert table.index("the zero") < table.index("No-CFT") < table.index("the floor")
    assert re.search(r"Seg-CFT &lt;&amp; co&gt;</th><td class=best>4.0", table)
    assert "<dt>torch</dt>" in text and "0123456789ab" in text
    assert 'id="training"' not in text  # without a store there are no curves


def test_square_and_cubic_millimetres_are_written_so() -> None:
    evaluation = copy.deepcopy(EVALUATION)
    evaluation["data"]["units"] = dict(zip(AREAS, ("mm2", "mm3")))
    columns = [column for table in evaluation_tables(evaluation) for column in table.columns]
    assert any("[mm²]" in column for column in columns) and any("[mm³]" in column for column in columns)
    assert not any("mm2" in column or "mm3" in column for column in columns)


def test_a_single_variable_has_no_drift() -> None:
    def only(first: Any) -> Any:
        if isinstance(first, dict):
            return {key: only(value) for key, value in first.items() if key != AREAS[1]}
        return [only(value) for value in first if value != AREAS[1]] if isinstance(first, list) else first

    tables = {table.key: table for table in evaluation_tables(only(EVALUATION))}
    assert "drift" not in tables and len(tables["all_effectiveness"].columns) == 1
    assert all(table.columns for table in tables.values())


def test_the_lowest_kid_is_the_best_also_below_zero() -> None:
    evaluation = copy.deepcopy(EVALUATION)
    for name, kid in zip(evaluation["methods"], (-0.06, 0.02)):
        evaluation["methods"][name]["realism"]["kid"] = kid
    table = next(table for table in evaluation_tables(evaluation) if table.key == "realism")
    assert [cells[table.columns.index("KID")].best for _, cells in table.rows] == [False, True, False, False]


def test_runs_are_read_back(store: str) -> None:
    runs = finished_runs(store, "segcft")
    assert [run.name for run in runs] == ["pretraining", "finetuning"]
    assert runs[0].parameters == {"learning_rate": "0.001"}
    assert runs[0].curves["train_loss"] == ([1, 2, 3], pytest.approx([1, 1 / 2, 1 / 3]))
    assert "once" not in runs[0].curves
    assert [run.name for run in finished_runs(store, "segcft", ["finetuning"])] == ["finetuning"]
    with pytest.raises(ValueError, match="broken"):
        finished_runs(store, "segcft", ["broken"])
    with pytest.raises(ValueError, match="nothing"):
        finished_runs(store, "nothing")


def test_figures_are_named_and_can_be_scrolled_and_terms_are_explained(
    evaluation_dir: Path, store: str, tmp_path: Path
) -> None:
    text = shown(evaluation_dir, tmp_path, store)
    figures = re.findall(
        r'<figure><div class="scroll"><img alt="([^"]+)" width="(\d+)" style="min-width: (\d+)px"', text
    )
    assert len(figures) == text.count("<img") == 4 + 2
    assert all(int(least) == min(int(width), 800) for _, width, least in figures)
    assert "<figcaption>Training curves of finetuning, by epoch.</figcaption>" in text
    assert "<b>do(left lung area)</b> heads what follows" in text
    assert "Variables are given in percent of the image." in text


def write_runs(folder: Path, runs: list[tuple[str, dict[str, str]]]) -> str:
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("segcft", artifact_location=str(folder / "mlruns"))
    for name, parameters in runs:
        run = client.create_run(experiment, run_name=name).info.run_id
        for key, value in parameters.items():
            client.log_param(run, key, value)
        client.set_terminated(run, "FINISHED")
    return uri


def test_fine_tunings_with_different_guides_are_all_shown(tmp_path: Path) -> None:
    first, again, other = (f"finetuning-20260102-03040{i}-a1b2c3" for i in range(3))
    guides = {first: "segmentor/model.pt", again: "segmentor/model.pt", other: "regressor/model.pt"}
    uri = write_runs(tmp_path, [(name, {"guide": guide, "dscm": "dscm/model.pt"}) for name, guide in guides.items()])
    assert [run.name for run in finished_runs(uri, "segcft")] == [again, other]


def test_runs_of_another_datalist_are_left_out(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "datalist.json").touch()
    datalists = {"judge": "mine", "dscm": "other", "guide": "moved since"}
    runs = [(name, {"datalist": str(tmp_path / folder / "datalist.json")}) for name, folder in datalists.items()]
    uri = write_runs(tmp_path, [*runs, ("unknown", {})])
    assert [run.name for run in finished_runs(uri, "segcft", data_dir=tmp_path / "mine")] == [
        "judge",
        "guide",
        "unknown",
    ]
    assert [run.name for run in finished_runs(uri, "segcft", ["dscm"], tmp_path / "mine")] == ["dscm"]
    assert len(finished_runs(uri, "segcft")) == 4


def test_runs_that_wrote_elsewhere_are_left_out(tmp_path: Path) -> None:
    folders = {"judge": tmp_path / "mine" / "judge", "guide": tmp_path / "mine, too" / "guide"}
    runs = [(name, {"output_dir": str(folder)}) for name, folder in folders.items()]
    uri = write_runs(tmp_path, [*runs, ("unknown", {})])
    assert [run.name for run in finished_runs(uri, "segcft", runs_dir=tmp_path / "mine")] == ["judge"]
    assert len(finished_runs(uri, "segcft")) == 3


def test_a_store_gives_its_runs_by_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"run{number}" for number in range(5)]
    uri = write_runs(tmp_path, [(name, {}) for name in names])
    search = MlflowClient.search_runs
    monkeypatch.setattr(MlflowClient, "search_runs", partialmethod(search, max_results=2))
    assert [run.name for run in finished_runs(uri, "segcft")] == names


def test_a_password_is_not_shown() -> None:
    assert without_password("postgresql://me:secret@host:5432/db") == "postgresql://host:5432/db"
    for uri in ("https://host/a@b", "sqlite:////a/mlflow.db", "databricks"):
        assert without_password(uri) == uri


def test_of_a_stage_that_ran_again_the_newest_run_counts(tmp_path: Path) -> None:
    uri = write_runs(tmp_path, [(name, {}) for name in ("judge", "guide", "judge-20260102-030405-a1b2c3")])
    found = finished_runs(uri, "segcft")
    assert [run.name for run in found] == ["guide", "judge-20260102-030405-a1b2c3"]


def test_command_line(evaluation_dir: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.html"
    given = ["--evaluation_dir", str(evaluation_dir), "--output", str(output), "--tracking_uri", store]
    main([*given, "--runs", "finetuning", "--title", "Of mine"])
    assert "<h3>finetuning</h3>" in output.read_text() and "<h3>pretraining</h3>" not in output.read_text()
    assert capsys.readouterr().out == f"report: {output}\n"


@pytest.mark.parametrize(
    ("variable", "file", "given", "shown"),
    [
        ("", "", [], False),
        ("", "mlflow.db", [], True),
        ("", "mlflow.db", ["--tracking_uri", ""], False),
        ("sqlite:///runs.db", "runs.db", [], True),
    ],
)
def test_the_store_is_that_of_the_trainings_by_default(
    evaluation_dir: Path,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    file: str,
    given: list[str],
    shown: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    if file:
        shutil.copy(store.removeprefix("sqlite:///"), tmp_path / file)
    main(["--evaluation_dir", str(evaluation_dir), "--output", "report.html", *given])
    assert ("<h3>finetuning</h3>" in Path("report.html").read_text()) is shown
    assert [path.name for path in tmp_path.glob("*.db")] == ([file] if file else [])


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_store_that_is_not_there_is_refused_and_not_created(
    evaluation_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri if by == "variable" else "")
    given = ["--tracking_uri", uri] if by == "option" else []
    with pytest.raises(SystemExit, match=f"report: {uri}: no such file"):
        main(["--evaluation_dir", str(evaluation_dir), "--output", str(tmp_path / "report.html"), *given])
    assert not list(tmp_path.glob("*.db"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"methods": ', "cannot be read as JSON: Expecting value"),
        ('{"methods": {}}', r"KeyError\('identity'\), expected what segmentor_evaluation of this version writes"),
        ("[]", r"TypeError\(.*, expected what segmentor_evaluation"),
    ],
)
def test_a_damaged_evaluation_is_named(evaluation_dir: Path, content: str, message: str) -> None:
    (evaluation_dir / "evaluation.json").write_text(content)
    with pytest.raises(SystemExit, match=rf"report: \S+evaluation\.json: {message}"):
        main(["--evaluation_dir", str(evaluation_dir), "--output", str(evaluation_dir / "report.html")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--evaluation_dir", "nowhere", "--output", "r.html"], "report: nowhere: no evaluation.json in it"),
        (["--data_dir", "nowhere"], "report: nowhere: no such folder"),
        (["--tracking_url", "sqlite:///mlflow.db"], "report: no option --tracking_url; see python"),
    ],
)
def test_command_line_mistakes_are_one_line(
    evaluation_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rest = [] if "--output" in given else ["--evaluation_dir", str(evaluation_dir), "--output", "r.html"]
    with pytest.raises(SystemExit, match=message):
        main([*given, *rest])
    assert not (tmp_path / "r.html").exists()
