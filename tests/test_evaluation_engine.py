"""The whole evaluation on discs, where oracle and identity have known figures, and what it must refuse."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import NAMES, SIZE, DiscJudge, Follower, Oracle, disc_datalist, render
from ignite.engine import Events
from matplotlib.figure import Figure
from mlflow import MlflowClient
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged
from scipy.ndimage import binary_dilation

from segcft_ext.checkpoints import CheckpointError, save_model
from segcft_ext.datalist import Datalist
from segcft_ext.datalist_format import DatalistError
from segcft_ext.dscm import DSCM, Counterfactual
from segcft_ext.evaluation.draws import draw_targets, intervened_variables, reference_cases
from segcft_ext.evaluation.evaluator import JudgeEvaluator
from segcft_ext.evaluation.files import write_evaluation
from segcft_ext.evaluation.judged_batches import JudgedBatches
from segcft_ext.evaluation.methods import FLOOR, ZERO, load_methods
from segcft_ext.evaluation.summary import flat_metrics
from segcft_ext.evaluation.tables import evaluation_tables, summary_line
from segcft_ext.evaluation.writer import EvaluationWriter
from segcft_ext.handlers import MLflowRun
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.population import growth_maps
from segcft_ext.provenance import check_independent, fingerprint, upstream
from segcft_ext.ruler import Ruler

AREAS = NAMES[:2]


def loader(datalist: Datalist, split: str = "test", batch_size: int = 4) -> DataLoader:
    transform = Compose(
        [
            LoadImaged(["image", "label"], reader="PILReader", reverse_indexing=False, ensure_channel_first=True),
            ScaleIntensityRanged("image", 0, 65535, -1, 1, clip=True),
        ]
    )
    return DataLoader(Dataset(datalist.items(split), transform), batch_size=batch_size)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Datalist:
    return disc_datalist(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def judged(datalist: Datalist, tmp_path_factory: pytest.TempPathFactory) -> tuple[JudgeEvaluator, Path]:
    folder = tmp_path_factory.mktemp("evaluation")
    engine = JudgeEvaluator(
        device="cpu",
        val_data_loader=loader(datalist),
        network=DiscJudge(),
        datalist=datalist,
        methods={"oracle": Oracle(), "clumsy": Oracle(wrong=7)},
        interventions_per_case=3,
        reference_loader=loader(datalist, "training"),
        growth=growth_maps(
            datalist.measurements(), loader(datalist, "training").dataset, datalist.variable_names, datalist.num_classes
        ),
        val_handlers=[EvaluationWriter(folder, figure_cases=1)],
    )
    engine.run()
    return engine, folder


def test_oracle_hits_its_targets_and_nothing_else(judged: tuple[JudgeEvaluator, Path]) -> None:
    figures = judged[0].evaluation["methods"]["oracle"]
    for do, other in (AREAS, AREAS[::-1]):
        cell = figures["effectiveness"][do][do]
        assert cell["mape"] == pytest.approx(0, abs=1e-4)
        assert cell["ci95"] == pytest.approx([0, 0], abs=1e-4)
        assert cell["n"] == 6 * 3
        assert figures["effectiveness"][do][other]["drift"] == 0
        assert figures["slope"][do]["slope"] == pytest.approx(1, abs=1e-5)
        # up to the 16 bits of the stored images
        assert figures["leakage"][do] == pytest.approx(0, abs=1e-4)
        assert figures["reversibility"][do] == pytest.approx(0, abs=1e-4)
    assert figures["composition"] == pytest.approx({"1": 0, "10": 0}, abs=1e-4)
    assert figures["folding"] is None and figures["truth"] is None


def test_identity_is_the_zero(judged: tuple[JudgeEvaluator, Path], datalist: Datalist) -> None:
    evaluation = judged[0].evaluation
    figures = evaluation["identity"]
    factual = np.array([[entry["variables"][name] for name in AREAS] for entry in datalist.entries["test"]])
    for column, do in enumerate(AREAS):
        targets = draw_targets(datalist, do, 6, 3, seed=0)
        expected = 100 * np.mean(np.abs(factual[:, [column]] - targets) / targets)
        assert figures["effectiveness"][do][do]["mape"] == pytest.approx(expected, rel=1e-4)
        assert figures["effectiveness"][do][AREAS[1 - column]]["mape"] == pytest.approx(0, abs=1e-4)
        assert figures["slope"][do]["slope"] == pytest.approx(0, abs=1e-6)
        assert figures["leakage"][do] == 0
    assert figures["composition"] == figures["composition_sampled"] == {"1": 0, "10": 0}


def test_what_an_edit_drags_along_is_drift_and_leakage(judged: tuple[JudgeEvaluator, Path]) -> None:
    figures = judged[0].evaluation["methods"]["clumsy"]
    pairs = judged[0].pairs
    rows = pairs[(pairs["method"] == "clumsy") & (pairs["do"] == "left_area")]
    rows = rows[rows["asked.left_area"] != rows["factual.left_area"]]  # where no change is asked for, there is no drift
    expected = (100 * (100 * 7 / SIZE**2) / rows["factual.right_area"]).mean()
    assert figures["effectiveness"]["left_area"]["right_area"]["drift"] == pytest.approx(expected, rel=1e-4)
    assert figures["effectiveness"]["left_area"]["left_area"]["mape"] == pytest.approx(0, abs=1e-4)
    assert 0 < figures["leakage"]["left_area"] < 1


class Generous(DiscJudge):
    """Sees each disc one pixel wider than it is."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = super().forward(image)
        wider = torch.nn.functional.max_pool2d(
            (logits.argmax(1, keepdim=True) == torch.arange(3)[:, None, None]).float(), 3, 1, 1
        )
        return wider * torch.tensor([1.0, 2.0, 2.0])[:, None, None]


def test_a_judge_that_errs_is_compared_with_itself_where_changes_count(datalist: Datalist) -> None:
    engine = JudgeEvaluator(
        "cpu",
        loader(datalist),
        Generous(),
        datalist,
        {"oracle": Oracle()},
        interventions_per_case=2,
        growth=growth_maps(
            datalist.measurements(), loader(datalist, "training").dataset, datalist.variable_names, datalist.num_classes
        ),
    )
    engine.run()

    def seen(values: np.ndarray) -> np.ndarray:
        """Areas (N, 2) as the judge sees them of true pictures."""
        label = render(torch.tensor(values))[1][:, 0].numpy()
        square = np.ones((1, 3, 3))
        return np.stack([100 * binary_dilation(label == n, square).mean((1, 2)) for n in (1, 2)], 1)

    factual = np.repeat([[entry["variables"][name] for name in AREAS] for entry in datalist.entries["test"]], 2, 0)
    zero, oracle = engine.evaluation["identity"], engine.evaluation["methods"]["oracle"]
    for k, do in enumerate(AREAS):
        other = AREAS[1 - k]
        asked = factual.copy()
        asked[:, k] = draw_targets(datalist, do, 6, 2, seed=0).ravel()
        before, after = seen(factual), seen(asked)
        bias = np.abs(after - asked)
        assert bias.min() > 1
        cells = oracle["effectiveness"][do]
        assert cells[do]["mae"] == pytest.approx(bias[:, k].mean(), rel=1e-4)
        assert cells[do]["mape"] == pytest.approx(100 * (bias / asked)[:, k].mean(), rel=1e-4)
        assert cells[other]["mae"] == pytest.approx(bias[:, 1 - k].mean(), rel=1e-4)
        assert cells[other]["drift"] == zero["effectiveness"][do][other]["drift"] == 0
        line = np.polyfit(asked[:, k] - factual[:, k], after[:, k] - before[:, k], 1)
        assert [oracle["slope"][do][key] for key in ("slope", "intercept")] == pytest.approx(line, rel=1e-3, abs=1e-3)
        assert zero["slope"][do]["slope"] == pytest.approx(0, abs=1e-6)
        assert zero["place"][do] == pytest.approx(0.5) and oracle["place"][do] < 0.3
        assert oracle["leakage"][do] == pytest.approx(0, abs=1e-4)
        assert engine.evaluation["floor"][do]["mae"] == pytest.approx(np.abs(before - factual)[:, k].mean(), rel=1e-4)


def test_what_the_model_predicts_of_a_descendant_is_no_drift(datalist: Datalist) -> None:
    methods = {"follower": Follower(), "oracle": Oracle()}
    engine = JudgeEvaluator("cpu", loader(datalist), DiscJudge(), datalist, methods, ["left_area"], 2)
    engine.run()
    cells = engine.evaluation["methods"]["follower"]["effectiveness"]["left_area"]
    assert cells["right_area"]["mae"] == pytest.approx(0, abs=1e-4)
    assert cells["right_area"]["drift"] == pytest.approx(0, abs=1e-3)
    wanted = engine.pairs[engine.pairs["method"] == "follower"].eval("`asked.right_area` - `factual.right_area`")
    assert wanted.abs().mean() > 0.1


def test_doing_nothing_is_asked_for_the_descendants_that_the_model_predicts(datalist: Datalist) -> None:
    dscm = small_dscm(datalist, parents={"right_area": ["left_area"]})
    with torch.no_grad():
        for parameter in dscm.scm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    engine = JudgeEvaluator("cpu", loader(datalist), DiscJudge(), datalist, {"No-CFT": dscm}, ["left_area"], 2)
    engine.run()
    zero, model = (engine.pairs[engine.pairs["method"] == name].reset_index() for name in ("identity", "No-CFT"))
    assert (zero["asked.right_area"] - zero["factual.right_area"]).abs().mean() > 0.01
    assert zero["asked.right_area"].to_numpy() == pytest.approx(model["asked.right_area"].to_numpy())
    assert engine.evaluation["identity"]["effectiveness"]["left_area"]["right_area"]["drift"] > 0


class Noisy(Oracle):
    """Notes what it draws for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def counterfactual(self, *args: Any, **kwargs: Any) -> Counterfactual:
        self.drawn.append(float(torch.rand(1)))
        return super().counterfactual(*args, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_cases_of_two_batches_do_not_share_their_noise_and_all_methods_do(
    datalist: Datalist, batch_size: int
) -> None:
    methods = [Noisy(), Noisy()]
    for seed in (0, 0, 1):
        engine = JudgeEvaluator(
            "cpu",
            loader(datalist, batch_size=batch_size),
            DiscJudge(),
            datalist,
            dict(zip("ab", methods)),
            AREAS[:1],
            1,
            seed,
        )
        engine.run()
    assert methods[0].drawn == methods[1].drawn
    first, again, other = np.array(methods[0].drawn).reshape(3, 6 // batch_size, -1)
    assert (first == again).all() and not (first == other).any()
    assert all(len(np.unique(column)) == len(first) for column in first.T)


def test_the_judge_measures_in_the_regions_of_the_factual_label_maps(
    datalist: Datalist, monkeypatch: pytest.MonkeyPatch
) -> None:
    references: list[torch.Tensor | None] = []
    measure = Ruler.measure

    def noted(self: Ruler, label: Any, image: Any, spacing: Any = None, reference: Any = None) -> torch.Tensor:
        references.append(reference)
        return measure(self, label, image, spacing, reference)

    monkeypatch.setattr(Ruler, "measure", noted)
    JudgeEvaluator("cpu", loader(datalist, batch_size=6), DiscJudge(), datalist, {"oracle": Oracle()}, None, 2).run()
    (factual,) = (batch["label"].as_tensor() for batch in loader(datalist, batch_size=6))
    assert len(references) == 1 + 2 * 2
    for reference in references:
        assert reference is not None and torch.equal(reference, factual.repeat_interleave(len(reference) // 6, 0))


def test_change_maps_count_every_case_alike(judged: tuple[JudgeEvaluator, Path], datalist: Datalist) -> None:
    """However the six cases are divided into batches."""
    methods = {"oracle": Oracle(), "clumsy": Oracle(wrong=7)}
    whole = JudgeEvaluator("cpu", loader(datalist, batch_size=6), DiscJudge(), datalist, methods, None, 3)
    whole.run()
    expected, found = whole.change_maps(), judged[0].change_maps()
    assert list(expected) == list(found) == ["oracle", "clumsy"]
    for name, do in itertools.product(expected, AREAS):
        assert expected[name][do].max() > 0.01
        np.testing.assert_allclose(found[name][do], expected[name][do], atol=1e-6)


def test_the_place_of_growth_is_compared_with_the_population(
    judged: tuple[JudgeEvaluator, Path], datalist: Datalist
) -> None:
    evaluation, maps = judged[0].evaluation, judged[0].gain_maps()
    assert list(maps) == ["population", "oracle", "clumsy"] and evaluation["floor_place"] == {}
    for do in AREAS:
        assert evaluation["identity"]["place"][do] == pytest.approx(0.5)
        assert 0 <= evaluation["methods"]["oracle"]["place"][do] < 0.05
        assert np.abs(maps["population"][do]).max() == pytest.approx(1)
    without = JudgeEvaluator("cpu", loader(datalist), DiscJudge(), datalist, {"oracle": Oracle()}, None, 1)
    without.run()
    assert without.gain_maps() == {} and without.evaluation["methods"]["oracle"]["place"] == {}


def test_judge_and_its_floor(judged: tuple[JudgeEvaluator, Path]) -> None:
    evaluation = judged[0].evaluation
    assert evaluation["judge"] == {name: {"dice": 1, "area_mape": 0} for name in ("left", "right")}
    assert evaluation["floor"]["left_area"]["mape"] == pytest.approx(0, abs=1e-4)
    assert evaluation["realism_of_real_images"]["n"] == 20
    assert judged[0].state.metrics["oracle/slope/left_area"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_real_images_are_compared_in_features_that_were_not_trained_on_them(datalist: Datalist, seed: int) -> None:
    reference = [item["id"] for item in reference_cases(datalist, seed)]
    assert len(set(reference)) == len(reference) == len(datalist.entries["test"])
    assert set(reference) <= {item["id"] for item in datalist.items("training", "guide")}


def test_files_hold_every_figure(judged: tuple[JudgeEvaluator, Path]) -> None:
    engine, folder = judged
    content = json.loads((folder / "evaluation.json").read_text())
    assert set(content) >= {"methods", "identity", "judge", "data"}
    cell = content["methods"]["oracle"]["effectiveness"]["left_area"]["right_area"]
    assert set(cell) >= {"mape", "mae", "ci95", "n"}
    assert len(engine.pairs) == 3 * 2 * 6 * 3
    with (folder / "pairs.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(engine.pairs)
    markdown = (folder / "evaluation.md").read_text()
    assert "**0.0 [0.0, 0.0]**" not in markdown.split("### Effectiveness in")[0]  # oracle and clumsy are equal there
    assert "BasicUNet" in markdown and "layer network." in markdown
    shown = json.loads((folder / "figures" / "figures.json").read_text())
    assert {entry["kind"] for entry in shown} == {"scatter", "heatmap", "maps", "sweep", "comparison"}
    assert all((folder / "figures" / entry["file"]).stat().st_size > 2000 for entry in shown)


def test_any_other_name_of_a_method_can_be_recorded(judged: tuple[JudgeEvaluator, Path], tmp_path: Path) -> None:
    evaluation = judged[0].evaluation
    named = {**evaluation, "methods": dict.fromkeys(["a//b", "../x", "a|b"], evaluation["methods"]["oracle"])}
    metrics = flat_metrics(named)
    assert {"a__b/mape/left_area", ".._x/mape/left_area", "a|b/mape/left_area"} <= set(metrics)
    assert all(key == posixpath.normpath(key) for key in metrics)  # as MLflow demands
    write_evaluation(named, tmp_path)
    lines = (tmp_path / "evaluation.md").read_text().splitlines()
    assert sum(line.startswith(r"| a\|b |") for line in lines) == len(evaluation_tables(named))


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 test case, 1 intervention on"), (2, "2 test cases, 2 interventions")]
)
def test_one_case_is_one_case(judged: tuple[JudgeEvaluator, Path], count: int, said: str) -> None:
    data = {**judged[0].evaluation["data"], "cases": count, "interventions_per_case": count}
    assert summary_line({"data": data}).startswith(said)


def test_every_table_has_zero_floor_and_best(judged: tuple[JudgeEvaluator, Path]) -> None:
    tables = {table.key: table for table in evaluation_tables(judged[0].evaluation)}
    assert {"effectiveness", "slope", "drift", "leakage", "axioms", "realism"} <= set(tables)
    for table in tables.values():
        assert [name for name, _ in table.rows] == [ZERO, "oracle", "clumsy", FLOOR]
        assert all(len(cells) == len(table.columns) for _, cells in table.rows)
        assert not any(cell.best for cell in (*table.rows[0][1], *table.rows[-1][1]))
    drift = dict(tables["drift"].rows)
    assert all(cell.best for cell in drift["oracle"]) and not any(cell.best for cell in drift["clumsy"])


class Stopped(Exception):
    """What interrupts an evaluation."""


class Speckled(Oracle):
    """Makes the true counterfactual, with noise."""

    def counterfactual(self, *args: Any, **kwargs: Any) -> Counterfactual:
        result = super().counterfactual(*args, **kwargs)
        return replace(result, image=result.image + 0.01 * torch.rand_like(result.image))


def resumable(
    datalist: Datalist,
    judge: DiscJudge,
    folder: Path,
    resume: bool,
    seed: int = 0,
    stop_after: int | None = None,
    handlers: Sequence[Any] = (),
) -> JudgeEvaluator:
    """An evaluation in two batches, one method of which samples."""
    engine = JudgeEvaluator(
        device="cpu",
        val_data_loader=loader(datalist),
        network=judge,
        datalist=datalist,
        methods={"speckled": Speckled(), "clumsy": Oracle(wrong=7)},
        interventions_per_case=2,
        seed=seed,
        val_handlers=[EvaluationWriter(folder, figure_cases=0), *handlers],
        batches=JudgedBatches(folder / "judged", resume),
    )

    def stop() -> None:
        raise Stopped

    if stop_after:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=stop_after), stop)
    return engine


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_figures(
    datalist: Datalist, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, whole, halved = DiscJudge(), tmp_path / "whole", tmp_path / "halved"
    resumable(datalist, judge, whole, resume=False).run()
    assert not (whole / "judged").exists()
    with pytest.raises(Stopped):
        resumable(datalist, judge, halved, resume=False, stop_after=1).run()
    assert sorted(path.name for path in (halved / "judged").iterdir()) == ["00001.pt", "made_from.json"]
    with pytest.raises(CheckpointError, match=r"made_from.json: seed: .* with 0, asked for: 1"):
        resumable(datalist, judge, halved, resume=True, seed=1).run()
    batches: list[list[str]] = []
    judge_batch = JudgeEvaluator._judge_batch

    def counted(engine: JudgeEvaluator, batch: dict[str, Any]) -> Any:
        batches.append(list(batch["id"]))
        return judge_batch(engine, batch)

    monkeypatch.setattr(JudgeEvaluator, "_judge_batch", counted)
    second = [entry["id"] for entry in datalist.entries["test"]][4:]
    engine = resumable(datalist, judge, halved, resume=True, stop_after=2)
    with pytest.raises(Stopped):
        engine.run()
    assert batches == [second]
    (halved / "judged" / "00002.pt").write_bytes(b"cut")
    engine = resumable(datalist, judge, halved, resume=True)
    engine.run()
    assert batches == [second, second] and "the batch is judged again" in caplog.text
    assert not (halved / "judged").exists()
    for name in ("evaluation.json", "evaluation.csv", "evaluation.md", "pairs.csv"):
        assert (halved / name).read_bytes() == (whole / name).read_bytes(), name
    maps, expected = engine.change_maps(), resumable(datalist, judge, whole, resume=False)
    expected.run()
    for do, total in expected.change_maps()["speckled"].items():
        np.testing.assert_array_equal(maps["speckled"][do], total)


@pytest.mark.parametrize("left", [b"", b'{"seed": ', b"\xff"])
def test_an_evaluation_whose_record_is_damaged_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes
) -> None:
    JudgedBatches(tmp_path / "judged").start({"seed": 0})
    (tmp_path / "judged" / "made_from.json").write_bytes(left)
    (tmp_path / "judged" / "00001.pt").write_bytes(b"of other settings, for all that is known")
    JudgedBatches(tmp_path / "judged", resume=True).start({"seed": 0})
    assert "made_from.json: cannot be read" in caplog.text
    assert [path.name for path in (tmp_path / "judged").iterdir()] == ["made_from.json"]


def test_a_resumed_evaluation_goes_on_with_its_mlflow_run(datalist: Datalist, tmp_path: Path) -> None:
    store, judge = f"sqlite:///{tmp_path}/mlflow.db", DiscJudge()

    def evaluate(resume: bool, seed: int = 0, stop_after: int | None = None) -> list[tuple[str, str]]:
        """The name and status of every run, in order, after an evaluation that may end early."""
        name = f"{resume}-{seed}-{stop_after}"
        run = MLflowRun(store, "tests", name, id_file=tmp_path / "judged" / "run_id")
        with contextlib.suppress(Stopped, CheckpointError):
            resumable(datalist, judge, tmp_path, resume, seed, stop_after, [run]).run()
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name("tests")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
        if stop_after:
            client.update_run(runs[-1].info.run_id, "RUNNING")  # as one that was killed leaves it
        return [(run.info.run_name or "", run.info.status) for run in runs]

    assert evaluate(resume=False, stop_after=1) == [("False-0-1", "FAILED")]
    assert evaluate(resume=True, seed=1) == [("False-0-1", "RUNNING")]  # refused: it was begun with another seed
    assert evaluate(resume=True) == [("False-0-1", "FINISHED")]
    assert evaluate(resume=True)[1:] == [("True-0-None", "FINISHED")]  # nothing was left to resume
    assert evaluate(resume=False, stop_after=2)[2:] == [("False-0-2", "FAILED")]
    assert evaluate(resume=False)[3:] == [("False-0-None", "FINISHED")]


def test_missing_figures_are_null_in_json(judged: tuple[JudgeEvaluator, Path], tmp_path: Path) -> None:
    evaluation = json.loads(json.dumps(judged[0].evaluation))
    evaluation["methods"]["oracle"]["slope"]["left_area"]["slope"] = math.nan
    write_evaluation(evaluation, tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["methods"]["oracle"]["slope"]["left_area"]["slope"] is None
    assert {"–"} <= {
        cell.text(2)
        for table in evaluation_tables(content)
        if table.key == "slope"
        for _, c in table.rows
        for cell in c
    }


def test_a_file_of_an_evaluation_is_the_old_one_until_the_new_one_is_whole(
    judged: tuple[JudgeEvaluator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["evaluation.json", "evaluation.csv", "evaluation.md", "pairs.csv", "figures/figures.json"]
    (tmp_path / "figures").mkdir()
    for name in names:
        (tmp_path / name).write_text("[]")
    monkeypatch.setattr("segcft_ext.folders.os.replace", lambda scratch, path: None)
    EvaluationWriter(tmp_path, figure_cases=0)(judged[0])
    assert {(tmp_path / name).read_text() for name in names} == {"[]"}


@pytest.mark.parametrize("content", ['[{"file": "a.p', '[{"kind": "maps"}]'])
def test_a_damaged_list_of_figures_is_written_anew(
    judged: tuple[JudgeEvaluator, Path], tmp_path: Path, content: str
) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "figures.json").write_text(content)
    EvaluationWriter(tmp_path, figure_cases=0)(judged[0])
    shown = [entry["file"] for entry in json.loads((figures / "figures.json").read_text())]
    assert shown and sorted(path.name for path in figures.glob("*.png")) == sorted(shown)


def test_figures_of_a_variable_with_a_slash_in_its_name_lie_beside_the_others(
    judged: tuple[JudgeEvaluator, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(writer: EvaluationWriter, engine: JudgeEvaluator) -> None:
        writer._save(Figure(figsize=(1, 1)), "sweep-left/right_area-1", "sweep", "")

    monkeypatch.setattr(EvaluationWriter, "_errors", draw)
    EvaluationWriter(tmp_path, figure_cases=0)(judged[0])
    entry, *_ = json.loads((tmp_path / "figures" / "figures.json").read_text())
    assert (tmp_path / "figures" / entry["file"]).is_file()


def test_targets_come_from_the_training_marginal_and_are_seeded(datalist: Datalist) -> None:
    training = sorted(entry["variables"]["left_area"] for entry in datalist.entries["training"])
    targets = draw_targets(datalist, "left_area", 10, 4, seed=1)
    assert sorted(targets.ravel()) == pytest.approx(sorted(2 * training))  # 40 draws deal out the 20 values twice
    assert np.array_equal(targets, draw_targets(datalist, "left_area", 10, 4, seed=1))
    assert not np.array_equal(targets, draw_targets(datalist, "left_area", 10, 4, seed=2))
    assert intervened_variables(datalist) == AREAS
    for given in (AREAS[0], (AREAS[0],), ", ".join(AREAS), AREAS):
        assert intervened_variables(datalist, given) == (AREAS if AREAS[1] in given else AREAS[:1])
    with pytest.raises(DatalistError, match="age"):
        intervened_variables(datalist, ["age"])


def test_without_methods_the_judge_is_looked_at_alone(datalist: Datalist, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "figures.json").write_text('[{"file": "sweep-of-another-evaluation.png"}]')
    (figures / "sweep-of-another-evaluation.png").touch()
    engine = JudgeEvaluator(
        "cpu", loader(datalist), DiscJudge(), datalist, {}, ["left_area"], 1, val_handlers=[EvaluationWriter(tmp_path)]
    )
    engine.run()
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["methods"] == {} and content["judge"]["left"]["dice"] == 1
    assert list(content["identity"]["effectiveness"]) == ["left_area"]
    shown = [entry["file"] for entry in json.loads((figures / "figures.json").read_text())]
    assert shown and sorted(path.name for path in figures.glob("*.png")) == sorted(shown)


def test_numbers_that_make_no_evaluation_are_refused_before_anything_is_judged(datalist: Datalist) -> None:
    with pytest.raises(ValueError, match="interventions_per_case: found 0"):
        JudgeEvaluator("cpu", loader(datalist), DiscJudge(), datalist, {}, interventions_per_case=0)
    with pytest.raises(ValueError, match="figure_cases: found -1"):
        EvaluationWriter("anywhere", figure_cases=-1)


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_judged(
    datalist: Datalist, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    writer = EvaluationWriter(tmp_path / "file")
    engine = JudgeEvaluator("cpu", loader(datalist), DiscJudge(), datalist, {}, ["left_area"], 1, val_handlers=[writer])
    with pytest.raises(OSError, match="file: cannot be written to"):
        engine.run()
    assert engine.state.iteration == 0


def segmentor(datalist: Datalist, architecture: str, use: str | None, seed: int, **arguments: Any) -> Segmentor:
    torch.manual_seed(seed)
    network = Segmentor(datalist.labels, architecture, **arguments)
    network.describe(datalist, use)
    return network


def test_a_judge_that_resembles_the_guide_is_refused(datalist: Datalist) -> None:
    unet = {"channels": (4, 8), "strides": (2,)}
    guide = segmentor(datalist, "UNet", "guide", 0, **unet)
    dscm = small_dscm(datalist)
    dscm.data["guide"] = upstream(guide)
    methods = {"Seg-CFT": dscm}
    independent = segmentor(datalist, "BasicUNet", "judge", 1, features=(4, 4, 4, 4, 4, 4))
    check_independent(independent, methods)
    refused = {
        "weights": guide,
        "data.use": segmentor(datalist, "BasicUNet", "guide", 1, features=(4, 4, 4, 4, 4, 4)),
        "definition.architecture": segmentor(datalist, "UNet", "judge", 1, **unet),
    }
    for key, judge in refused.items():
        with pytest.raises(CheckpointError, match=f"{key}.*Seg-CFT"):
            check_independent(judge, methods)
    anything = segmentor(datalist, "BasicUNet", None, 1, features=(4, 4, 4, 4, 4, 4))
    with pytest.raises(
        CheckpointError, match=r"data.use: the judge holds None, the guide of method 'Seg-CFT' .* 'guide'"
    ):
        check_independent(anything, methods)
    dscm.data["guide"]["data"]["use"] = None
    with pytest.raises(CheckpointError, match=r"data.use: the judge holds 'judge', the guide .* None"):
        check_independent(independent, methods)
    dscm.data["guide"] = None
    check_independent(guide, methods)  # without a guide nothing can be gamed


def divided_again(datalist: Datalist, **entries: list[Any]) -> Datalist:
    return replace(datalist, entries={**datalist.entries, **entries})


def test_a_case_that_both_judge_and_guide_were_trained_on_is_seen_whatever_it_was_used_for(datalist: Datalist) -> None:
    swapped = {"guide": "judge", "judge": "guide"}
    training = list(datalist.entries["training"])
    training[1:4] = [{**entry, "use": swapped[entry["use"]]} for entry in training[1:4]]
    dscm = small_dscm(datalist)
    dscm.data["guide"] = upstream(segmentor(datalist, "UNet", "guide", 0, channels=(4, 8), strides=(2,)))
    arguments = {"features": (4, 4, 4, 4, 4, 4)}
    judge = segmentor(divided_again(datalist, training=training), "BasicUNet", "judge", 1, **arguments)
    judge.origin, dscm.origin = "judge.pt", "dscm.pt"
    with pytest.raises(CheckpointError, match=r"judge\.pt: data\.cases: .* on 1 cases .*'Seg-CFT' \(dscm\.pt\)"):
        check_independent(judge, {"Seg-CFT": dscm})


@pytest.mark.parametrize("who", ["model", "its guide", "judge"])
def test_what_was_trained_on_test_cases_is_refused(datalist: Datalist, tmp_path: Path, who: str) -> None:
    use = "judge" if who == "judge" else "guide"
    added = [{**entry, "use": use} for entry in datalist.entries["test"][:2]]
    other = divided_again(datalist, training=[*datalist.entries["training"], *added])
    dscm = small_dscm(other if who == "model" else datalist)
    guide = segmentor(other if who == "its guide" else datalist, "UNet", "guide", 0, channels=(4, 8), strides=(2,))
    dscm.data["guide"] = upstream(guide)
    judge = DiscJudge()
    judge.describe(other if who == "judge" else datalist, "judge")
    judge.origin = "model.pt"
    save_model(dscm, tmp_path / "model.pt")

    key = r"data\.guide\.data\.cases" if who == "its guide" else r"data\.cases"
    message = rf"model\.pt: {key}: found 2 of the 6 test cases of .*, such as 'case02\d'"
    with contextlib.nullcontext() if who == "judge" else pytest.raises(CheckpointError, match=message):
        load_methods({"Seg-CFT": str(tmp_path / "model.pt")}, datalist, AREAS)
    with pytest.raises(CheckpointError, match=message) if who == "judge" else contextlib.nullcontext():
        JudgeEvaluator("cpu", loader(datalist), judge, datalist, {})


def small_dscm(datalist: Datalist, names: list[str] = NAMES, parents: Any = None) -> DSCM:
    torch.manual_seed(0)
    variables = [{"name": name, "kind": "continuous"} for name in names]
    dscm = DSCM(variables, parents, hvae=SMALL_HVAE, deformation=SMALL_HEAD)
    values = torch.tensor(np.stack([item["variables"] for item in datalist.items("training", variables=names)]))
    dscm.variables.fit(values, [datalist.variable(name).unit for name in names])
    dscm.describe(datalist)
    return dscm.eval()


SMALL_HVAE: dict[str, Any] = {"channels": (8, 8), "strides": (2,), "blocks": (0, 1), "latent_channels": 2}
SMALL_HEAD: dict[str, Any] = {"channels": (4, 8, 8), "hidden_channels": 4}


def test_checkpoints_are_judged_and_wrong_ones_refused(datalist: Datalist, tmp_path: Path) -> None:
    save_model(small_dscm(datalist), tmp_path / "dscm.pt")
    save_model(small_dscm(datalist, NAMES[1:]), tmp_path / "half.pt")
    methods = load_methods(json.dumps({"No-CFT": str(tmp_path / "dscm.pt")}), datalist, AREAS)
    engine = JudgeEvaluator(
        "cpu", loader(datalist, batch_size=6), DiscJudge(), datalist, methods, interventions_per_case=1
    )
    engine.run()
    figures = engine.evaluation["methods"]["No-CFT"]
    # the deformation head starts at zero: nothing folds, nothing moves
    assert figures["folding"]["left_area"] == pytest.approx({"share": 0, "minimum": 1}, abs=1e-3)
    assert figures["composition"] == figures["composition_sampled"] == {"1": 0, "10": 0}
    assert engine.evaluation["data"]["methods"]["No-CFT"]["fingerprint"] == fingerprint(methods["No-CFT"])
    with pytest.raises(CheckpointError, match="left_area"):
        load_methods({"half": str(tmp_path / "half.pt")}, datalist, AREAS)
    for name in (
        "identity",
        ZERO,
        FLOOR,
        "judge",
        "real",
        "truth",
        "",
        "..",
        1,
    ):  # all of these have a meaning, or none
        with pytest.raises(ValueError, match="methods: found the name"):
            load_methods({name: "x"}, datalist, AREAS)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="JSON"):
        load_methods("{No-CFT: a}", datalist, AREAS)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_methods({"a": str(tmp_path / "absent.pt")}, datalist, AREAS)
