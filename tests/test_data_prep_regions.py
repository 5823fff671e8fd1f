import json

import nibabel
import numpy as np
import pytest
from discs import SIZE, disc_datalist
from PIL import Image

from data_prep.__main__ import main
from data_prep.regions import derive_regions, region_definition
from segcft_ext.datalist import read_datalist, write_datalist

ZONES = region_definition(of="structure")


def test_areas_are_divided_and_all_else_stays(tmp_path):
    whole = disc_datalist(tmp_path / "discs")
    derived = derive_regions(whole.path, tmp_path / "zones" / "datalist.json", ZONES, ["left"])
    names = ["left_area_upper", "left_area_middle", "left_area_lower"]
    assert derived.variable_names == [*names, "right_area", "age"]
    assert derived.regions.names == ("upper", "middle", "lower") and derived.regions.of == "structure"
    assert {(v.structure, v.region) for v in derived.variables[:3]} == {("left", n) for n in derived.regions.names}
    for split in ("training", "validation", "test"):
        for before, after in zip(whole.entries[split], derived.entries[split]):
            values = after["variables"]
            assert sum(values[n] for n in names) == pytest.approx(before["variables"]["left_area"], rel=1e-5)
            # a disc is symmetric up to one row, and widest in the middle
            assert values["left_area_middle"] > values["left_area_upper"] > 0
            assert [values[n] for n in ("right_area", "age")] == [before["variables"][n] for n in ("right_area", "age")]
            assert all(after.get(key) == before.get(key) for key in ("id", "source", "use"))
    assert [e["image"] for e in derived.items("test")] == [
        str(tmp_path / "zones" / ".." / "discs" / e["image"]) for e in whole.entries["test"]
    ]


def test_any_number_and_boundaries():
    assert region_definition() == {
        "axis": 0,
        "of": "image",
        "names": ["proximal", "mid", "distal"],
        "boundaries": [0, 0.333333, 0.666667, 1],
    }
    assert region_definition(boundaries=[0, 0.3, 1])["names"] == ["proximal", "distal"]
    assert region_definition(boundaries=[0, 0.1, 0.2, 0.3, 1], of="structure")["names"][3] == "region4"
    assert region_definition(["a", "b", "c", "d"])["boundaries"] == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(ValueError, match=r"boundaries: found \[0, 1\], expected 3"):
        region_definition(["a", "b"], [0, 1])


def test_volumes_in_millimetres(tmp_path):
    whole = disc_datalist(tmp_path / "discs")
    content = json.loads(whole.path.read_text())
    content["image"]["size"] = [SIZE, SIZE, 3]
    measurement = {"_target_": "segcft_ext.measurements.Area", "label": 1, "unit": "mm3"}
    content["variables"] = [{"name": "left_volume", "kind": "continuous", "unit": "mm3", "measurement": measurement}]
    for entry in [e for split in ("training", "validation", "test") for e in content[split]]:
        flat = np.asarray(Image.open(whole.path.parent / entry["label"]))
        entry["label"] = entry["label"].replace(".png", ".nii.gz")
        nibabel.save(
            nibabel.Nifti1Image(np.repeat(flat[..., None], 3, 2), np.eye(4)), tmp_path / "discs" / entry["label"]
        )
        entry |= {"variables": {"left_volume": 3 * 0.5 * float((flat == 1).sum())}, "spacing": [1.0, 0.5, 1.0]}
    write_datalist(whole.path, content)
    halves = region_definition(boundaries=[0, 0.5, 1], axis=1)
    derived = derive_regions(whole.path, tmp_path / "halves.d" / "datalist.json", halves)
    for before, after in zip(content["test"], derived.entries["test"]):
        # the left disc lies in the left half altogether
        assert after["variables"] == {
            "left_volume_proximal": before["variables"]["left_volume"],
            "left_volume_distal": 0,
        }


def test_what_is_divided_is_divided_anew(tmp_path):
    whole = disc_datalist(tmp_path / "discs")
    halves = region_definition(boundaries=[0, 0.3, 1])
    derive_regions(whole.path, tmp_path / "zones" / "datalist.json", ZONES)
    again = derive_regions(tmp_path / "zones" / "datalist.json", tmp_path / "halves" / "datalist.json", halves)
    direct = derive_regions(whole.path, tmp_path / "direct" / "datalist.json", halves)
    assert again.variables == direct.variables and again.regions == direct.regions
    assert [e["variables"] for e in again.entries["test"]] == [e["variables"] for e in direct.entries["test"]]


def test_a_folder_that_is_a_link_leads_to_the_images(tmp_path):
    disc_datalist(tmp_path / "deep" / "er" / "discs")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "discs").symlink_to(tmp_path / "deep" / "er" / "discs")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    source = tmp_path / "elsewhere" / "discs" / "datalist.json"
    derived = derive_regions(source, tmp_path / "link" / "zones" / "datalist.json", ZONES)
    assert derived.entries["test"][0]["image"].startswith("../discs/images/")
    assert Image.open(derived.items("test")[0]["image"]).size == (SIZE, SIZE)


def test_the_command_writes_a_datalist_and_the_distributions(tmp_path, capsys):
    whole = disc_datalist(tmp_path / "discs")
    out = tmp_path / "halves" / "datalist.json"
    main(["regions", str(whole.path), "--out", str(out), "--names", "top,bottom", "--boundaries", "0,0.4,1"])
    derived = read_datalist(out)
    assert derived.regions.boundaries == (0, 0.4, 1)
    assert derived.variable_names[:2] == ["left_area_top", "left_area_bottom"]
    assert (out.parent / "variables.png").stat().st_size > 2000
    assert "4 regional variables: left_area_top" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "value"), [((SIZE, 9), 1), ((SIZE, SIZE), 7)])
def test_a_label_map_that_is_not_as_the_datalist_says_is_named(tmp_path, shape, value):
    whole = disc_datalist(tmp_path / "discs")
    path = whole.path.parent / whole.entries["test"][0]["label"]
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    with pytest.raises(SystemExit, match=f"{path}: found (pixels of shape|the labels)"):
        main(["regions", str(whole.path), "--out", str(tmp_path / "zones" / "datalist.json")])


def test_mistakes_are_named(tmp_path, monkeypatch):
    whole = disc_datalist(tmp_path / "discs")
    out = tmp_path / "zones" / "datalist.json"
    with pytest.raises(ValueError, match="lies in the folder of"):
        derive_regions(whole.path, whole.path.with_name("zones.json"), ZONES)
    with pytest.raises(ValueError, match=r"out: found .*zones, expected a file, as .*zones/datalist\.json"):
        derive_regions(whole.path, tmp_path / "zones", ZONES)
    assert not (tmp_path / "zones").exists()
    with pytest.raises(ValueError, match=r"structures: found \['spleen'\], expected some of \['left', 'right'\]"):
        derive_regions(whole.path, out, ZONES, ["spleen"])
    with pytest.raises(ValueError, match="axis is 3, expected one of 0 … 1"):
        derive_regions(whole.path, out, {**ZONES, "axis": 3})
    derive_regions(whole.path, out, ZONES)
    with pytest.raises(ValueError, match=r"right_area_upper is of other regions: RegionArea.*divide all structures"):
        derive_regions(out, tmp_path / "again" / "datalist.json", ZONES, ["left"])
    for options, message in (
        (["--boundaries", "0.2,0.5"], r"boundaries: found \[0.2, 0.5\], expected \d numbers that rise from 0 to 1"),
        (["--boundaries", "0,0.5,0.5,1"], r"boundaries: found .* expected \d numbers that rise from 0 to 1"),
        (["--names", "top,top"], "names: found .* expected each name once"),
        (["--names", "top,,bottom"], "names: found 'top,,bottom', expected names, as a,b"),
        (["--structures", "left,"], "structures: found 'left,', expected names, as a,b"),
        (["--boundaries", "0,nan,1"], "boundaries: found '0,nan,1', expected one or several finite"),
        (["--of", "body"], "of: found 'body', expected 'image' or 'structure'"),
    ):
        monkeypatch.setattr("data_prep.regions.measured_values", lambda *_: pytest.fail("a case was measured"))
        with pytest.raises(SystemExit, match=message):
            main(["regions", str(whole.path), "--out", str(tmp_path / "new" / "datalist.json"), *options])
        assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="boundaries: found '0,half,1', expected one or several finite"):
        main(["regions", str(whole.path), "--out", str(out), "--boundaries", "0,half,1"])
