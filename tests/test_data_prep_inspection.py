import json
import os
import re
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from drawn_chest import write_png
from small_chests import small_chests

from data_prep.__main__ import main
from data_prep.inspection import write_inspection
from data_prep.label_faults import _Shapes, _unusual_structures, find_faults, robust_z
from data_prep.pictures import variables_figure
from data_prep.storage import write_array
from segcft_ext.datalist import write_datalist


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    """Thirty cases of one source."""
    folder = tmp_path_factory.mktemp("chests")
    return small_chests(folder, size=32, training=20, validation=4, test=6)


def changed(chests, tmp_path, changes):
    """The datalist with other label maps for some cases, a function of the old one each."""
    content = json.loads(chests.path.read_text())
    for split in ("training", "validation", "test"):
        for entry in content[split]:
            label, _ = chests.reader().get_data(chests.path.parent / entry["label"])
            write_png(tmp_path / entry["label"], changes.get(entry["id"], lambda same: same)(label.copy()))
            entry["image"] = os.path.relpath(chests.path.parent / entry["image"], tmp_path)
    return write_datalist(tmp_path / "datalist.json", content)


def relabel(label, mapping):
    return np.array([mapping.get(value, value) for value in range(4)], np.uint8)[label]


def stray(label):
    label[:3, :12] = 1
    return label


def faults_of(datalist):
    return {(fault.kind, fault.entry["id"]) for fault in find_faults(datalist)}


def test_drawn_chests_have_no_faults(chests):
    assert faults_of(chests) == set()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("swapped_sides", lambda label: relabel(label, {1: 2, 2: 1})),
        ("shifted", lambda label: np.roll(label, 3, axis=1)),
        ("absent", lambda label: relabel(label, {3: 0})),
        ("fragments", stray),
        ("unusual_shape", lambda label: np.roll(label, 10, axis=0)),
    ],
)
def test_a_faulty_label_map_is_found(chests, tmp_path, kind, change):
    found = faults_of(changed(chests, tmp_path, {"case07": change}))
    assert (kind, "case07") in found and {case for _, case in found} == {"case07"}


def test_an_unusual_value_is_found_on_both_sides_and_zero_is_none(chests, tmp_path):
    content = json.loads(changed(chests, tmp_path, {}).path.read_text())
    for i, factor in ((0, 3), (1, 1 / 3), (2, 0)):
        content["training"][i]["variables"]["heart_area"] *= factor
    content["training"][3]["variables"]["age"] = 1e6  # not measured: no matter of the label map
    faults = find_faults(write_datalist(tmp_path / "datalist.json", content))
    assert {(fault.kind, fault.entry["id"]) for fault in faults} == {
        ("unusual_value", "case00"),
        ("unusual_value", "case01"),
    }
    assert all(fault.text.startswith("heart area") and fault.text.endswith("percent") for fault in faults)


def test_structures_that_are_often_in_pieces_or_absent_are_no_faults(chests, tmp_path):
    changes = {f"case{i:02d}": stray for i in range(0, 30, 4)}
    changes |= {f"case{i:02d}": lambda label: relabel(label, {3: 0}) for i in range(1, 30, 4)}
    assert not {kind for kind, _ in faults_of(changed(chests, tmp_path, changes))} & {"fragments", "absent"}


def test_robust_scores():
    values = np.random.default_rng(0).normal(5, 2, 10001)
    np.testing.assert_allclose(robust_z(values), (values - 5) / 2, atol=0.1, rtol=0.1)
    np.testing.assert_array_equal(robust_z(np.array([1.0, 1, 1, 9])), 0)


def test_the_page_says_everything_and_needs_nothing(chests, tmp_path, capsys):
    datalist = changed(chests, tmp_path, {"case07": lambda label: relabel(label, {1: 2, 2: 1})})
    (tmp_path / "rejected.csv").write_text(
        "id,source,reason,text\na,north,colour,\nb,south,colour,\nc,north,bad_rle,x\n"
    )
    (tmp_path / "filters.csv").write_text("what,count\nfiltered: <young>,7\n")
    main(["inspect", str(datalist.path)])
    assert "swapped_sides" in capsys.readouterr().out
    page = (tmp_path / "inspection.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", page)
    for expected in (
        r"30 cases, 3 structures, 5 variables; 1 cases? to look at first",
        r"drawn\s+10\s+10\s+4\s+6\s+30",
        r"colour\s+1\s+1\s+the image has colours",
        r"bad_rle\s+1\s+0",
        r"Rejected cases: 3 of 33 found",
        r"filtered: &lt;young&gt;\s+7",
        r"age\s+continuous\s+years\s+20\s",
        r"sex\s+binary\s+–\s+0\s+F 15, M 15",
        r"case07\s+drawn\s+training\s+left_lung lies on the picture's left".replace("'", "(&#x27;|')"),
    ):
        assert re.search(expected, text), expected
    assert page.count("data:image/webp;base64,") == page.count("<img ") == 5
    assert not re.search(r"https?://|<script|<link", page) and str(tmp_path) not in page


def test_volumes_of_any_structures_are_shown_by_their_middle(tmp_path):
    random = np.random.default_rng(0)
    splits = {split: [] for split in ("training", "validation", "test")}
    for i in range(14):
        label = np.zeros((24, 8, 8), np.uint8)
        label[:, 2:6, 2:6] = 1
        if i % 2:
            start = random.integers(0, 20)
            label[start : start + 3, 2, 2:6] = 2
        image = (random.random(label.shape) * 65535).astype(np.uint16)
        for kind, array in (("images", image), ("labels", label)):
            (tmp_path / kind).mkdir(exist_ok=True)
            write_array(tmp_path / kind / f"v{i}.nii.gz", array, (0.5, 0.4, 0.4))
        entry = {"id": f"v{i}", "source": "ccta", "image": f"images/v{i}.nii.gz", "label": f"labels/v{i}.nii.gz"}
        entry |= {"spacing": [0.5, 0.4, 0.4], "variables": {"plaque_volume": 0.08 * int((label == 2).sum())}}
        split = "training" if i < 10 else ("validation", "test")[i % 2]
        splits[split].append({**entry, "use": ("guide", "judge")[i % 2]} if split == "training" else entry)
    volume = {"_target_": "segcft_ext.measurements.Area", "label": 2, "unit": "mm3"}
    content = {
        "format_version": 1,
        "name": "vessels",
        "image": {"size": [24, 8, 8], "intensity_range": [0, 65535]},
        "labels": {"background": 0, "lumen": 1, "plaque": 2},
        "variables": [{"name": "plaque_volume", "kind": "continuous", "unit": "mm3", "measurement": volume}],
        **splits,
    }
    datalist = write_datalist(tmp_path / "datalist.json", content)
    assert write_inspection(datalist.path, tmp_path / "page.html") == []
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "middle slice" in page and "on their side" in page and "24 × 8 × 8" in page and "0.4 to 0.5 mm" in page
    assert "<td>mm³</td>" in page
    assert {axis.get_xlabel() for axis in variables_figure(datalist).axes} == {"plaque_volume [mm³]"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels/case07.png", b"", "cannot be read: UnidentifiedImageError"),
        ("labels/case07.png", np.zeros((9, 32), np.uint8), r"found pixels of shape \(9, 32\), expected \(32, 32\)"),
        ("images/case07.png", b"", "cannot be read: UnidentifiedImageError"),
        ("rejected.csv", b"id;source;reason;text\n", r"found the columns \['id;source;reason;text'\], expected"),
        ("filters.csv", b"what,count\nr\xf6w,1\n", "the table cannot be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path, name, content, message):
    path = small_chests(tmp_path).path.parent / name
    path.write_bytes(content) if isinstance(content, bytes) else write_png(path, content)
    with pytest.raises(SystemExit, match=f"{path}: {message}"):
        main(["inspect", str(tmp_path / "datalist.json")])


def test_a_missing_datalist_ends_with_one_line(tmp_path):
    with pytest.raises(SystemExit, match="no such datalist"):
        main(["inspect", str(tmp_path / "datalist.json")])


def test_the_masks_of_a_source_are_held_once_while_shapes_are_compared():
    count = 1000
    small = [np.zeros((64, 64), np.uint8) for _ in range(count)]
    for picture in small:
        picture[20:30, 20:30] = 1
    shapes = _Shapes([("test", {})] * count, [[0.0]] * count, small)
    tracemalloc.start()
    faults = _unusual_structures(shapes, SimpleNamespace(structures=["heart"], labels={"heart": 1}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert faults == [] and peak < 1.5 * count * 64 * 64
