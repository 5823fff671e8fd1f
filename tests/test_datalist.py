import copy
import json

import numpy as np
import pytest

from segcft_ext.datalist import read_datalist, write_datalist
from segcft_ext.datalist_format import DatalistError, Regions
from segcft_ext.measurements import Area

REGIONS = {"axis": 0, "of": "structure", "names": ["upper", "lower"], "boundaries": [0, 0.5, 1]}
AREA = {"_target_": "segcft_ext.measurements.Area", "label": 1, "unit": "percent"}
LOWER = {**AREA, "_target_": "segcft_ext.measurements.RegionArea", "axis": 0, "low": 0.5, "high": 1, "of": "structure"}


def entry(name, **more):
    values = {"heart_area": 10.0, "age": 61, "sex": 1}
    return {
        "id": name,
        "source": "a",
        "image": f"{name}.png",
        "label": f"{name}_label.png",
        "variables": values,
        **more,
    }


CONTENT = {
    "format_version": 1,
    "name": "drawn",
    "image": {"size": [8, 6], "intensity_range": [0, 255]},
    "labels": {"background": 0, "heart": 1},
    "variables": [
        {"name": "heart_area", "kind": "continuous", "unit": "percent", "measurement": AREA},
        {"name": "age", "kind": "continuous", "unit": "years"},
        {"name": "sex", "kind": "binary", "unit": "", "categories": ["F", "M"]},
    ],
    "training": [entry("t1", use="guide"), entry("t2", use="judge", spacing=[0.5, 0.5])],
    "validation": [entry("v1")],
    "test": [entry("s1")],
}


@pytest.fixture
def content(tmp_path):
    for name in ("t1", "t2", "v1", "s1"):
        (tmp_path / f"{name}.png").touch()
        (tmp_path / f"{name}_label.png").touch()
    return copy.deepcopy(CONTENT)


def test_written_datalist_is_read_back(content, tmp_path):
    content["training"][0]["variables"]["age"] = None
    written = write_datalist(tmp_path / "datalist.json", content)
    datalist = read_datalist(tmp_path / "datalist.json")
    assert datalist == written
    assert not list(tmp_path.glob("*.tmp"))
    assert datalist.variable_names == ["heart_area", "age", "sex"]
    assert (datalist.size, datalist.num_classes, datalist.structures) == ((8, 6), 2, ["heart"])
    assert isinstance(datalist.measurements()["heart_area"], Area)

    first, second = datalist.items("training")
    assert first["image"] == str(tmp_path / "t1.png")
    np.testing.assert_array_equal(first["variables"], np.array([10, np.nan, 1], np.float32))
    assert np.isnan(first["spacing"]).all()
    np.testing.assert_array_equal(second["spacing"], np.array([0.5, 0.5], np.float32))
    assert [item["id"] for item in datalist.items("training", use="judge")] == ["t2"]
    assert datalist.items("training", variables=["sex", "age"])[0]["variables"].shape == (2,)


def test_a_datalist_may_be_read_without_its_files(content, tmp_path):
    path = tmp_path / "elsewhere" / "datalist.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    assert read_datalist(path, check_files=False).name == "drawn"
    with pytest.raises(DatalistError, match=r"training\[0\].image: found 't1.png', expected an existing file"):
        read_datalist(path)


def test_regions_and_the_variables_in_them_are_read(content, tmp_path):
    content["regions"] = REGIONS
    content["variables"][0] |= {"structure": "heart", "region": "lower", "measurement": LOWER}
    content["test"][0]["arc_length"] = [0, 61.5]
    datalist = write_datalist(tmp_path / "datalist.json", content)
    assert datalist.regions == Regions(0, "structure", ("upper", "lower"), (0.0, 0.5, 1.0))
    assert (datalist.variables[0].structure, datalist.variables[0].region) == ("heart", "lower")
    assert (datalist.variables[1].structure, datalist.variables[1].region) == ("", "")
    assert datalist.bands == datalist.area_labels == {}  # where a structure is cannot be known without it
    content["regions"] = {**REGIONS, "of": "image"}
    content["variables"][0]["measurement"] = {**LOWER, "of": "image"}
    datalist = write_datalist(tmp_path / "datalist.json", content)
    assert datalist.bands == {datalist.variables[0].name: (0, 0.5, 1.0)}
    assert datalist.area_labels == {"heart_area": 1}


def change(keys, value):
    def apply(content):
        *way, last = keys
        target = content
        for key in way:
            target = target[key]
        target[last] = value

    return apply


FAULTS = [
    (["format_version"], 2, "format_version: found 2, expected 1"),
    (["image"], None, "image: found None"),
    (["image", "size"], [8], r"image.size: found \[8\]"),
    (["image", "size"], [8, 0], "image.size"),
    (["image", "intensity_range"], [1, 1], "image.intensity_range"),
    (["labels", "background"], 1, "labels: .* background 0"),
    (["labels", "heart"], "1", "labels"),
    (["variables"], [], "variables: found .*, expected at least one"),
    (["variables", 1, "name"], "heart_area", "each name once"),
    (["variables", 1, "kind"], "real", r"variables\[1\].kind: found 'real'"),
    (["variables", 2, "categories"], ["F"], r"variables\[2\].categories"),
    (["variables", 2, "categories"], "FM", r"variables\[2\].categories: found 'FM', expected a list of names"),
    (["variables", 2, "categories"], 2, r"variables\[2\].categories: found 2, expected a list of names"),
    (["variables"], 2, "variables: found 2, expected a list"),
    (["variables", 0, "measurement"], "Area", r"variables\[0\].measurement: found 'Area', expected an object"),
    (["truth"], "phantom", "truth: found 'phantom', expected an object with a _target_"),
    (["variables", 0, "measurement"], {"_target_": "os.system"}, r"variables\[0\].measurement"),
    (["variables", 0, "measurement"], {**AREA, "unit": "cm2"}, r"variables\[0\].measurement: .*cm2"),
    (["variables", 0, "measurement"], {**AREA, "label": 2}, r"variables\[0\].measurement.label: found 2, .*'heart': 1"),
    (["variables", 0, "measurement"], {**AREA, "unit": "mm2"}, r"variables\[0\].unit: found 'percent', expected 'mm2'"),
    (["variables", 0, "measurement"], {**AREA, "unit": "mm3"}, r"measurement.unit: found 'mm3', expected 'mm2' of 2-D"),
    (["variables", 0, "unit"], "%", r"variables\[0\].unit: found '%', expected 'percent'"),
    (["test"], None, "test: found None, expected a list of cases"),
    (["test", 0, "id"], "t1", r"test\[0\].id: found 't1', expected an id of its own \(also at training\[0\]\)"),
    (["test", 0, "image"], "t1.png", r"test\[0\].image: found 't1.png', expected .* own \(also at training\[0\]\)"),
    (["test", 0, "image"], "./t1.png", r"test\[0\].image: found './t1.png', expected .* own \(also at training"),
    (["test", 0, "source"], "", r"test\[0\].source"),
    (["test", 0, "label"], "nowhere.png", r"test\[0\].label: found 'nowhere.png', expected an existing file"),
    (["test", 0, "spacing"], [1.0], r"test\[0\].spacing"),
    (["test", 0, "spacing"], [1.0, -1.0], r"test\[0\].spacing"),
    (["training", 1, "use"], "test", r"training\[1\].use: found 'test', expected 'guide' or 'judge'"),
    (["training", 1, "variables"], None, r"training\[1\].variables"),
    (["training", 1, "variables", "heart_area"], None, "measured, so it cannot be missing"),
    (["training", 1, "variables", "heart_area"], -1, "heart_area: found -1, expected zero or more percent"),
    (["training", 1, "variables", "age"], "old", r"training\[1\].variables.age: found 'old', expected a finite number"),
    (["training", 1, "variables", "age"], float("inf"), "finite number"),
    (["training", 1, "variables", "age"], True, "finite number"),
    (["training", 1, "variables", "sex"], 2, "an index below 2"),
    (["training", 1, "variables", "weight"], 70, r"found \['weight'\]"),
    (["training", 1, "arc_length"], [20.0, 10.0], r"training\[1\].arc_length: found \[20.0, 10.0\]"),
    (["regions"], ["upper"], r"regions: found \['upper'\], expected an object"),
    (["regions"], {**REGIONS, "axis": 2}, "regions.axis: found 2, expected an axis of the image, 0 … 1"),
    (["regions"], {**REGIONS, "of": "lung"}, "regions.of: found 'lung'"),
    (["regions"], {**REGIONS, "names": ["a", "a"]}, "regions.names: .* each name once"),
    (["regions"], {**REGIONS, "boundaries": [0, 1]}, "regions.boundaries: .* 3 numbers that rise from 0 to 1"),
    (["regions"], {**REGIONS, "boundaries": [0, 0.5, 0.9]}, "regions.boundaries"),
    (["variables", 0, "measurement"], {**AREA, "label": 1.5}, r"variables\[0\].measurement: .*label is 1.5"),
    (["training", 0, "image"], "/t1.png", r"training\[0\].image: found '/t1.png', expected a path relative to"),
    (["training", 0, "label"], 1.5, r"training\[0\].label: found 1.5, expected a string"),
    (["variables", 0, "structure"], "lung", r"variables\[0\].structure: found 'lung'"),
    (["variables", 0, "structure"], ["heart"], r"variables\[0\].structure: found \['heart'\]"),
    (["variables", 0, "structure"], "background", "label: found 1, expected 0, that of background"),
    (
        ["variables", 0, "measurement"],
        LOWER,
        r"variables\[0\].region: found '', expected the region, one of",
    ),
    (["variables", 0, "region"], "upper", r"variables\[0\].region: found 'upper', expected one of the regions \[\]"),
]


@pytest.mark.parametrize(("keys", "value", "message"), FAULTS, ids=lambda v: None if isinstance(v, str) else str(v))
def test_a_fault_is_named_and_nothing_is_written(content, tmp_path, keys, value, message):
    change(keys, value)(content)
    path = tmp_path / "datalist.json"
    with pytest.raises(DatalistError, match=message) as error:
        write_datalist(path, content)
    assert str(path) in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize("measurement", [AREA, {**LOWER, "low": 0.4}, {**LOWER, "axis": 1}, {**LOWER, "of": "image"}])
def test_a_variable_of_a_region_is_measured_in_that_region(content, tmp_path, measurement):
    content["regions"] = REGIONS
    content["variables"][0] |= {"structure": "heart", "region": "lower", "measurement": measurement}
    message = r"variables\[0\].measurement: .*that of the region: axis, of, low, high as \(0, 'structure', 0.5, 1.0\)"
    with pytest.raises(DatalistError, match=message):
        write_datalist(tmp_path / "datalist.json", content)


def test_a_measurement_in_millimetres_needs_the_spacing_of_every_case(content, tmp_path):
    content["variables"][0] |= {"unit": "mm2", "measurement": {**AREA, "unit": "mm2"}}
    message = (
        r"training\[0\].spacing: found None, expected 2 positive numbers \(mm\), which heart_area is measured with"
    )
    with pytest.raises(DatalistError, match=message):
        write_datalist(tmp_path / "datalist.json", content)
    for case in (*content["training"], *content["validation"], *content["test"]):
        case["spacing"] = [0.5, 0.5]
    assert write_datalist(tmp_path / "datalist.json", content).variables[0].unit == "mm2"


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(
        DatalistError, match=r"--datalist: .*datalist.json: no such datalist, expected the datalist.json"
    ):
        read_datalist(tmp_path / "datalist.json")
    with pytest.raises(
        DatalistError, match=f"--datalist: {tmp_path}: found a folder, expected the datalist.json in it"
    ):
        read_datalist(tmp_path)
    (tmp_path / "broken.json").write_text('{"training": [')
    with pytest.raises(DatalistError, match=r"broken.json: cannot be read as JSON"):
        read_datalist(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DatalistError, match="expected an object"):
        read_datalist(tmp_path / "list.json")


def test_unknown_variables_and_empty_selections_are_errors(content, tmp_path):
    content["test"] = []
    datalist = write_datalist(tmp_path / "datalist.json", content)
    with pytest.raises(DatalistError, match="no variable 'weight'; it has"):
        datalist.items("training", variables=["weight"])
    with pytest.raises(
        DatalistError, match=r"split: found 'val', expected one of \['training', 'validation', 'test'\]"
    ):
        datalist.items("val")
    with pytest.raises(DatalistError, match="no case in split 'test'"):
        datalist.items("test")
    with pytest.raises(DatalistError, match="no case in split 'validation' for use 'judge'"):
        datalist.items("validation", use="judge")


def test_a_variable_that_is_often_zero_is_zero_inflated(content, tmp_path):
    def kind_of(values):
        content["training"] = [entry(f"t{i}", use="guide") for i in range(len(values))]
        for case, value in zip(content["training"], values):
            case["variables"] = {**case["variables"], "heart_area": value, "age": None if value == 5 else -value}
        (tmp_path / "datalist.json").write_text(json.dumps(content))
        return read_datalist(tmp_path / "datalist.json", check_files=False).definitions()

    heart, age, sex = kind_of([0.0, 3.0, 5.0])
    assert heart == {"name": "heart_area", "kind": "continuous", "zero_inflated": True}
    assert age == {"name": "age", "kind": "continuous"}, "it is negative in one case"
    assert sex == {"name": "sex", "kind": "binary"}
    assert "zero_inflated" not in kind_of([0.0, *range(1, 61)])[0], "a single zero among many is no point mass"


def test_phantoms_of_another_seed_are_other_cases(content, tmp_path):
    def fingerprints(noise):
        for case in content["test"]:
            case.update(noise)
        return set(write_datalist(tmp_path / "datalist.json", content).fingerprints("test"))

    named, drawn = fingerprints({}), fingerprints({"exogenous": {"noise": {"a": 0.5}, "film": 0.0}})
    assert len(named | drawn) == 2
    assert fingerprints({"exogenous": {"film": 0.0, "noise": {"a": 0.5}}}) == drawn
    assert fingerprints({"exogenous": {"noise": {"a": 0.6}, "film": 0.0}}).isdisjoint(named | drawn)
