import csv
import gzip
import json
import pickle
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from drawn_chest import STRUCTURES, draw, write_png
from padchest_data import original_row, padchest_row, preprocessed_row, write_padchest, write_tables
from real_data import CHEXMASK

from data_prep.__main__ import main
from data_prep.archives import find_files, open_place
from data_prep.cases import Rejected
from data_prep.chexmask import crop_borders, index_masks, read_masks
from data_prep.geometry import fit_label
from data_prep.padchest import PadChestSource
from data_prep.structures import combine_masks
from segcft_ext.datalist import read_datalist
from segcft_ext.datalist_format import SPLITS

pytestmark = pytest.mark.usefixtures("no_pictures")


def source(folder, size=(24, 24), images=("images",), table="padchest.csv"):
    return PadChestSource(folder / table, folder / "chexmask.csv", [folder / place for place in images], size)


def run(folder, *options, images=("images",), out="out"):
    tables = ["--table", str(folder / "padchest.csv"), "--chexmask", str(folder / "chexmask.csv")]
    places = [str(folder / place) for place in images]
    main(["padchest", *places, *tables, "--out", str(folder / out), "--size", "24", *options])
    return read_datalist(folder / out / "datalist.json")


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reasons(folder):
    cases = json.loads((folder / "out.mapping.json").read_text())["cases"]
    return {cases[row["id"]]["name"]: row["reason"] for row in rows_of(folder / "out" / "rejected.csv")}


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_padchest_becomes_a_datalist(tmp_path):
    rows = write_padchest(tmp_path, 16)
    datalist = run(tmp_path)
    assert datalist.variable_names == ["left_lung_area", "right_lung_area", "heart_area", "age", "sex"]
    assert [variable.unit for variable in datalist.variables] == ["percent"] * 3 + ["years", ""]
    cases = json.loads((tmp_path / "out.mapping.json").read_text())["cases"]
    parts = {}
    for split in SPLITS:
        for entry in datalist.entries[split]:
            name = cases[entry["id"]]["name"]
            _, masks = draw(int(name[:3]))
            padding = 40 / 48  # of the image to a square
            assert entry["variables"]["heart_area"] == pytest.approx(
                100 * (masks["heart"] > 0).mean() * padding, rel=0.2
            )
            assert entry["variables"]["age"] == 2014 - int(rows[name]["PatientBirth"])
            assert entry["variables"]["sex"] == "FM".index(rows[name]["PatientSex_DICOM"])
            parts.setdefault(rows[name]["PatientID"], set()).add((split, entry.get("use")))
    assert len(parts) == 8 and all(len(found) == 1 for found in parts.values())
    assert not reasons(tmp_path)


def test_no_identifier_of_padchest_reaches_the_output(tmp_path):
    rows = write_padchest(tmp_path, 12)
    for i, (name, row) in enumerate(list(rows.items())):
        row.update(StudyID=f"study77{i}", PatientID=f"patient88{i}", PatientBirth="1951", StudyDate_DICOM="20130417")
        if i == 0:
            (tmp_path / "images" / "0" / name).write_bytes(b"broken")
    write_tables(tmp_path, list(rows.values()), rows_of(tmp_path / "chexmask.csv"))
    run(tmp_path, "--salt", "s")  # a random id may happen to end like a name
    planted = [b"study77", b"patient88", b"1951", b"20130417", str(tmp_path).encode(), *map(str.encode, rows)]
    assert b"000.png" in planted and reasons(tmp_path) == {"000.png": "unsupported_format"}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.suffix != ".png":
            assert not [text for text in planted if text in path.read_bytes()], path.name


FILTERED = {
    "no image of its folder is given": {"ImageDir": "1"},
    "age unknown": {"PatientBirth": ""},
    "younger than 18 years": {"PatientBirth": "1997"},
    "projection not PA": {"Projection": "AP_horizontal"},
    "marked pediatric": {"Pediatric": "PED"},
    "labelled suboptimal study or exclude": {"Labels": "['nodule', ' suboptimal study']"},
    "Dice RCA (Mean) below 0.7 or unknown": {},
}


def test_every_row_passes_or_is_counted_by_the_first_filter_that_it_fails(tmp_path, capsys):
    rows = write_padchest(tmp_path, 12)
    masks = rows_of(tmp_path / "chexmask.csv")
    for i, (reason, changes) in enumerate(FILTERED.items()):
        for copy in range(i + 1):
            name = f"f{i}{copy}.png"
            rows[name] = padchest_row(name, **changes)
            if changes.get("ImageDir") is None:
                write_png(tmp_path / "images" / "0" / name, np.eye(5, dtype=np.uint8))
            low = ("0.699", "", "high", "nan")[copy % 4] if "Dice" in reason else "0.9"
            masks.append(original_row(name, draw()[1], **{"Dice RCA (Mean)": low}))
    rows["f10.png"]["StudyDate_DICOM"], rows["f11.png"]["PatientBirth"] = "", "1750"
    rows["f51.png"]["Labels"], rows["f52.png"]["Labels"] = "['exclude']", "[' Exclude ', 'normal']"
    rows["f20.png"]["Projection"] = "L"  # fails two filters, counted once
    # What passes: 18 in the year of the study, the threshold itself, labels unknown, a label that only sounds alike.
    rows["000.png"].update(PatientBirth="1996", Labels="", Pediatric="")
    rows["001.png"].update(Labels="['excluded for this test']", PatientSex_DICOM="O")
    masks[2]["Dice RCA (Mean)"] = "0.7"
    write_tables(tmp_path, list(rows.values()), masks)
    write_png(tmp_path / "images" / "0" / "stranger.png", np.eye(5, dtype=np.uint8))
    datalist = run(tmp_path)
    expected = {f"filtered: {name}": i + 1 for i, name in enumerate(FILTERED)}
    counts = {row["what"]: int(row["count"]) for row in rows_of(tmp_path / "out" / "filters.csv")}
    assert counts == {
        "rows of the table": len(rows),
        **expected,
        "cases found": 12,
        "images without a row": 1,
        "masks without a row": 0,
        "archives that cannot be opened": 0,
    }
    assert sum(len(datalist.entries[split]) for split in SPLITS) == 12 and not reasons(tmp_path)
    entries = [entry for split in SPLITS for entry in datalist.entries[split]]
    assert sorted(e["variables"]["sex"] is None for e in entries) == [False] * 11 + [True]
    assert min(e["variables"]["age"] for e in entries) == 18
    assert "filtered: marked pediatric: 5" in capsys.readouterr().out


def test_unusable_cases_are_rejected_with_a_reason(tmp_path):
    rows = write_padchest(tmp_path, 24)
    masks = rows_of(tmp_path / "chexmask.csv")
    folder = tmp_path / "images" / "0"
    (folder / "000.png").unlink()
    masks[1]["ImageID"] = "unknown.png"
    rows["twice"] = dict(rows["002.png"], Projection="AP")
    masks.append(masks[3])
    write_png(tmp_path / "images" / "elsewhere" / "004.png", np.eye(5, dtype=np.uint8))
    masks[5]["Heart"] = "1 2 3"
    masks[6]["Left Lung"] = ""
    masks[7]["Height"], masks[7]["Width"] = masks[7]["Width"], masks[7]["Height"]
    masks[8]["Height"] = "4x"
    (folder / "009.png").write_bytes((folder / "009.png").read_bytes()[:300])
    masks[10]["Left Lung"], masks[10]["Right Lung"] = masks[10]["Right Lung"], masks[10]["Left Lung"]
    write_png(folder / "011.png", np.zeros((48, 40), np.uint16))
    masks[11]["Height"] = masks[11]["Width"] = ""
    cut = masks.pop(12)
    write_tables(tmp_path, list(rows.values()), [*masks, cut])
    with (tmp_path / "chexmask.csv").open("rb+") as file:
        file.seek(-30, 2)
        file.truncate()
    datalist = run(tmp_path)
    assert reasons(tmp_path) == {
        "000.png": "missing_image",
        "001.png": "missing_mask",
        "002.png": "duplicate_row",
        "003.png": "duplicate_row",
        "004.png": "duplicate_name",
        "005.png": "bad_rle",
        "006.png": "bad_rle",
        "007.png": "shape_mismatch",
        "008.png": "bad_rle",
        "009.png": "unreadable",
        "010.png": "swapped_sides",
        "011.png": "constant_image",
        "012.png": "bad_rle",
    }
    assert sum(len(datalist.entries[split]) for split in SPLITS) == 11
    counts = {row["what"]: int(row["count"]) for row in rows_of(tmp_path / "out" / "filters.csv")}
    assert counts["cases found"] == 24 and counts["masks without a row"] == 1


# (height, width) of the image, then top, bottom, left, right of its black borders: tall, wide, uneven, none
BORDERS = [((700, 500), (90, 10, 0, 0)), ((480, 640), (0, 3, 111, 40)), ((600, 600), (31, 0, 0, 207)), ((450, 455), ())]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("shape", "borders"), BORDERS)
def test_preprocessed_masks_lie_on_the_image_again(tmp_path, shape, borders, depth):
    masks = {name: mask > 0 for name, mask in draw(3, shape)[1].items()}
    image = np.where(combine_masks(masks) > 0, 220.0, 60.0)  # so that the structures can be told from the image
    top, bottom, left, right = borders or (0, 0, 0, 0)
    image = np.pad(image, ((top, bottom), (left, right)))
    masks = {name: np.pad(mask, ((top, bottom), (left, right))) for name, mask in masks.items()}
    dark = np.random.default_rng(0).random(image.shape) < 0.5  # borders are not all zero: 1 in 8 bits, 511 in 16
    stored = image.astype(np.uint8) + (dark & (image == 0)).astype(np.uint8)
    if depth == 16:
        stored = np.where(image > 0, image * 256, dark * 511).astype(np.uint16)
    write_png(tmp_path / "images" / "a.png", stored)
    write_tables(tmp_path, [padchest_row("a.png")], [preprocessed_row("a.png", masks, stored)])
    inner = (slice(top, image.shape[0] - bottom), slice(left, image.shape[1] - right))
    square = np.zeros((max(shape), max(shape)), np.uint8)
    y, x = ((max(shape) - n) // 2 for n in shape)
    square[y : y + shape[0], x : x + shape[1]] = combine_masks(masks)[inner]
    for size in ((256, 256), (256, 320)):
        found = source(tmp_path, size)
        case = found.load(found.items[0])
        assert dice(case.label > 0, case.image > 0.5) >= 0.99
        truth = fit_label(square, size)
        for value, name in enumerate(STRUCTURES, start=1):
            assert dice(case.label == value, truth == value) >= 0.99, name


def test_borders_are_found_on_the_scale_of_eight_bits():
    pixels = np.zeros((6, 7), np.uint16)
    pixels[1:4, 2:6] = 511
    pixels[2:4, 3:5] = 512
    assert crop_borders(pixels).shape == (2, 2)
    assert crop_borders((pixels >> 8).astype(np.uint8)).shape == (2, 2)
    with pytest.raises(Rejected, match="constant_image"):
        crop_borders(np.full((4, 4), 511, np.uint16))


def test_monochrome1_is_turned_over(tmp_path):
    image, masks = draw(0)
    image = image.astype(np.uint16) * 200
    rows = [padchest_row("a.png"), padchest_row("b.png", PhotometricInterpretation_DICOM="MONOCHROME1")]
    write_png(tmp_path / "images" / "a.png", image)
    write_png(tmp_path / "images" / "b.png", 60000 - image)
    write_tables(tmp_path, rows, [original_row(row["ImageID"], masks) for row in rows])
    found = source(tmp_path)
    straight, turned = (found.load(item).image for item in found.items)
    np.testing.assert_allclose(straight, turned, atol=1e-5)


def test_images_within_archives_and_packed_tables_give_the_same(tmp_path, capsys):
    write_padchest(tmp_path, 12)
    plain = run(tmp_path, "--salt", "s", out="plain")
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        for path in sorted((tmp_path / "images" / "0").iterdir()):
            archive.write(path, f"0/{path.name}")
            archive.writestr(f"__MACOSX/0/._{path.name}", b"")
    (tmp_path / "archives").mkdir()
    shutil.move(tmp_path / "0.zip", tmp_path / "archives")
    (tmp_path / "archives" / "broken.zip").write_bytes(b"PK not really")
    with (tmp_path / "padchest.csv").open("rb") as table, gzip.open(tmp_path / "padchest.csv.gz", "wb") as packed:
        packed.write(table.read())
    (tmp_path / "padchest.csv").unlink()
    tables = ["--table", str(tmp_path / "padchest.csv.gz"), "--chexmask", str(tmp_path / "chexmask.csv")]
    options = ["--out", str(tmp_path / "zipped"), "--size", "24", "--salt", "s", "--workers", "2", "--name", "plain"]
    main(["padchest", str(tmp_path / "archives"), *tables, *options])
    assert read_datalist(tmp_path / "zipped" / "datalist.json").entries == plain.entries
    for path in (tmp_path / "plain" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "zipped" / "images" / path.name).read_bytes()
    counts = {row["what"]: int(row["count"]) for row in rows_of(tmp_path / "zipped" / "filters.csv")}
    assert counts["archives that cannot be opened"] == 1
    assert str(tmp_path / "archives" / "broken.zip") in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"strict: .*broken\.zip: this archive cannot be opened"):
        main(["padchest", str(tmp_path / "archives"), *tables, *options, "--strict"])


def test_unpacked_files_hide_those_in_archives(tmp_path):
    write_png(tmp_path / "0" / "a.png", np.eye(5, dtype=np.uint8))
    (tmp_path / "0" / ".b.png").touch()
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        archive.writestr("a.png", b"packed")
        archive.writestr("c.PNG", b"packed")
    places, broken = find_files([tmp_path], ".png")
    assert {name: [place.member for place in found] for name, found in places.items()} == {
        "a.png": [""],
        "c.PNG": ["c.PNG"],
    }
    assert not broken and open_place(places["c.PNG"][0]).read_bytes() == b"packed"
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_files([tmp_path / "nowhere"], ".png")


def test_masks_stay_in_their_file(tmp_path):
    """20 000 rows of 600 bytes: neither reading the table through nor the pickled source holds the masks."""
    _, masks = draw(0, (480, 400))
    runs = [original_row("x.png", masks)[column] for column in ("Left Lung", "Right Lung", "Heart")]
    with (tmp_path / "chexmask.csv").open("w") as file:
        file.write("ImageID,Dice RCA (Max),Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width\n")
        for i in range(20000):
            file.write(f'{i:05d}.png,1,0.9,"1,2\n3,4",{",".join(runs)},480,400\n')
    size = (tmp_path / "chexmask.csv").stat().st_size
    assert size > 5e7
    names = {f"{i:05d}.png" for i in range(0, 20000, 2)}
    tracemalloc.start()
    rows, others = index_masks(tmp_path / "chexmask.csv", names)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == others == 10000 and peak < 0.1 * size
    assert len(pickle.dumps(rows)) < 100 * len(rows)
    found, shape = read_masks(tmp_path / "chexmask.csv", "19998.png", rows["19998.png"][0])
    assert shape == (480, 400) and all((found[name] == (masks[name] > 0)).all() for name in STRUCTURES)
    with pytest.raises(OSError, match="has changed"):
        read_masks(tmp_path / "chexmask.csv", "00000.png", rows["19998.png"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "padchest.csv").write_text("ImageID,Labels\na,b\n"), "no column 'ImageDir'"),
        (
            lambda root: (root / "padchest.csv").write_text(
                (root / "padchest.csv").read_text().replace("\n7,", "\n7,7,")
            ),
            r"padchest.csv: PadChest's table cannot be read: line \d+: found 16 cells, expected 15",
        ),
        (
            lambda root: (root / "padchest.csv").write_text(
                (root / "padchest.csv").read_text().replace("WindowCenter_DICOM", "Labels", 1)
            ),
            "padchest.csv: PadChest's table cannot be read: found the column 'Labels' twice",
        ),
        (lambda root: (root / "padchest.csv").unlink(), "padchest.csv: PadChest's table cannot be read"),
        (lambda root: (root / "padchest.csv").write_text(""), "padchest.csv: PadChest's table cannot be read"),
        (lambda root: (root / "chexmask.csv").write_text("ImageID,Heart\na,b\n"), "no column 'Dice RCA"),
        (lambda root: (root / "chexmask.csv").write_text(""), "no column 'ImageID'"),
        (lambda root: (root / "chexmask.csv").write_bytes(b"ImageID,\rHeart"), "chexmask.csv: no CSV from byte 0 on"),
        (
            lambda root: (root / "padchest.csv").write_bytes(b"PK\3\4..."),
            "found a zip archive, expected CSV or .csv.gz",
        ),
        (lambda root: (root / "chexmask.csv").unlink(), "No such file"),
        (lambda root: shutil.rmtree(root / "images" / "0"), "no row passes the filters"),
        (lambda root: shutil.rmtree(root / "images"), "no such folder or zip archive"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, change, message):
    write_padchest(tmp_path, 2)
    change(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "4"], "size: found '4'"),
        (["--workers", "0"], "workers: found 0"),
        (["--seed", "one"], "seed: found 'one'"),
        (["--strict=maybe"], "strict: found 'maybe'"),
        (["--salt", ""], "salt: found an empty text"),
        (["--mapping", "out/names.json"], "mapping: out/names.json lies in out"),
    ],
)
def test_options_are_checked_before_the_tables_are_read(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for reader in ("_read_table", "find_files", "index_masks"):
        monkeypatch.setattr(f"data_prep.padchest.{reader}", lambda *_: pytest.fail("something was read"))
    with pytest.raises(SystemExit, match=message):
        main(["padchest", "images", "--table", "a.csv", "--chexmask", "b.csv", "--out", "out", *options])


def test_a_packed_table_of_masks_is_to_be_unpacked(tmp_path):
    for name in ("chexmask.csv.gz", "chexmask.csv"):  # whatever it is called
        (tmp_path / name).write_bytes(gzip.compress(b"ImageID,Dice RCA (Mean)"))
        with pytest.raises(ValueError, match=f"{name}: unpack CheXmask's table first"):
            index_masks(tmp_path / name, set())
    with pytest.raises(SystemExit, match="no folder of images given"):
        main(["padchest", "--table", "a", "--chexmask", "b", "--out", str(tmp_path / "out")])


@pytest.mark.skipif(not CHEXMASK.is_file(), reason="no rows of CheXmask: set SEGCFT_CHEXMASK to the table")
def test_real_rows_of_chexmask():
    with CHEXMASK.open(encoding="utf-8") as file:
        names = [row["ImageID"] for row in csv.DictReader(file)]
    rows, others = index_masks(CHEXMASK, set(names))
    assert len(rows) == 15 and others == 0 and all(0 < row[0].rca <= 1 for row in rows.values())
    for name in names:
        masks, shape = read_masks(CHEXMASK, name, rows[name][0])
        assert shape is None
        label = combine_masks(masks)
        columns = [np.nonzero(label == value)[1].mean() for value in (1, 2, 3)]
        assert columns[1] < columns[2] < columns[0]  # the patient's left is on the picture's right
        assert all(0.02 < (label == value).mean() < 0.3 for value in (1, 2, 3))
