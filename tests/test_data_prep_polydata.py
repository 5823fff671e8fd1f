"""VTK polydata; the files in ``data/polydata`` were written by VTK 9.7, one for each way to write the same lines."""

import random
from pathlib import Path

import numpy as np
import pytest

from data_prep.cases import Rejected
from data_prep.polydata import parse_polydata

FILES = sorted((Path(__file__).parent / "data" / "polydata").iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_form_is_read_alike(path):
    found = parse_polydata(path.read_bytes())
    expected = [[0, 0, 0], [0, 0, 1.5], [0, 0, 3], [1, 0, 4], [2, 0, 5], [-1, 0, 4.25]]
    np.testing.assert_array_equal(found.points, expected)
    assert [line.tolist() for line in found.lines] == [[4, 3, 2], [0, 1, 2], [2, 5]]
    np.testing.assert_array_equal(found.arrays["segment_label"].ravel(), [2, 2, 2, 3, 3, 4])
    np.testing.assert_array_equal(found.arrays["start_points"].ravel(), [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_damaged_file_is_rejected_or_read_but_never_raises_anything_else(path):
    whole, draw = path.read_bytes(), random.Random(path.name)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            found = parse_polydata(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]))
            outcomes.add("read")
            assert all(line.size == 0 or line.max() < len(found.points) for line in found.lines)
        except Rejected as fault:
            outcomes.add(fault.reason)
    assert "centreline_unreadable" in outcomes


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".vtp"][:1], ids=lambda path: path.name)
def test_an_error_of_any_type_rejects_the_file(path, monkeypatch):
    monkeypatch.setattr("xml.etree.ElementTree.fromstring", lambda data: 1 / 0)
    with pytest.raises(Rejected, match="cannot be parsed \\(ZeroDivisionError in ") as caught:
        parse_polydata(path.read_bytes())
    assert caught.value.reason == "centreline_unreadable"


METADATA = "METADATA\nINFORMATION 0\n\n"
ARRAYS = [
    f"FIELD FieldData 2\nfirst 1 3 double\n1 2 3\n{METADATA}second 1 3 int\n4 5 6\n{METADATA}",
    "TEXTURE_COORDINATES uv 2 float\n0 0 0.5 0 1 0\n",
    "COLOR_SCALARS rgb 3\n0 0 0 0.5 0.5 0.5 1 1 1\n",
    f"TENSORS6 stress float\n{'1 2 3 4 5 6 ' * 3}\n",
    "PEDIGREE_IDS ids vtkIdType\n7 8 9\n",
]


@pytest.mark.parametrize("arrays", ARRAYS, ids=lambda text: text.split()[0])
@pytest.mark.parametrize("kind", ["POINT_DATA 3", "CELL_DATA 3"])
def test_arrays_of_every_kind_are_passed(arrays, kind):
    lines = f"LINES 3 9\n2 0 1\n2 1 2\n2 2 0\n{METADATA}"
    points = f"POINTS 3 float\n0 0 0 1 0 0 2 0 0\n{METADATA}"
    text = f"# vtk DataFile Version 4.2\n\nASCII\nDATASET POLYDATA\n{points}{lines}"
    last = "POINT_DATA 3\nSCALARS start_points int\nLOOKUP_TABLE default\n1 0 0\n"
    found = parse_polydata(f"{text}{kind}\n{arrays}{last}".encode())
    np.testing.assert_array_equal(found.arrays["start_points"].ravel(), [1, 0, 0])
    assert len(found.lines) == 3 and (arrays != ARRAYS[0] or kind != "POINT_DATA 3" or "second" in found.arrays)


def test_colours_in_binary_files_are_bytes():
    text = b"# vtk DataFile Version 4.2\n\nBINARY\nDATASET POLYDATA\n"
    points = b"POINTS 2 float\n" + np.arange(6, dtype=">f4").tobytes() + b"\n"
    lines = b"LINES 1 3\n" + np.array([2, 0, 1], ">i4").tobytes() + b"\n"
    colours = b"POINT_DATA 2\nCOLOR_SCALARS rgb 3\n" + bytes(range(6)) + b"\n"
    ids = b"PEDIGREE_IDS ids int\n" + np.array([7, 8], ">i4").tobytes() + b"\n"
    found = parse_polydata(text + points + lines + colours + ids)
    np.testing.assert_array_equal(found.arrays["ids"].ravel(), [7, 8])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no VTK polydata"),
        (b"# vtk DataFile Version 3.0\n\nASCII\nDATASET UNSTRUCTURED_GRID\n", "no polydata"),
        (b"# vtk DataFile Version 3.0\n\nASCII\nDATASET POLYDATA\nPOINTS 1 float\n0 0 0\n", "no line"),
        (b"# vtk DataFile Version 3.0\n\nASCII\nDATASET POLYDATA\nPOINTS 1 float\n0 0 0\nLINES 1 3\n2 0 7\n", "beyond"),
        (
            b"# vtk DataFile Version 3.0\n\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n0 0 0 1 1 1\nLINES 1 3\n2 0 1\n"
            b"POINT_DATA 1\nSCALARS start_points int 1\nLOOKUP_TABLE default\n1\n",
            "not one value for each of the 2 points",
        ),
        (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><VTKFile type="PolyData"/>', "no VTK polydata"),
    ],
)
def test_the_text_says_what_is_wrong(data, text):
    with pytest.raises(Rejected, match=text) as caught:
        parse_polydata(data)
    assert caught.value.reason == "centreline_unreadable"
