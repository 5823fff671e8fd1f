import csv
import errno
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import write_dicom
from drawn_chest import STRUCTURES, draw, write_case, write_masks, write_png
from monai.transforms import LoadImaged
from PIL import Image

from data_prep.__main__ import main
from data_prep.pictures import draw_contact_sheet, draw_variables
from data_prep.splits import FRACTIONS
from segcft_ext.datalist import read_datalist
from segcft_ext.datalist_format import SPLITS
from segcft_ext.measurements import measure_label_map

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def chests(tmp_path):
    """Twelve cases in each of two folders, and a table."""
    rows = ["file,hospital,age,sex,patient"]
    for source in ("north", "south"):
        for i in range(12):
            write_case(tmp_path / source, f"{source}{i}", seed=i + (100 if source == "south" else 0))
            rows.append(f"{source}{i}.png,{source},{20 + i},{'FM'[i % 2]},{source}-{i // 2}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    return tmp_path


def run(root, *options, out="out", folders=("north", "south")):
    main(["folder", *(str(root / f) for f in folders), "--out", str(root / out), "--size", "24", *options])
    return read_datalist(root / out / "datalist.json")


def rejected(root, out="out"):
    with (root / out / "rejected.csv").open() as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def names(root, out="out"):
    return json.loads((root / f"{out}.mapping.json").read_text())["cases"]


def reasons(root, out="out"):
    cases = names(root, out)
    return {cases[identifier]["name"]: reason for identifier, reason in rejected(root, out).items()}


def all_entries(datalist):
    return [entry for split in SPLITS for entry in datalist.entries[split]]


TABLE = ["--table", "cases.csv", "--id_column", "file"]


def test_a_folder_becomes_a_datalist(chests, monkeypatch, capsys):
    monkeypatch.chdir(chests)
    datalist = run(chests, *TABLE, "--variables", '{"age": "continuous", "sex": ["F", "M"]}', "--units", '{"age": "y"}')
    assert datalist.variable_names == ["left_lung_area", "right_lung_area", "heart_area", "age", "sex"]
    assert [variable.unit for variable in datalist.variables] == ["percent"] * 3 + ["y", ""]
    assert datalist.labels == {"background": 0, "left_lung": 1, "right_lung": 2, "heart": 3}
    assert len(all_entries(datalist)) == 24 and not rejected(chests)
    draw_contact_sheet(datalist, chests / "sheet.png")
    draw_variables(datalist, chests / "variables.png")
    for name in ("sheet.png", "variables.png"):
        assert np.asarray(Image.open(chests / name).convert("L")).std() > 5
    assert "24 cases found, 24 accepted, 0 rejected" in capsys.readouterr().out
    for entry in all_entries(datalist):
        number = int(names(chests)[entry["id"]]["name"][5:])
        assert (entry["variables"]["age"], entry["variables"]["sex"]) == (20 + number, number % 2)


def test_what_is_stored_is_what_monai_reads_and_the_ruler_measures(chests):
    datalist = run(chests)
    assert (datalist.size, datalist.intensity_range) == ((24, 24), (0, 65535))
    load = LoadImaged(["image", "label"], reader="PILReader", reverse_indexing=False, ensure_channel_first=True)
    for item in datalist.items("test"):
        loaded = load(item)
        assert loaded["image"].shape == loaded["label"].shape == (1, 24, 24)
        assert loaded["image"].min() >= 0 and 60000 < loaded["image"].max() <= 65535
        stored = np.asarray(Image.open(item["label"]))
        np.testing.assert_array_equal(loaded["label"][0], stored)
        values = measure_label_map(datalist.measurements(), loaded["label"][None].as_tensor(), datalist.num_classes)
        np.testing.assert_allclose(values[0], item["variables"], rtol=1e-6)
        assert item["variables"][0] == pytest.approx(100 * (stored == 1).mean(), rel=1e-6)


def test_a_run_is_repeatable_with_any_number_of_workers(chests):
    run(chests, out="one")
    salt = json.loads((chests / "one.mapping.json").read_text())["salt"]
    run(chests, "--salt", salt, "--workers", "2", "--name", "one", out="two")
    files = sorted(path.relative_to(chests / "one") for path in (chests / "one").rglob("*") if path.is_file())
    assert len(files) == 2 * 24 + 2
    for file in files:
        assert (chests / "one" / file).read_bytes() == (chests / "two" / file).read_bytes(), file


def test_the_seed_decides_the_splits_and_the_salt_only_the_ids(chests):
    def splits(out):
        cases = names(chests, out)
        datalist = read_datalist(chests / out / "datalist.json")
        return {cases[e["id"]]["name"]: (s, e.get("use")) for s in SPLITS for e in datalist.entries[s]}

    for out, options in (("a", []), ("b", ["--salt", "x"]), ("c", ["--seed", "1"])):
        run(chests, *options, out=out)
    assert splits("a") == splits("b") and set(names(chests, "a")).isdisjoint(names(chests, "b"))
    assert splits("a") != splits("c")


def test_ids_stay_when_the_mapping_stays(chests):
    first = {entry["id"] for entry in all_entries(run(chests))}
    (chests / "north" / "images" / "north0.png").unlink()
    second = {entry["id"] for entry in all_entries(run(chests))}
    assert second < first and len(second) == 23
    assert {path.stem for path in (chests / "out" / "images").iterdir()} == second


def test_patients_stay_together_and_sources_may_come_from_the_table(chests, monkeypatch):
    monkeypatch.chdir(chests)
    (chests / "all").mkdir()
    for kind in ("images", "masks"):
        (chests / "north" / kind).rename(chests / "all" / kind)
    for path in list((chests / "south").rglob("*.png")):
        path.rename(chests / "all" / path.relative_to(chests / "south"))
    datalist = run(chests, *TABLE, "--patient_column", "patient", "--source_column", "hospital", folders=["all"])
    assert {entry["source"] for entry in all_entries(datalist)} == {"north", "south"}
    cases, parts = names(chests), {}
    for split in SPLITS:
        for entry in datalist.entries[split]:
            parts.setdefault(cases[entry["id"]]["patient"], set()).add((split, entry.get("use")))
    assert len(parts) == 12 and all(len(found) == 1 for found in parts.values())
    assert {split for split, _ in set.union(*parts.values())} == set(FRACTIONS)


def test_unusable_cases_are_named_with_a_reason_and_the_rest_goes_on(chests):
    root = chests / "north"
    image, masks = draw()
    (root / "images" / "north0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (root / "images" / "notes.txt").write_text("not an image")
    (root / "masks" / "heart" / "north1.png").unlink()
    (root / "images" / "north2.png").unlink()
    write_masks(root, "north3", {"heart": masks["heart"][:-1]})
    write_masks(root, "north4", {"heart": np.zeros_like(masks["heart"])})
    write_masks(root, "north5", {"heart": masks["left_lung"]})
    write_masks(root, "north6", {"left_lung": masks["right_lung"], "right_lung": masks["left_lung"]})
    write_masks(root, "north7", {"heart": masks["heart"] // 255 * 2 + masks["left_lung"] // 255})
    write_png(root / "images" / "north8.png", np.full_like(image, 9))
    nibabel.save(nibabel.Nifti1Image(image.T.astype(np.int16), np.eye(4)), root / "images" / "north9.nii")
    write_masks(root, "north10", {name: np.roll(mask, (-4, 3), (0, 1)) for name, mask in draw(10)[1].items()})
    (root / ".hidden").mkdir()
    (root / "images" / ".DS_Store").touch()
    (root / "images" / "loop").symlink_to(root / "images")
    datalist = run(chests)
    assert reasons(chests) == {
        "north0": "unreadable",
        "notes.txt": "unsupported_format",
        "north1": "missing_mask",
        "north2": "missing_image",
        "north3": "shape_mismatch",
        "north4": "empty_structure",
        "north5": "structures_overlap",
        "north6": "swapped_sides",
        "north7": "mask_not_binary",
        "north8": "constant_image",
        "north9": "duplicate_name",
        "north10": "shifted_masks",
    }
    assert len(all_entries(datalist)) + len(rejected(chests)) == len(names(chests)) == 25


def test_table_values_missing_inferred_and_wrong(chests, monkeypatch):
    table = ["id\tage\tsex\tgrade\tname"]
    table += [
        f"north{i}\t{[0, '', 'NA', 'old', 50][min(i, 4)]}\t{'FM'[i % 2]}\t{'abc'[i % 3]}\tDoe{i}" for i in range(11)
    ]
    table += ["north10\t50\tF\ta\tDoe", "ghost\t1\tF\ta\tDoe"]
    (chests / "cases.tsv").write_text("\n".join(table))
    monkeypatch.chdir(chests)
    options = ["--table", "cases.tsv", "--missing", '{"age": 0}']
    datalist = run(
        chests, *options, "--variables", '{"age": "continuous", "sex": ["M", "F"], "grade": ["c", "b", "a"]}'
    )
    assert [variable.kind for variable in datalist.variables[3:]] == ["continuous", "binary", "categorical"]
    assert reasons(chests) == {"north3": "bad_value", "north10": "duplicate_row"}
    found = {names(chests)[e["id"]]["name"]: list(e["variables"].values())[3:] for e in all_entries(datalist)}
    assert found["north0"] == [None, 1, 2]
    assert found["north1"] == [None, 0, 1]
    assert found["north2"] == [None, 1, 0]
    assert found["north4"] == [50, 1, 1]
    assert found["north11"] == found["south0"] == [None, None, None]

    datalist = run(chests, "--table", "cases.tsv", "--variables", "sex,grade")
    assert [v.categories for v in datalist.variables[3:]] == [("F", "M"), ("a", "b", "c")]
    with pytest.raises(SystemExit, match="12 different values, so its kind cannot be inferred"):
        run(chests, "--table", "cases.tsv", "--variables", "name")


def test_a_category_called_none_is_kept_where_it_is_listed_and_named_where_it_is_not(chests, monkeypatch, capsys):
    grades = ("none", "mild", "NA", "severe")
    rows = [f"north{i},{grades[i % 4]}" for i in range(12)]
    (chests / "grades.csv").write_text("\n".join(["id,grade", *rows]))
    monkeypatch.chdir(chests)
    options = ["--table", "grades.csv", "--variables"]
    datalist = run(chests, *options, '{"grade": ["none", "mild", "severe"]}', folders=["north"])
    found = {names(chests)[e["id"]]["name"]: e["variables"]["grade"] for e in all_entries(datalist)}
    assert [found[f"north{i}"] for i in range(4)] == [0, 1, None, 2]
    assert "missing values" not in capsys.readouterr().out

    datalist = run(chests, *options, "grade", folders=["north"])
    assert datalist.variables[-1].categories == ("mild", "severe")
    listed = '--variables \'{"grade": ["none", "mild", "severe"]}\''
    text = f"grade: 3 cells with 'none' are missing values; if that is a category, list them: {listed}"
    assert text in capsys.readouterr().out


def test_long_numbers_are_compared_digit_by_digit(chests, monkeypatch):
    codes = [1234567, 1234568.0, "1234569.0", 12345678901234567890]
    rows = [f"north{i},{codes[i % 4]},{codes[i % 4]}" for i in range(12)]
    (chests / "codes.csv").write_text("\n".join(["id,code,scanner", *rows]))
    monkeypatch.chdir(chests)
    kinds = '{"code": "continuous", "scanner": ["1234567", 1234568, "1234569", 12345678901234567890]}'
    options = ["--table", "codes.csv", "--variables", kinds, "--missing", '{"code": 1234568}']
    datalist = run(chests, *options, folders=["north"])
    found = {names(chests)[e["id"]]["name"]: e["variables"] for e in all_entries(datalist)}
    assert [found[f"north{i}"]["code"] for i in range(4)] == [1234567, None, 1234569, float(codes[3])]
    assert [found[f"north{i}"]["scanner"] for i in range(4)] == [0, 1, 2, 3]
    assert datalist.variables[-1].categories == ("1234567", "1234568", "1234569", "12345678901234567890")


def test_cases_whose_patient_is_missing_are_patients_of_their_own(chests, monkeypatch):
    rows = [f"north{i},{('', 'NA', 'nan', 'one')[i % 4]}" for i in range(12)]
    (chests / "patients.csv").write_text("\n".join(["id,patient", *rows]))
    monkeypatch.chdir(chests)
    run(chests, "--table", "patients.csv", "--patient_column", "patient")
    patients = [case["patient"] for case in names(chests).values()]
    assert (patients.count(None), patients.count("one")) == (21, 3)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (("file", "age"), ("north0", "40", ""), "the table cannot be read: line 2: found 3 cells, expected 2"),
        (("file", "age", "sex"), ("north0", "40"), "the table cannot be read: line 2: found 2 cells, expected 3"),
        (("file", "age", "age"), ("north0", "40", "90"), "found the column 'age' twice, expected every name once"),
    ],
)
def test_a_table_whose_cells_may_belong_to_another_column_is_refused(chests, suffix, header, row, message):
    table, separator = chests / f"table{suffix}", "," if suffix == ".csv" else "\t"
    table.write_text("\n".join(separator.join(cells) for cells in (header, row)))
    with pytest.raises(SystemExit, match=f"table{suffix}: {message}"):
        run(chests, "--table", str(table), "--id_column", "file", "--variables", "age")


def test_a_row_is_not_given_to_two_cases(chests, monkeypatch):
    write_case(chests / "south", "north0", seed=50)
    monkeypatch.chdir(chests)
    run(chests, *TABLE, "--variables", "age")
    assert reasons(chests) == {"north0": "duplicate_row"} and len(rejected(chests)) == 2
    datalist = run(chests, *TABLE, "--variables", "age", "--source_column", "hospital")
    assert not rejected(chests)
    ages = {(e["source"], names(chests)[e["id"]]["name"]): e["variables"]["age"] for e in all_entries(datalist)}
    assert (ages["north", "north0"], ages["south", "north0"]) == (20, None)


def test_a_picture_is_taken_once_whatever_its_name_and_format(chests):
    image, masks = draw(0)
    write_dicom(chests / "south" / "images" / "again.dcm", image * 7.0)
    write_masks(chests / "south", "again", masks)
    datalist = run(chests)
    assert reasons(chests) == {"again": "duplicate_image"} and len(all_entries(datalist)) == 24
    assert len(list((chests / "out" / "images").iterdir())) == 24
    text = (chests / "out" / "rejected.csv").read_text()
    assert next(i for i, case in names(chests).items() if case["name"] == "north0") in text


def write_dicom_source(root, spacing, element="PixelSpacing"):
    for i in range(8):
        image, masks = draw(i)
        (root / "images").mkdir(parents=True, exist_ok=True)
        write_dicom(root / "images" / f"1.2.840.{i}", image, **{element: spacing}, PatientName="Doe^Jane")
        write_masks(root, f"1.2.840.{i}", masks)


def test_dicom_images_give_areas_in_square_millimetres(tmp_path):
    write_dicom_source(tmp_path / "dicom", ["2", "2"])
    datalist = run(tmp_path, folders=["dicom"])
    assert {variable.unit for variable in datalist.variables} == {"mm2"}
    for entry in all_entries(datalist):
        _, masks = draw(int(names(tmp_path)[entry["id"]]["name"][-1]))
        assert entry["spacing"] == pytest.approx([4, 4])
        lung = 2 * 2 * ((masks["right_lung"] > 0) & (masks["heart"] == 0)).sum()
        assert entry["variables"]["right_lung_area"] == pytest.approx(lung, rel=0.1)


def test_areas_at_the_detector_are_noted(tmp_path, capsys):
    write_dicom_source(tmp_path / "dicom", ["2", "2"], "ImagerPixelSpacing")
    datalist = run(tmp_path, folders=["dicom"])
    assert {variable.unit for variable in datalist.variables} == {"mm2"}
    assert all(entry["notes"] == ["detector_spacing", "burned_in_unknown"] for entry in all_entries(datalist))
    assert "are those of the shadow): 8" in capsys.readouterr().out


def test_unit_follows_what_is_known(chests):
    write_dicom_source(chests / "dicom", ["2", "2"])
    folders = ["north", "dicom"]
    assert run(chests, folders=folders).variables[0].unit == "percent"
    datalist = run(chests, "--unit", "mm2", folders=folders)
    assert {entry["source"] for entry in all_entries(datalist)} == {"dicom"}
    assert set(reasons(chests).values()) == {"spacing_unknown"} and len(rejected(chests)) == 12


def test_nifti_masks_and_other_structures(tmp_path):
    for i in range(8):
        image, masks = draw(i)
        for folder, pixels in (("img", image), ("seg/h", masks["heart"])):
            (tmp_path / "1.10" / folder).mkdir(parents=True, exist_ok=True)
            nifti = nibabel.Nifti1Image(pixels.T.astype(np.int16), np.diag([-1, -1, 1, 1]))
            nibabel.save(nifti, tmp_path / "1.10" / folder / f"{i}.nii.gz")
    datalist = run(tmp_path, "--images", "img", "--masks", '{"heart": "seg/h"}', "--size", "20x30", folders=["1.10"])
    assert datalist.labels == {"background": 0, "heart": 1} and datalist.size == (20, 30)
    assert {entry["source"] for entry in all_entries(datalist)} == {"1.10"}


def test_a_nifti_mask_at_another_place_than_the_image_is_rejected(tmp_path):
    lps = np.diag([-0.5, -0.5, 1, 1])
    rounded, moved, turned = lps.copy(), lps.copy(), np.diag([-0.5, 0.5, 1, 1])
    rounded[0, 3], moved[0, 3] = 0.01, 0.1
    for i, affine in enumerate([rounded, moved, turned, None, *[lps] * 8]):
        image, masks = draw(i, (40, 40))
        for folder, pixels in (("images", image), ("masks/heart", masks["heart"])):
            path = tmp_path / "clinic" / folder / f"{i}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            place = affine if folder == "masks/heart" else lps
            if place is None:
                write_png(path.with_suffix(".png"), pixels)
            else:
                nibabel.save(nibabel.Nifti1Image(pixels.T.astype(np.int16), place), path)
    run(tmp_path, "--structures", "heart", folders=["clinic"])
    assert reasons(tmp_path) == {"1": "grid_mismatch", "2": "grid_mismatch"}


def test_no_name_reaches_the_prepared_folder(tmp_path):
    write_dicom_source(tmp_path / "clinic", ["1", "1"])
    images = tmp_path / "clinic" / "images"
    for i in range(2):
        (images / f"1.2.840.{i}").rename(images / f"Jane Doe {i}.dcm")
    rows = "".join(f"1.2.840.{i},{'Doe' if i == 2 else 30},Doe^Jane{i}\n" for i in range(8))
    (tmp_path / "cases.csv").write_text("id,age,patient\n" + rows)
    options = ["--variables", '{"age": "continuous"}', "--patient_column", "patient"]
    fractions = ["--fractions", '{"training": 0.4, "validation": 0.3, "test": 0.3}']
    run(tmp_path, "--table", str(tmp_path / "cases.csv"), *options, *fractions, folders=["clinic"])
    assert sorted(rejected(tmp_path).values()) == ["bad_value", *["missing_image"] * 2, *["missing_mask"] * 2]
    for path in (tmp_path / "out").rglob("*"):
        assert "Doe" not in path.name and "1.2.840" not in path.name  # "840" alone may be part of a hash
        if path.is_file():
            assert b"Doe" not in path.read_bytes() and b"1.2.840" not in path.read_bytes()
    assert (tmp_path / "out.mapping.json").stat().st_mode & 0o077 == 0
    with pytest.raises(SystemExit, match="free of names"):
        run(tmp_path, "--mapping", str(tmp_path / "out" / "names.json"), folders=["clinic"])


@pytest.mark.parametrize("options", [["--out", "file/out"], ["--mapping", "file/names.json"], ["--out", "/proc/out"]])
def test_an_output_that_cannot_be_written_is_named_before_any_work(chests, monkeypatch, options):
    monkeypatch.chdir(chests)
    monkeypatch.setattr("data_prep.folder.FolderSource.load", lambda *_: pytest.fail("work was done"))
    (chests / "file").touch()
    with pytest.raises(SystemExit, match=r"data_prep: \S+: cannot be written to"):
        main(["folder", "north", "--out", str(chests / "out"), *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--size", "large"], "size: found 'large'"),
        (["--size", "4"], "size: found '4'"),
        (["--size", "64x"], "size: found '64x', expected whole numbers, as 64, 96x64 or 96,64"),
        (["--size", "64,,64"], "size: found '64,,64'"),
        (["--unit", "cm2"], "unit: found 'cm2'"),
        (["--workers", "0"], "workers: found 0"),
        (["--seed", "one"], "seed: found 'one'"),
        (["--seed", "-1"], "seed: found -1, expected a whole number from 0 on"),
        (["--out"], "option --out: found no value; see python -m data_prep folder --help"),
        (["--table"], "--table: found no value"),
        (["--salt"], "--salt: found no value"),
        (["--images", "--strict"], "--images: found no value"),
        (["--masks", '{"heart": 1}'], "masks: found {'heart': 1}, expected the name of a folder"),
        (["--fractions", '{"training": 1}'], "fractions"),
        (["--fractions", "0.8,0.1,0.1"], "fractions: found '0.8,0.1,0.1', expected JSON as '{\"training\": 0.7"),
        (
            [*TABLE, "--variables", "age", "--units", "years"],
            "units: found 'years', expected JSON as '{\"age\": \"years\"}'",
        ),
        ([*TABLE, "--variables", "age", "--missing", "0"], "missing: found '0', expected JSON as '{\"age\": 0}'"),
        (["--labels", "[1, 2]"], r"labels: found '\[1, 2\]', expected structures and their values, as lumen=1"),
        (["--variables", "age"], "need a --table"),
        (["--table", "nowhere.csv", "--variables", "age"], "nowhere.csv: the table cannot be read"),
        ([*TABLE, "--variables", "weight"], "no column 'weight'; the table has"),
        (TABLE, "say which columns are wanted"),
        ([*TABLE, "--variables", "age,,sex"], "variables: found 'age,,sex', expected names, as a,b"),
        (["--structures", "[heart"], "structures: found '.heart', expected names, as a,b"),
        ([*TABLE, "--variables", '{"age": "real"}'], "variables: 'age' is 'real'"),
        ([*TABLE, "--variables", '{"age": 3}'], "variables: 'age' is 3, expected \"continuous\" or a list"),
        ([*TABLE, "--variables", '{"age": '], "variables: .* is no JSON"),
        ([*TABLE, "--variables", "age", "--units", '{"weight": "kg"}'], "units: .'weight'. are not among"),
        (["--masks", "nowhere"], "expected there: left_lung"),
        (["--structures", "left_lung,left_lung,heart"], "structures: found left_lung,left_lung,heart, expected each"),
        (["--out", "circle"], "circle: cannot be written to"),
        (["--out", "north/images/out"], "out: north/images/out/images lies in the folder .*north/images, which"),
        (["--out", "north"], "out: north/images lies in the folder .*north/images, which"),
        (["--out", "north/masks/heart"], "out: north/masks/heart/images lies in the folder .*north/masks/heart, which"),
        (["--strikt"], "no option --strikt; see python -m data_prep folder --help"),
        (["--id-colum=file"], "no option --id-colum;"),
    ],
)
def test_mistakes_end_with_one_line(chests, monkeypatch, options, message):
    monkeypatch.chdir(chests)
    (chests / "circle").symlink_to("circle")
    with pytest.raises(SystemExit, match=message):
        run(chests, *options)
    assert not (chests / "out" / "datalist.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "4"], "size: found '4'"),
        (["--unit", "mm3"], "unit: found 'mm3', expected one of auto, percent, mm2"),
        (["--workers", "0"], "workers: found 0"),
        (["--seed", "one"], "seed: found 'one'"),
        (["--fractions", '{"training": 1}'], "fractions"),
        (["--strict=maybe"], "strict: found 'maybe'"),
        (["--salt", ""], "salt: found an empty text"),
        (["--mapping", "out/names.json"], "mapping: out/names.json lies in out"),
        (["--mapping", "cases.csv"], "cases.csv: expected the mapping of an earlier run"),
        (["--out", "north"], "out: north/images lies in the folder"),
        (["--labels", "heart"], "labels: found 'heart'"),
        (["--labels", "heart=1,left_lung=1"], "labels: found"),
        (["--structures", "heart,"], "structures: found"),
        (["--variables", '{"age": "real"}'], "variables: 'age' is 'real'"),
        (["--variables", "age", "--units", '{"weight": "kg"}'], "units: .'weight'. are not among"),
        (["--variables", "age", "--missing", "0"], "missing: found '0'"),
    ],
)
def test_options_are_checked_before_any_table_or_folder_is_read(chests, monkeypatch, options, message):
    monkeypatch.chdir(chests)
    monkeypatch.setattr("data_prep.rows.read_table", lambda path: pytest.fail("a table was read"))
    monkeypatch.setattr("data_prep.folder._find_files", lambda folders: pytest.fail("a folder was read"))
    tables = ["--table", "cases.csv", *(["--mask_table", "cases.csv"] if "--labels" not in options else [])]
    with pytest.raises(SystemExit, match=message):
        main(["folder", "north", *tables, "--out", "out", *options])
    assert not (chests / "out").exists()


def test_links_to_folders_are_followed_and_circles_of_them_are_not(chests):
    (chests / "elsewhere").mkdir()
    for folder in ("images", *(f"masks/{name}" for name in STRUCTURES)):
        (chests / "north" / folder / "linked").symlink_to(chests / "south" / folder)
        (chests / "north" / folder / "up").symlink_to(chests / "north" / folder)
    (chests / "south" / "images" / "back").symlink_to(chests / "elsewhere")
    (chests / "elsewhere" / "forth").symlink_to(chests / "south" / "images")
    datalist = run(chests, folders=["north"])
    expected = {f"north{i}" for i in range(12)} | {f"linked/south{i}" for i in range(12)}
    assert {names(chests)[entry["id"]]["name"] for entry in all_entries(datalist)} == expected
    assert not rejected(chests)


def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(chests, monkeypatch):
    closed, scandir = chests / "north" / "images" / "closed", os.scandir
    closed.mkdir()

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(SystemExit, match=f"Permission denied: '{closed}'"):
        run(chests)


def test_the_folder_one_is_in_can_be_the_output(chests, monkeypatch):
    (chests / "here").mkdir()
    monkeypatch.chdir(chests / "here")
    main(["folder", str(chests / "north"), "--size", "24", "--out", "."])
    assert len(all_entries(read_datalist(chests / "here" / "datalist.json"))) == len(names(chests, "here")) == 12


def test_a_folder_that_is_a_circle_of_links_ends_with_one_line(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SystemExit, match="circle/images: no such folder"):
        run(tmp_path, folders=["circle"])


def test_a_case_without_a_row_is_noted(chests, monkeypatch, capsys):
    monkeypatch.chdir(chests)
    rows = (chests / "cases.csv").read_text().splitlines()
    (chests / "cases.csv").write_text("\n".join([rows[0], *rows[4:]]))
    datalist = run(chests, *TABLE, "--variables", "age,sex")
    noted = [entry for entry in all_entries(datalist) if entry.get("notes") == ["missing_row"]]
    assert {names(chests)[entry["id"]]["name"] for entry in noted} == {"north0", "north1", "north2"}
    assert all(entry["variables"]["age"] is None and entry["variables"]["sex"] is None for entry in noted)
    assert len(all_entries(datalist)) == 24 and "variables are missing): 3" in capsys.readouterr().out
