"""The evaluation of variables of regions, many of which are zero: plaques painted in the two halves of a strip."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged
from PIL import Image
from torch import Tensor

from data_prep.regions import derive_regions, region_definition
from segcft_ext.datalist import Datalist, write_datalist
from segcft_ext.dscm import Counterfactual
from segcft_ext.evaluation.evaluator import JudgeEvaluator
from segcft_ext.evaluation.methods import FLOOR, ZERO
from segcft_ext.evaluation.summary import _each, _folding, _positional, _truth
from segcft_ext.evaluation.tables import evaluation_tables
from segcft_ext.evaluation.tally import Tally
from segcft_ext.evaluation.writer import EvaluationWriter
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.report import report
from segcft_ext.seeding import mixed, same_draws

LABELS = {"background": 0, "plaque": 1}
SIZE = (64, 16)
PIXEL = 0.25  # mm²
HALVES = ["plaque_area_proximal", "plaque_area_distal"]


def paint(values: Tensor) -> tuple[Tensor, Tensor]:
    """Images and label maps (B, 1, 64, 16) of plaques (B, 2) in mm², painted row by row from row 8 of each half."""
    label = torch.zeros(len(values), 1, *SIZE, dtype=torch.long)
    for case, areas in enumerate(values):
        for half, area in enumerate(areas):
            block = label[case, 0, 32 * half + 8 : 32 * half + 24, 4:12]
            block[(torch.arange(128) < round(float(area) / PIXEL)).view(16, 8)] = 1
    return label * 1.5 - 0.75, label


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Datalist:
    folder = tmp_path_factory.mktemp("strips")
    rng = np.random.default_rng(0)
    splits: dict[str, list] = {"training": [], "validation": [], "test": []}
    for index in range(28):
        areas = torch.tensor(rng.integers(4, 100, 2) * PIXEL * (rng.random(2) < 0.6))
        image, label = paint(areas[None])
        Image.fromarray(((image[0, 0].numpy() + 1) / 2 * 65535).round().astype(np.uint16)).save(folder / f"{index}.png")
        Image.fromarray(label[0, 0].numpy().astype(np.uint8)).save(folder / f"{index}_label.png")
        split = "training" if index < 20 else "test"
        entry = {"id": f"{index}", "source": "strips", "image": f"{index}.png", "label": f"{index}_label.png"}
        entry |= {"spacing": [0.5, 0.5], "variables": {"plaque_area": float(areas.sum())}}
        splits[split].append({**entry, "use": "guide"} if split == "training" else entry)
    measurement = {"_target_": "segcft_ext.measurements.Area", "label": 1, "unit": "mm2"}
    content = {
        "format_version": 1,
        "image": {"size": list(SIZE), "intensity_range": [0, 65535]},
        "labels": LABELS,
        "variables": [{"name": "plaque_area", "kind": "continuous", "unit": "mm2", "measurement": measurement}],
        **splits,
    }
    whole = write_datalist(folder / "datalist.json", content)
    return derive_regions(whole.path, folder / "halves" / "datalist.json", region_definition(boundaries=[0, 0.5, 1]))


class PlaqueJudge(Segmentor):
    """A judge that is always right."""

    def __init__(self) -> None:
        super().__init__(LABELS, "BasicUNet", features=(4, 4, 4, 4, 4, 4))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * 0 + torch.cat([-image, image], 1)


class Painter:
    """Paints what is asked for; ``spill`` of the change, as a share, goes into the other half as well."""

    class variables:
        names = HALVES

    def __init__(self, spill: float = 0.0) -> None:
        self.spill = spill

    def counterfactual(
        self, image: Tensor, values: Tensor, do: Mapping[str, Tensor], temperature: float = 0.0
    ) -> Counterfactual:
        after = values.clone()
        for name, target in do.items():
            after[:, HALVES.index(name)] = target
        change = (after - values).flip(1) if len(do) == 1 else torch.zeros_like(values)
        return Counterfactual(paint((after + self.spill * change).clamp(min=0))[0], after)


@pytest.fixture(scope="module")
def judged(datalist: Datalist, tmp_path_factory: pytest.TempPathFactory) -> tuple[JudgeEvaluator, Path]:
    transform = Compose(
        [
            LoadImaged(["image", "label"], reader=datalist.reader(), ensure_channel_first=True),
            ScaleIntensityRanged("image", 0, 65535, -1, 1, clip=True),
        ]
    )
    folder = tmp_path_factory.mktemp("evaluation")
    engine = JudgeEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(datalist.items("test"), transform), batch_size=8),
        network=PlaqueJudge(),
        datalist=datalist,
        methods={"exact": Painter(), "spilling": Painter(spill=0.5)},
        interventions_per_case=5,
        val_handlers=[EvaluationWriter(folder, figure_cases=1)],
    )
    entries = {entry["id"]: entry["variables"] for entry in datalist.entries["test"]}

    def truth(ids: list[str], do: Mapping[str, list[float]]) -> tuple[Tensor, Tensor]:
        return paint(
            torch.tensor(
                [
                    [({**entries[key], **{n: v[i] for n, v in do.items()}})[h] for h in HALVES]
                    for i, key in enumerate(ids)
                ]
            )
        )

    engine.truth = truth  # type: ignore[assignment]
    engine.run()
    return engine, folder


def test_the_figure_is_in_millimetres_where_values_may_be_zero(judged: tuple[JudgeEvaluator, Path]) -> None:
    evaluation = judged[0].evaluation
    assert evaluation["data"]["figure"] == "mae" and evaluation["data"]["may_be_zero"] == HALVES
    assert evaluation["data"]["regions"] == {n: ["plaque", n.rpartition("_")[2]] for n in HALVES}
    for do in HALVES:
        assert evaluation["methods"]["exact"]["effectiveness"][do][do]["mae"] == pytest.approx(0, abs=1e-4)
        assert evaluation["identity"]["effectiveness"][do][do]["mae"] > 1
        assert evaluation["methods"]["spilling"]["effectiveness"][do][HALVES[do == HALVES[0]]]["drift_mae"] > 1
    tables = {table.key: table for table in evaluation_tables(evaluation)}
    assert (
        "[mm²]" in tables["effectiveness"].columns[0]
        and "positive targets only" in tables["effectiveness_percent"].title
    )


def test_appearing_and_vanishing_are_told_apart(judged: tuple[JudgeEvaluator, Path]) -> None:
    engine = judged[0]
    for do in HALVES:
        exact, nothing = (engine.evaluation[k] for k in ("methods", "identity"))
        exact = exact["exact"]["presence"][do]
        rows = engine.pairs[(engine.pairs["method"] == "exact") & (engine.pairs["do"] == do)]
        appears = rows[(rows[f"factual.{do}"] == 0) & (rows[f"asked.{do}"] > 0)]
        assert exact["absent_present"]["n"] == len(appears) > 0
        assert [exact[g]["seen"] for g in ("absent_absent", "absent_present", "present_absent")] == [0, 1, 0]
        assert nothing["presence"][do]["absent_present"]["mae"] == pytest.approx(appears[f"asked.{do}"].mean())
        assert nothing["presence"][do]["absent_present"]["seen"] == 0
        assert nothing["presence"][do]["present_absent"]["seen"] == 1
        floor = engine.evaluation["floor_presence"][do]
        assert floor["absent"]["seen"] == 0 and floor["present"]["seen"] == 1
        assert floor["present"]["mae"] == pytest.approx(0, abs=1e-4)


def test_leakage_into_the_other_half_is_positional_and_outside(judged: tuple[JudgeEvaluator, Path]) -> None:
    methods = judged[0].evaluation["methods"]
    for do in HALVES:
        assert methods["exact"]["positional"][do]["leakage"] == pytest.approx(0, abs=1e-6)
        assert 0.2 < methods["spilling"]["positional"][do]["leakage"] <= 0.5
        assert math.isnan(judged[0].evaluation["identity"]["positional"][do]["leakage"])
        # the same structure in the other half is outside of where this variable may change anything
        assert methods["spilling"]["leakage"][do] > 100 * methods["exact"]["leakage"][do]
    maps = judged[0].change_maps()
    half = maps["exact"][HALVES[0]]
    assert half.shape == SIZE and half[:32].mean() > 0.01 and half[32:].max() < 1e-4


def test_what_the_model_predicts_of_another_region_does_not_leak() -> None:
    """Of a change of 4 the other half has the 1 that was predicted in the first case, and 3 in the second."""
    do, other = HALVES
    rows = pd.DataFrame(
        {
            "id": ["a", "b"],
            **{f"before.{do}": [5.0, 5.0], f"measured.{do}": [9.0, 9.0], f"before.{other}": [2.0, 2.0]},
            f"measured.{other}": [3.0, 5.0],
            **{f"factual.{other}": [2.5, 2.5], f"asked.{other}": [3.5, 3.5]},
        }
    )
    found = _positional(rows, do, [other], seed=0)
    assert (found["own"], found["others"], found["leakage"]) == (4, 1, 0.25)


def test_against_the_truth_it_counts_what_is_true_and_not_what_is_asked() -> None:
    do, other = HALVES
    rows = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "do": do,
            "truth.changed": [1.0, 1.0, 0.0],
            **{f"truth.{figure}": [1.0, 3.0, 9.0] for figure in ("psnr", "psnr_near", "ssim", "mae", "dice")},
            **{f"measured.{name}": [5.0, 6.0, 9.0] for name in HALVES},
            **{f"true.{name}": [4.0, 3.0, 0.0] for name in HALVES},
            **{f"asked.{name}": [8.0, 8.0, 8.0] for name in HALVES},
        }
    )
    found = _truth(rows, HALVES, [], seed=0)
    assert (found["n"], found["psnr"], found["variables"][other]["mae"]) == (2, 2, 2)


def test_the_truth_of_a_variable_does_not_depend_on_that_of_another() -> None:
    possible, impossible = pd.DataFrame({"psnr": [20.0, math.nan]}), pd.DataFrame({"psnr": [math.nan]})
    assert _each({"a": possible, "b": impossible}, "psnr", len) == {"a": 2, "b": 1}
    assert _each({"b": impossible}, "psnr", len) is None
    assert _each({"a": possible}, "ssim", len) is None
    without = {f"{of}.{name}": [1.0] for of in ("measured", "true", "asked") for name in HALVES}
    figures = {f"truth.{figure}": [math.nan] for figure in ("psnr", "psnr_near", "ssim", "mae", "dice")}
    found = _truth(
        pd.DataFrame({"id": ["a"], "do": HALVES[0], "truth.changed": [0.0], **without, **figures}), HALVES, [], 0
    )
    assert found["n"] == 0 and math.isnan(found["psnr"])


def test_the_report_has_the_truth_by_presence_below_the_truth(
    judged: tuple[JudgeEvaluator, Path], tmp_path: Path
) -> None:
    report(evaluation_dir=judged[1], output=tmp_path / "report.html", tracking_uri="")
    text = (tmp_path / "report.html").read_text()
    order = [text.index(f'id="table-{key}"') for key in ("presence_absent_present", "truth_psnr", "truth_presence")]
    assert order == sorted(order)


def test_the_smallest_determinant_is_that_of_the_worst_case() -> None:
    rows = pd.DataFrame({"folded": [0.0, 0.1], "jacobian_minimum": [0.4, -0.2]})
    assert _folding(rows) == {"share": 0.05, "minimum": -0.2}


def test_draws_of_a_seed_are_not_those_of_another_seed_for_the_next_row() -> None:
    drawn = []
    for seed, row in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 1)):
        with same_draws(mixed(seed, row)):
            drawn.append(float(torch.rand(1)))
    assert len(set(drawn[:4])) == 4 and drawn[4] == drawn[1]


def test_what_truly_grows_is_added_up_over_batches() -> None:
    parts, whole = [Tally(), Tally()], Tally()
    for part, wanted in zip(parts, (1.0, 2.0)):
        part.true_gains["a"].add(torch.full((1, 2, 2), 3.0 * wanted), torch.tensor([wanted]))
        part.changes["method"]["a"] = torch.full((2, 2), wanted)
        whole.add(part)
    assert float(whole.true_gains["a"].squares) == 5 and (whole.true_gains["a"].result() == 3).all()
    assert (whole.changes["method"]["a"] == 3).all()


def test_taking_nothing_back_does_not_count_as_reversible(judged: tuple[JudgeEvaluator, Path]) -> None:
    engine = judged[0]
    for do in HALVES:
        rows = engine.pairs[(engine.pairs["method"] == "spilling") & (engine.pairs["do"] == do)]
        acted = rows[f"asked.{do}"] != rows[f"factual.{do}"]
        assert 0 < acted.sum() < len(rows)
        assert rows.loc[~acted, "reversibility"].max() < 1e-4 < rows.loc[acted, "reversibility"].mean()
        found = engine.evaluation["methods"]["spilling"]["reversibility"][do]
        assert found == pytest.approx(rows.loc[acted, "reversibility"].mean())


def test_what_fails_to_appear_counts_in_the_leakage(judged: tuple[JudgeEvaluator, Path]) -> None:
    engine, do = judged[0], HALVES[0]
    for method, figures in (("identity", engine.evaluation["identity"]), *engine.evaluation["methods"].items()):
        rows = engine.pairs[(engine.pairs["method"] == method) & (engine.pairs["do"] == do)]
        asked = rows[rows[f"asked.{do}"] != rows[f"factual.{do}"]]
        unseen = (asked[f"factual.{do}"] == 0) & (asked[f"measured.{do}"] == 0)
        assert figures["locality"][do]["n"] == len(asked) < len(rows)
        assert figures["locality"][do]["n_inside"] == len(asked) - unseen.sum()
        assert unseen.any() == (method == "identity")
    (table,) = [table for table in evaluation_tables(engine.evaluation) if table.key == "leakage"]
    assert "counts as outside" in table.note and "exact 0, spilling 0" in table.note


def test_truth_leaves_out_what_changes_nothing(judged: tuple[JudgeEvaluator, Path]) -> None:
    engine = judged[0]
    do = HALVES[0]
    rows = engine.pairs[(engine.pairs["method"] == "identity") & (engine.pairs["do"] == do)]
    changed = rows["truth.changed"] == 1
    assert (changed == ((rows[f"true.{do}"] - rows[f"factual.{do}"]).abs() > PIXEL / 2)).all()
    assert (rows.loc[~changed, "truth.psnr"] > 60).all()  # almost identical, since doing nothing is right here
    truth = engine.evaluation["identity"]["truth"][do]
    assert truth["n"] == changed.sum() < len(rows)
    assert math.isfinite(truth["psnr"]) and truth["psnr_near"] < truth["psnr"]
    assert truth["variables"][do]["mae"] > 1
    parts = truth["presence"]
    assert sum(part["n"] for part in parts.values()) == truth["n"]
    assert parts["absent_present"]["n"] == ((rows[f"factual.{do}"] == 0) & changed).sum() > 0
    assert sum(part["psnr"] * part["n"] for part in parts.values() if part["n"]) / truth["n"] == pytest.approx(
        truth["psnr"]
    )
    assert math.isnan(parts["absent_absent"]["psnr"])
    assert engine.evaluation["methods"]["exact"]["truth"][do]["dice"] == 1
    assert engine.evaluation["methods"]["exact"]["truth"][do]["variables"][do]["mae"] == pytest.approx(0, abs=1e-4)


def test_the_floor_of_the_drift_is_that_of_the_truth(judged: tuple[JudgeEvaluator, Path]) -> None:
    engine = judged[0]
    do, other = HALVES
    rows = engine.pairs[engine.pairs["do"] == do]
    rows = rows[rows[f"asked.{do}"] != rows[f"factual.{do}"]]  # where no change is asked for, there is no drift
    floor = engine.evaluation["floor_drift"][do]
    assert set(floor) == {other}
    of_method = {
        name: (part[f"measured.{other}"] - part[f"before.{other}"]).abs().mean()
        for name, part in rows.groupby("method")
    }
    assert floor[other]["drift_mae"] == pytest.approx(of_method["exact"], abs=1e-6)
    assert of_method["spilling"] > of_method["exact"] + 0.1
    assert engine.evaluation["methods"]["spilling"]["effectiveness"][do][other]["drift_mae"] == of_method["spilling"]
    (table,) = (table for table in evaluation_tables(engine.evaluation) if table.key == "drift")
    assert dict(table.rows)[FLOOR][0].value == floor[other]["drift_mae"] and "true counterfactuals" in table.note


def test_tables_files_and_report(judged: tuple[JudgeEvaluator, Path], tmp_path: Path) -> None:
    folder = judged[1]
    tables = {table.key: table for table in evaluation_tables(json.loads((folder / "evaluation.json").read_text()))}
    wanted = {"presence_absent_present", "presence_present_absent", "positional_leakage", "truth_psnr_near", "drift"}
    assert wanted <= set(tables)
    for key in wanted:
        assert [name for name, _ in tables[key].rows] == [ZERO, "exact", "spilling", FLOOR]
    assert all(cell.best for cell in dict(tables["positional_leakage"].rows)["exact"])
    appear, vanish = (dict(tables[f"presence_{group}"].rows) for group in ("absent_present", "present_absent"))
    missed, left = (tables[f"presence_{group}"].columns[1] for group in ("absent_present", "present_absent"))
    assert missed.endswith("missed, share") and left.endswith("seen, share")
    assert [rows[ZERO][1].value for rows in (appear, vanish)] == [1, 1]
    assert [rows["exact"][1].value for rows in (appear, vanish)] == [0, 0]
    parted = tables["truth_presence"]
    assert {column.rpartition(": ")[2] for column in parted.columns} == {"appears", "vanishes", "changes"}
    truth = judged[0].evaluation["identity"]["truth"][HALVES[0]]["presence"]
    assert dict(parted.rows)[ZERO][0].value == pytest.approx(truth["absent_present"]["psnr"])
    shown = {entry["kind"]: entry for entry in json.loads((folder / "figures" / "figures.json").read_text())}
    assert "the lines part the regions" in shown["maps"]["caption"] and "set to zero" in shown["sweep"]["caption"]
    report(evaluation_dir=folder, output=tmp_path / "report.html", tracking_uri="")
    text = (tmp_path / "report.html").read_text()
    assert 'id="table-presence_absent_present"' in text and 'id="table-positional_leakage"' in text


def test_many_pairs_become_a_matrix_for_each_method(
    judged: tuple[JudgeEvaluator, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcft_ext.evaluation.tables.MAX_PAIRS", 3)
    tables = [t for t in evaluation_tables(judged[0].evaluation) if t.key.startswith(("error_", "drift_"))]
    assert [t.title.rpartition(": ")[2] for t in tables] == [ZERO, "exact", "spilling", "exact", "spilling"]
    for table in tables:
        frame = [FLOOR] if table.key.startswith("error_") else [ZERO, FLOOR]
        assert [name for name, _ in table.rows] == [f"do({n.replace('_', ' ')})" for n in HALVES] + frame
    floor = judged[0].evaluation["floor_drift"]
    zero, true = ([cell.value for cell in cells] for _, cells in tables[-1].rows[-2:])
    assert zero == [0, 0] and true == [floor[do][j]["drift_mae"] for j, do in zip(HALVES, reversed(HALVES))]
    exact = tables[1].rows[0][1]
    assert [cell.value for cell in exact] == pytest.approx([0, 0], abs=1e-4)
