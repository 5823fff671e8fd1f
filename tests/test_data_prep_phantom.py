import json

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.collect import Run, prepare
from data_prep.phantom import PhantomSource
from segcft_ext.datalist import read_datalist
from segcft_ext.datalist_format import SPLITS
from segcft_ext.evaluation.truth import Truth

pytestmark = pytest.mark.usefixtures("no_pictures")

TRUTH = {"_target_": "somewhere.Renderer", "size": 16}


class FlatPhantom:
    """A stub renderer: three rectangles of the wanted areas on a grey that is exogenous."""

    def sample(self, seed):
        random = np.random.default_rng(seed)
        return {"age": float(random.uniform(20, 80)), "sex": int(seed % 2)}, {"grey": float(random.uniform(0.2, 0.6))}

    def render(self, variables, exogenous):
        label = np.zeros((16, 16), np.uint8)
        label[2:8, 10:14], label[2:8, 2:6], label[9:12, 6 : 8 + variables["sex"]] = 1, 2, 3
        return np.where(label > 0, 0.75, exogenous["grey"]), label


def make(out, count=12, seed=0):
    source = PhantomSource(FlatPhantom(), count, (16, 16), seed, TRUTH)
    return prepare(source, Run(out, name="flat", seed=seed)).datalist


def entries_of(datalist):
    return {entry["id"]: entry for split in SPLITS for entry in datalist.entries[split]}


def test_phantoms_carry_what_their_true_counterfactuals_need(tmp_path):
    datalist = make(tmp_path / "out")
    assert datalist.truth == TRUTH
    assert datalist.variable_names == ["left_lung_area", "right_lung_area", "heart_area", "age", "sex"]
    for entry in entries_of(datalist).values():
        assert entry["source"] == "phantom"
        image, label = FlatPhantom().render(entry["variables"], entry["exogenous"])
        stored = np.asarray(Image.open(tmp_path / "out" / entry["image"]))
        # Linear from [0, 1]: a mapping by the image's own percentiles would have stretched the two greys to 0 and 1.
        np.testing.assert_allclose(stored / 65535, image, atol=1 / 65535)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / entry["label"])), label)
        assert entry["variables"]["heart_area"] == pytest.approx(100 * (label == 3).mean())
    assert not (tmp_path / "out.mapping.json").exists()


def test_phantoms_depend_on_the_seed_alone(tmp_path):
    first, again, more, other = (
        entries_of(make(tmp_path / str(i), **options)) for i, options in enumerate([{}, {}, {"count": 20}, {"seed": 1}])
    )
    assert first == again
    drawn = {identifier: entry["exogenous"] for identifier, entry in more.items()}
    assert all(drawn[identifier] == entry["exogenous"] for identifier, entry in first.items())
    greys = {entry["exogenous"]["grey"] for entry in first.values()}
    assert len(greys) == 12 and greys.isdisjoint(entry["exogenous"]["grey"] for entry in other.values())


def test_chest_phantoms_from_the_command_line(tmp_path):
    main(["phantom", "--kind", "chest", "--count", "12", "--size", "32x32", "--out", str(tmp_path / "out")])
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    assert datalist.size == (32, 32) and len(entries_of(datalist)) == 12
    assert datalist.truth == {"_target_": "data_prep.phantom_chest.ChestPhantom", "size": 32}
    assert json.loads((tmp_path / "out" / "datalist.json").read_text())["name"] == "out"
    with pytest.raises(SystemExit, match="a chest is square"):
        main(["phantom", "--kind", "chest", "--size", "32x64", "--out", str(tmp_path / "wide")])
    for kind in ("chest", "coronary", "coronary_volumes"):
        with pytest.raises(SystemExit, match="count: found 0, expected a whole number from 1 on"):
            main(["phantom", "--kind", kind, "--count", "0", "--out", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="kind: found 'knee', expected 'chest'"):
        main(["phantom", "--kind", "knee", "--out", str(tmp_path / "knee")])


def test_the_truth_of_vessels_may_follow_the_causal_model(tmp_path):
    vessels = ["phantom", "--kind", "coronary", "--count", "12", "--size", "64x24"]
    main([*vessels, "--out", str(tmp_path / "set")])
    main([*vessels, "--descendants", "--out", str(tmp_path / "followed")])
    cut, followed = (read_datalist(tmp_path / name / "datalist.json") for name in ("set", "followed"))
    assert not cut.truth["descendants"] and followed.truth["descendants"]
    assert cut.entries == followed.entries

    ids = [entry["id"] for entry in cut.entries["test"]]
    action = {"noncalcified_plaque_area_mid": [20.0] * len(ids)}
    labels = [Truth(datalist)(ids, action)[1] for datalist in (cut, followed)]
    lumen = [int((label == cut.labels["lumen"]).sum()) for label in labels]
    assert lumen[1] < lumen[0] - 10
    with pytest.raises(SystemExit, match="descendants are options of --kind coronary"):
        main(["phantom", "--kind", "chest", "--descendants", "--out", str(tmp_path / "chest")])


@pytest.mark.parametrize("error", [OverflowError, ZeroDivisionError])
def test_a_case_that_no_check_foresaw_is_rejected_and_a_full_disk_is_not(tmp_path, monkeypatch, error):
    class Broken(FlatPhantom):
        def render(self, variables, exogenous):
            if exogenous["grey"] < 0.3:
                raise error("of this case only")
            return super().render(variables, exogenous)

    summary = prepare(PhantomSource(Broken(), 20, (16, 16), 0, None), Run(tmp_path / "out", name="flat"))
    assert 0 < summary.rejected["unreadable"] < 20
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert f"the case cannot be loaded ({error.__name__} in {__name__}.py, line " in rejected
    monkeypatch.setattr("data_prep.outcomes.write_array", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full; 0 of 12 cases"):
        make(tmp_path / "full")


def test_what_the_datalist_cannot_hold_is_refused_before_an_earlier_result_is_touched(tmp_path):
    make(tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for change, options, text in (
        ({"regions": {"axis": 0, "of": "image", "names": ["a", "b"], "boundaries": [0, 0.7, 0.6]}}, {}, "boundaries"),
        ({"variables": [{"name": "heart_area", "kind": "continuous"}]}, {}, "each name once"),
        ({}, {"fractions": {"training": 0.9, "validation": 0.2, "test": 0.2}}, "fractions"),
        ({}, {"fractions": {"training": "much", "validation": 0.2, "test": 0.2}}, "fractions"),
    ):
        source = PhantomSource(FlatPhantom(), 12, (16, 16), 1, TRUTH)
        for name, value in change.items():
            setattr(source, name, value)
        with pytest.raises(ValueError, match=text):
            prepare(source, Run(tmp_path / "out", **options))
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
