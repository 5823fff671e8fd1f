"""What identifies a patient is planted everywhere in the input, and searched for in every byte of the output."""

import csv
import gzip
import json
import logging
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from drawn_chest import draw, write_case, write_masks, write_png
from PIL import Image, PngImagePlugin
from pydicom.uid import JPEG2000Lossless, RLELossless

from data_prep.__main__ import main
from data_prep.cases import NOTES, REASONS
from segcft_ext.datalist import read_datalist
from segcft_ext.datalist_format import SPLITS

NAME = "Quasimodo"
BIRTH = "19470229"
UID = "1.2.826.0.1.3680043.8.498"
SECRETS = (NAME, BIRTH, UID, "Esmeralda")
ELEMENTS = {
    "PatientName": f"{NAME}^Frollo",
    "PatientID": f"{NAME}-7",
    "PatientBirthDate": BIRTH,
    "OtherPatientIDs": f"{NAME}-8",
    "AccessionNumber": f"{NAME}-9",
    "ReferringPhysicianName": "Esmeralda",
    "InstitutionName": f"Hospice {NAME}",
    "StudyDescription": f"Chest of {NAME}",
    "ImageComments": f"{NAME} {BIRTH}",
    "StudyInstanceUID": f"{UID}.1",
    "PixelSpacing": ["1", "1"],
}
BROKEN = ("WindowCenter", "PixelSpacing", "Rows", "NumberOfFrames", "PhotometricInterpretation")
"""Elements that decoders read, and in which they then find a name."""


def chunks(png):
    """The chunks of a PNG file, text decompressed."""
    data, position, found = png.read_bytes(), 8, []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        packed = body[body.find(b"\0") + 2 :]
        found.append((kind, body + (zlib.decompress(packed) if kind in (b"zTXt", b"iCCP") else b"")))
        position += length + 12
    return found


def everything(folder):
    """All bytes of all files below a folder, and the files' names, as they are and with what is packed unpacked."""
    for path in folder.rglob("*"):
        yield path.name.encode()
        if path.is_file():
            yield path.read_bytes()
            if path.suffix == ".png":
                yield b"".join(body for _, body in chunks(path))
            if path.suffix == ".gz":
                yield gzip.decompress(path.read_bytes())


@pytest.fixture
def clinic(tmp_path):
    """Cases of every format and fault, with secrets in names, headers, tables and what decoders complain of."""
    root = tmp_path / "clinic"
    images = root / "images" / NAME
    images.mkdir(parents=True)
    rows = ["file,age,sex,patient,born"]
    for i in range(14):
        image, masks = draw(i)
        name = f"{NAME} {i}"
        rows.append(f"{name},{NAME if i == 13 else 30 + i},{'FM'[i % 2]},{NAME}-{i},{BIRTH}")
        write_masks(root, f"{NAME}/{name}", masks)
        if i < 4:
            text = PngImagePlugin.PngInfo()
            text.add_text("Patient", NAME, zip=True)
            text.add_itxt("Comment", BIRTH)
            Image.fromarray(image).save(images / f"{name}.png", pnginfo=text)
        elif i < 6:
            Image.fromarray(image).save(images / f"{name}.tif", tiffinfo={315: NAME, 270: BIRTH})
        else:
            wide = image.astype(np.uint16) * 8
            write_dicom(images / f"{name}.dcm", wide, (RLELossless, JPEG2000Lossless)[i % 2], **ELEMENTS)
    for i, element in enumerate(BROKEN):
        image, masks = draw(20 + i)
        window = {"WindowCenter": "9", "WindowWidth": "9"}
        path = write_dicom(images / f"{NAME} bad {i}.dcm", image, **ELEMENTS, **window)
        dataset = pydicom.dcmread(path)
        if element in dataset:
            del dataset[element]
        dataset.add_new(element, "LO", NAME)
        dataset.save_as(path)
        write_masks(root, f"{NAME}/{NAME} bad {i}", masks)
    (images / f"{NAME}.txt").write_text(NAME)
    (images / f"{NAME} cut.dcm").write_bytes((images / f"{NAME} 6.dcm").read_bytes()[:600])
    write_masks(root, f"{NAME}/{NAME} cut", draw(0)[1])
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    return tmp_path


def prepare(root, *options):
    table = ["--table", str(root / "cases.csv"), "--id_column", "file", "--patient_column", "patient"]
    variables = ["--variables", '{"age": "continuous", "sex": ["F", "M"]}']
    main(["folder", str(root / "clinic"), "--out", str(root / "out"), "--size", "24", *table, *variables, *options])


def test_nothing_that_identifies_a_patient_reaches_an_output(clinic, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    prepare(clinic)
    with (clinic / "out" / "rejected.csv").open() as file:
        rejected = list(csv.DictReader(file))
    assert len(rejected) == 8 and {row["reason"] for row in rejected} >= {"unreadable", "bad_value"}
    datalist = read_datalist(clinic / "out" / "datalist.json")
    assert sum(len(datalist.entries[split]) for split in SPLITS) == 13
    console = capfd.readouterr()
    log = "".join(record.getMessage() for record in caplog.records)
    found = [*everything(clinic / "out"), *(text.encode() for text in (console.out, console.err, log))]
    for secret in SECRETS:
        assert not [part for part in found if secret.encode() in part]
        assert not [part for part in found if secret.encode("utf-16-le") in part]
    mapping = json.loads((clinic / "out.mapping.json").read_text())
    assert any(NAME in case["name"] for case in mapping["cases"].values())  # the one place that names a case
    for png in (clinic / "out" / "images").iterdir():
        assert {kind for kind, _ in chunks(png)} == {b"IHDR", b"IDAT", b"IEND"}


def test_strict_names_no_patient_either(clinic):
    with pytest.raises(SystemExit) as end:
        prepare(clinic, "--strict")
    assert not any(secret in str(end.value) for secret in SECRETS)


@pytest.mark.parametrize("salt", [None, "", 7])
def test_a_salt_that_hides_nothing_is_refused(tmp_path, salt):
    for i in range(2):
        write_case(tmp_path / "clinic", str(i), seed=i)
    command = ["folder", str(tmp_path / "clinic"), "--out", str(tmp_path / "out"), "--size", "24"]
    with pytest.raises(SystemExit, match="salt: found an empty text, expected another one"):
        main([*command, "--salt", ""])
    (tmp_path / "out.mapping.json").write_text(json.dumps({"salt": salt}))
    with pytest.raises(SystemExit, match=rf"out.mapping.json: salt: found {salt!r}, expected a text"):
        main(command)


HOSTILE = (
    "..", "../../escape", 'quo"te,comma', "line\nbreak", "tab\tand;rm -rf", "$math_{x}$", "Ünïcödé 日本語", "x" * 240,
    " leading and trailing ", "-flag", "%s{0}", "'; DROP TABLE", "C:\\windows", "CON", "nul\x7f",
)  # fmt: skip


def test_hostile_names_stay_within_the_output_and_break_nothing(tmp_path):
    root = tmp_path / "clinic $a_{b$ \nκλινική"
    taken = []
    for i, name in enumerate(HOSTILE):
        image, masks = draw(i)
        name = name.replace("/", "\u2044")  # no file can be called ../../escape; the nearest to it can
        name = f"{i}{name}"  # a dot in front would hide it
        for folder, pixels in (("images", image), *((f"masks/{structure}", mask) for structure, mask in masks.items())):
            write_png(tmp_path / "scratch.png", pixels)
            (root / folder).mkdir(parents=True, exist_ok=True)
            os.replace(tmp_path / "scratch.png", root / folder / name)
        taken.append(name)
    loose = os.fsencode(root / "images") + b"/not \xff utf-8"
    Path(os.fsdecode(loose)).write_bytes(b"no picture")
    before = {path for path in tmp_path.rglob("*") if root not in path.parents}
    main(["folder", str(root), "--out", str(tmp_path / "out"), "--size", "24"])
    after = {path for path in tmp_path.rglob("*") if root not in path.parents and tmp_path / "out" not in path.parents}
    assert after - before == {tmp_path / "out", tmp_path / "out.mapping.json"}
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    assert sum(len(datalist.entries[split]) for split in SPLITS) == len(HOSTILE)
    names = [case["name"] for case in json.loads((tmp_path / "out.mapping.json").read_text())["cases"].values()]
    assert sorted(names) == sorted([*taken, os.fsdecode(b"not \xff utf-8")])
    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["unsupported_format"]
    for path in (tmp_path / "out" / "images").iterdir():
        assert re.fullmatch("[0-9a-f]{16}\\.png", path.name)


def test_links_and_pipes_are_neither_followed_in_circles_nor_waited_for(tmp_path):
    root = tmp_path / "clinic"
    for i in range(10):
        image, masks = draw(i)
        write_png(root / "images" / f"{i}.png", image)
        write_masks(root, str(i), masks)
    images = root / "images"
    (images / "circle").symlink_to(images, target_is_directory=True)
    (images / "self.png").symlink_to(images / "self.png")
    (images / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(images / "pipe.png")
    main(["folder", str(root), "--out", str(tmp_path / "out"), "--size", "24"])
    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["unreadable"] * 3


def test_every_reason_and_note_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "data_prep.md").read_text()
    assert not [code for code in (*REASONS, *NOTES) if f"`{code}`" not in text]
    table = text.split("## Rejected cases")[1].split("\n## ")[0]
    listed = [code for row in re.findall(r"^\| (`.*?) \|", table, re.M) for code in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(REASONS)
