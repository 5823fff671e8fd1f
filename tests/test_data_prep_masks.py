"""Label maps, run lengths in tables, and tables in every format, through the command line."""

import nibabel
import numpy as np
import pandas as pd
import pytest
from drawn_chest import STRUCTURES, draw, write_png
from PIL import Image
from test_data_prep_folder import all_entries, names, reasons, run

from data_prep.cases import Rejected
from data_prep.masks import LabelMaps, MaskTable
from data_prep.readers import read_picture

pytestmark = pytest.mark.usefixtures("no_pictures")

COUNT = 12
LABELS = '{"left_lung": 50, "right_lung": [20], "heart": 7}'


def encode(mask):
    """Start and length of each run, starts counted from 1."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel() > 0, [0]]).astype(int)))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(steps[::2], steps[1::2]))


@pytest.fixture
def clinic(tmp_path):
    """Images, label maps of their own values (heart on top), and a table of run lengths."""
    rows = []
    for i in range(COUNT):
        image, masks = draw(i)
        label = np.zeros(image.shape, np.uint8)
        for value, name in zip((50, 20, 7), STRUCTURES):
            label[masks[name] > 0] = value
        write_png(tmp_path / "clinic" / "images" / f"{i}.png", image)
        write_png(tmp_path / "clinic" / "maps" / f"{i}.png", label)
        rows.append({"id": f"{i}.png", "Heart": encode(masks["heart"]), **{n: encode(masks[n]) for n in STRUCTURES}})
    pd.DataFrame(rows).to_csv(tmp_path / "masks.csv", index=False)
    return tmp_path


def stored(datalist):
    """Stored label maps by the case's name, which is no secret here."""
    root = datalist.path.parent
    cases = names(root.parent, root.name)
    return {cases[e["id"]]["name"]: np.asarray(Image.open(root / e["label"])) for e in all_entries(datalist)}


def test_label_maps_and_run_lengths_give_what_folders_of_masks_give(clinic):
    for i in range(COUNT):
        for name, mask in draw(i)[1].items():
            write_png(clinic / "clinic" / "masks" / name / f"{i}.png", mask)
    found = [
        stored(run(clinic, *options, out=out, folders=["clinic"]))
        for out, options in (
            ("a", []),
            ("b", ["--masks", "maps", "--labels", LABELS]),
            ("c", ["--mask_table", str(clinic / "masks.csv")]),
            ("d", ["--mask_table", str(clinic / "masks.csv"), "--masks", '{"heart": "Heart"}']),
            ("e", ["--masks", "maps", "--labels", "left_lung=50, right_lung=20-22, heart=7"]),
        )
    ]
    assert len(found[0]) == COUNT
    for name, label in found[0].items():
        np.testing.assert_array_equal(found[1][name], label)
        np.testing.assert_array_equal(found[2][name], label)
        np.testing.assert_array_equal(found[4][name], label)
        assert (label == 3).sum() == (found[3][name] == 1).sum() and found[3][name].max() == 1


def test_label_maps_with_a_palette_are_read(clinic):
    plain = stored(run(clinic, "--masks", "maps", "--labels", LABELS, out="a", folders=["clinic"]))
    for path in (clinic / "clinic" / "maps").iterdir():
        picture = Image.open(path).convert("P")
        picture.putpalette([value for i in range(256) for value in (i, 255 - i, 37 * i % 256)])
        picture.save(path)
    palette = stored(run(clinic, "--masks", "maps", "--labels", LABELS, out="b", folders=["clinic"]))
    assert len(plain) == COUNT and plain.keys() == palette.keys()
    for name, label in plain.items():
        np.testing.assert_array_equal(palette[name], label)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_label_maps_that_were_saved_as_scaled_integers_are_whole(tmp_path, dtype):
    """As nibabel saves floats with the header of an image of integers."""
    image = nibabel.Nifti1Image(np.arange(64, dtype=float).reshape(8, 8) % 15, np.eye(4))
    image.set_data_dtype(dtype)
    image.to_filename(tmp_path / "a.nii")
    stored = read_picture(tmp_path / "a.nii")
    assert (stored.pixels != np.rint(stored.pixels)).any()
    values = {f"s{value}": [value] for value in range(1, 15)}
    masks = LabelMaps("maps", values).read(0, {"label map": tmp_path / "a.nii"}, stored)
    for name, (value,) in values.items():
        np.testing.assert_array_equal(masks[name], np.abs(stored.pixels - value) < 0.5)
    halves = nibabel.Nifti1Image(np.rint(stored.pixels.T) / 2, image.affine)
    halves.to_filename(tmp_path / "b.nii")
    with pytest.raises(Rejected, match=r"7 unknown values: 0\.5, 1\.5, 2\.5"):
        LabelMaps("maps", values).read(0, {"label map": tmp_path / "b.nii"}, read_picture(tmp_path / "b.nii"))


def test_a_mask_of_the_background_is_rejected(clinic):
    for i in range(COUNT):
        heart = draw(i)[1]["heart"]
        write_png(clinic / "clinic" / "masks" / "heart" / f"{i}.png", 255 - heart if i == 1 else heart)
    run(clinic, "--structures", "heart", folders=["clinic"])
    assert reasons(clinic) == {"1": "inverted_mask"}


def test_the_columns_of_the_masks_are_part_of_what_a_case_depends_on(clinic):
    found = []
    for left, right in (("left_lung", "right_lung"), ("right_lung", "left_lung"), ("left_lung", "right_lung")):
        masks = MaskTable(clinic / "masks.csv", {"left_lung": left, "right_lung": right})
        masks.match([("clinic", str(i)) for i in range(COUNT)])
        found.append(masks.fingerprint(0))
    assert found[0] == found[2] != found[1]


def test_unknown_values_of_a_label_map_reject_and_listed_ones_are_ignored(clinic):
    folder = clinic / "clinic" / "maps"
    label = np.asarray(Image.open(folder / "0.png")).copy()
    label[:3, :3] = 99
    write_png(folder / "0.png", label)
    (folder / "1.png").unlink()
    write_png(folder / "2.png", label[:-1])
    lungs = np.asarray(Image.open(folder / "3.png"))
    write_png(folder / "3.png", np.where(lungs == 7, 0, lungs).astype(np.uint8))
    (folder / "4.png").write_bytes(b"")
    run(clinic, "--masks", "maps", "--labels", LABELS, folders=["clinic"])
    assert reasons(clinic) == {
        "0": "unknown_label",
        "1": "missing_mask",
        "2": "shape_mismatch",
        "3": "empty_structure",
        "4": "unsupported_format",
    }
    run(clinic, "--masks", "maps", "--labels", LABELS.replace("{", '{"background": [99], '), folders=["clinic"])
    assert "0" not in reasons(clinic)


def test_faults_of_a_table_of_run_lengths_reject_one_case_each(clinic, capsys):
    frame = pd.read_csv(clinic / "masks.csv", dtype=str)
    frame.loc[0, "heart"] = "1 2 3"
    frame.loc[1, "heart"] = ""
    frame.loc[2, "id"] = "ghost"
    frame = pd.concat([frame, frame[3:4]])
    frame.to_csv(clinic / "masks.csv", index=False)
    run(clinic, "--mask_table", str(clinic / "masks.csv"), folders=["clinic"])
    assert reasons(clinic) == {"0": "bad_rle", "1": "missing_mask", "2": "missing_mask", "3": "duplicate_row"}
    assert "1 rows of the mask table belong to no file" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".parquet"])
def test_tables_of_every_format_say_the_same(clinic, suffix):
    ages = [30, 40.5, None, *range(50, 50 + COUNT - 3)]
    sexes = ["F", "M", None, *"FMFMFMFMF"]
    frame = pd.DataFrame({"id": range(COUNT), "age": ages, "sex": sexes, "remark": "x"})
    path = clinic / f"cases{suffix}"
    {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        ".xlsx": lambda: frame.to_excel(path, index=False),
        ".parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    options = ["--masks", "maps", "--labels", LABELS, "--table", str(path), "--variables", "age,sex"]
    datalist = run(clinic, *options, folders=["clinic"])
    found = {names(clinic)[e["id"]]["name"]: list(e["variables"].values())[3:] for e in all_entries(datalist)}
    assert [found[str(i)] for i in range(4)] == [[30, 0], [40.5, 1], [None, None], [50, 0]]
    path.write_bytes(path.read_bytes()[:40] if suffix in (".xlsx", ".parquet") else b"\xff\xfe\xff")
    with pytest.raises(SystemExit, match="the table cannot be read"):
        run(clinic, *options, folders=["clinic"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--masks", "maps", "--labels", "{}", "--mask_table", "m.csv"], "either label maps or in a --mask_table"),
        (["--masks", "maps", "--labels", "3"], "labels: found"),
        (["--masks", "maps", "--labels", '{"heart": "x"}'], "labels: found"),
        (["--masks", "maps", "--labels", '{"heart": 0}'], "labels: found .* 0 for the background alone"),
        (["--masks", "maps", "--labels", "heart=1,left_lung=1-2"], "labels: found .* expected every value once"),
        (["--masks", "maps", "--labels", "{}"], "labels: found '{}', expected structures and their values"),
        (["--masks", "maps", "--labels", "background=1"], "labels: found .* expected structures besides"),
        (["--masks", "nowhere", "--labels", LABELS], "expected there: label map"),
        (["--mask_table", "nowhere.csv"], "nowhere.csv: the table cannot be read"),
    ],
)
def test_mistakes_end_with_one_line(clinic, monkeypatch, options, message):
    monkeypatch.chdir(clinic)
    with pytest.raises(SystemExit, match=message):
        run(clinic, *options, folders=["clinic"])
