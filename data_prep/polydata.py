"""Reading polylines of VTK polydata: legacy files (.vtk, text or binary, both layouts of cells) and XML files (.vtp).

Only points, lines and numeric point arrays are read, which is all that a centreline consists of. VTK itself would be a
dependency of 140 MB, and its readers, written in C++, can crash the whole process on a damaged file.

Formats: https://docs.vtk.org/en/latest/vtk_file_formats/index.html
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np

from data_prep.cases import Rejected, rejecting

__all__ = ["Polylines", "parse_polydata"]

_LEGACY_TYPES = {
    "char": "i1", "signed_char": "i1", "unsigned_char": "u1", "short": "i2", "unsigned_short": "u2", "int": "i4",
    "unsigned_int": "u4", "long": "i8", "unsigned_long": "u8", "vtkidtype": "i4", "vtktypeint64": "i8",
    "vtktypeuint64": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_COMPONENTS = {
    "SCALARS": 1, "VECTORS": 3, "NORMALS": 3, "TENSORS": 9, "TENSORS6": 6, "GLOBAL_IDS": 1, "PEDIGREE_IDS": 1,
}  # fmt: skip
"""Components for each point (or cell) by the keyword of an array; scalars may state another number."""
_XML_TYPES = {
    "Int8": "i1", "UInt8": "u1", "Int16": "i2", "UInt16": "u2", "Int32": "i4", "UInt32": "u4", "Int64": "i8",
    "UInt64": "u8", "Float32": "f4", "Float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class Polylines:
    """Lines through points.

    Attributes:
        points: shape (N, 3), as in the file.
        lines: indices of each line's points, in order along the line.
        arrays: numeric point arrays by name, shape (N, C).
    """

    points: np.ndarray
    lines: Sequence[np.ndarray]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def parse_polydata(data: bytes) -> Polylines:
    """Parse the content of a ``.vtk`` or ``.vtp`` file.

    Raises:
        Rejected: when it is neither of them, is damaged, or holds no line.
    """
    with rejecting("centreline_unreadable", "the VTK polydata cannot be parsed"):
        found = _Legacy(data).parse() if data.startswith(b"# vtk DataFile") else _parse_xml(data)
    count = len(found.points)
    if any(line.size and not (line.min() >= 0 and line.max() < count) for line in found.lines):
        raise Rejected("centreline_unreadable", f"a line refers to a point beyond the {count} that the file holds")
    if any(len(values) != count or values.size < count for values in found.arrays.values()):
        raise Rejected("centreline_unreadable", f"a point array has not one value for each of the {count} points")
    if not any(line.size > 1 for line in found.lines):
        raise Rejected("centreline_unreadable", "the VTK polydata holds no line")
    return found


class _Legacy:
    """A cursor over a legacy file: lines of keywords with text or big-endian binary numbers between them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def parse(self) -> Polylines:
        self.version = float(self.line().split()[-1])
        self.line(blank=True)  # the title may be empty
        self.binary = self.line().upper() == "BINARY"
        if self.line().upper().split() != ["DATASET", "POLYDATA"]:
            raise Rejected("centreline_unreadable", "the VTK file holds no polydata")
        points = np.zeros((0, 3))
        lines: list[np.ndarray] = []
        arrays: dict[str, np.ndarray] = {}
        tuples = 0
        of_points = False
        while words := self.words():
            keyword = words[0].upper()
            if keyword == "POINTS":
                points = self.numbers(3 * int(words[1]), words[2]).reshape(-1, 3).astype(np.float64)
            elif keyword in ("LINES", "VERTICES", "POLYGONS", "TRIANGLE_STRIPS"):
                cells = self.cells(int(words[1]), int(words[2]))
                lines += cells if keyword == "LINES" else []
            elif keyword in ("POINT_DATA", "CELL_DATA"):
                of_points, tuples = keyword == "POINT_DATA", int(words[1])
            elif keyword == "FIELD":
                for _ in range(int(words[2])):
                    name, width, count, kind = self.words()
                    values = self.numbers(int(width) * int(count), kind)
                    if of_points:
                        arrays[name] = values.reshape(int(count), int(width))
            elif keyword == "LOOKUP_TABLE":
                self.numbers(4 * int(words[2]), "unsigned_char")
            elif keyword == "COLOR_SCALARS":  # bytes, or as text numbers from 0 to 1
                self.numbers(int(words[2]) * tuples, "unsigned_char" if self.binary else "float")
            elif keyword == "TEXTURE_COORDINATES":
                self.numbers(int(words[2]) * tuples, words[3])
            else:
                components = _COMPONENTS[keyword]
                if keyword == "SCALARS":
                    components = int(words[3]) if len(words) > 3 else 1
                    self.line()  # LOOKUP_TABLE name
                values = self.numbers(components * tuples, words[2])
                if of_points:
                    arrays[words[1]] = values.reshape(tuples, components)
        return Polylines(points, lines, arrays)

    def words(self) -> list[str]:
        """The words of the next line that is not blank; METADATA blocks, which end with a blank line, are skipped."""
        while (found := self.line().split()) and found[0].upper() == "METADATA":
            while self.line(blank=True):
                pass
        return found

    def line(self, blank: bool = False) -> str:
        """The next line that is not blank (with ``blank``: simply the next line), or "" at the end of the file."""
        while self.at < len(self.data):
            end = self.data.find(b"\n", self.at)
            end = len(self.data) if end < 0 else end
            text = self.data[self.at : end].decode("utf-8").strip()
            self.at = end + 1
            if text or blank:
                return text
        return ""

    def numbers(self, count: int, kind: str) -> np.ndarray:
        """The next ``count`` numbers; texts, which are not needed here, are skipped and given as zeros."""
        if count < 0:
            raise ValueError(count)
        kind = kind.lower()
        if kind == "string":
            for _ in range(count):
                self.text()
            return np.zeros(count)
        if kind == "bit":
            raise Rejected("centreline_unreadable", "the VTK file holds an array of bits")
        if self.binary:
            values = np.frombuffer(self.data, ">" + _LEGACY_TYPES[kind], count, self.at)
            self.at += values.nbytes
            return values
        words: list[bytes] = []
        for match in re.compile(rb"\S+").finditer(self.data, self.at):
            if len(words) == count:
                break
            words.append(match.group())
            self.at = match.end()
        return np.array(words, dtype=bytes).astype(np.float64).reshape(count).astype(_LEGACY_TYPES[kind])

    def text(self) -> None:
        """Skip one text: a line, or in binary files its length (two bits say in how many bytes) and its bytes."""
        if not self.binary:
            self.line(blank=True)
            return
        size = {3: 1, 2: 2, 1: 4, 0: 8}[self.data[self.at] >> 6]
        length = int.from_bytes(self.data[self.at : self.at + size], "big") & ((1 << (8 * size - 2)) - 1)
        self.at += size + length

    def cells(self, first: int, second: int) -> list[np.ndarray]:
        """Cells: up to version 4 ``first`` rows of length and indices, ``second`` numbers in all; from version 5 on
        ``first`` offsets, then ``second`` numbers of connectivity."""
        if self.version >= 5:
            offsets = self.numbers(first, self.line().split()[1])
            return _split(offsets, self.numbers(second, self.line().split()[1]))
        flat = self.numbers(second, "int")
        cells, at = [], 0
        for _ in range(first):
            cells.append(flat[at + 1 : at + 1 + flat[at]].astype(np.int64))
            at += 1 + int(flat[at])
        return cells


def _split(offsets: np.ndarray, connectivity: np.ndarray) -> list[np.ndarray]:
    ends = offsets.astype(np.int64)
    return [connectivity[a:b].astype(np.int64) for a, b in pairwise(ends)]


def _parse_xml(data: bytes) -> Polylines:
    if b"<VTKFile" not in data[:1000] or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise Rejected("centreline_unreadable", "the file is no VTK polydata")
    # Appended data may be raw bytes, which no XML parser accepts: they are cut out.
    appended, encoding = b"", "base64"
    if start := re.search(rb"<AppendedData[^>]*>\s*_", data):
        appended = data[start.end() : data.rfind(b"</AppendedData>")]
        encoding = "raw" if b'encoding="raw"' in start.group() else "base64"
        data = data[: start.start()] + data[data.rfind(b"</AppendedData>") + len(b"</AppendedData>") :]
    root = ElementTree.fromstring(data)
    if root.get("type") != "PolyData":
        raise Rejected("centreline_unreadable", "the VTK file holds no polydata")
    decoder = _Decoder(
        order="<" if root.get("byte_order") == "LittleEndian" else ">",
        header="u8" if root.get("header_type") == "UInt64" else "u4",
        compressor=root.get("compressor"),
        appended=appended,
        raw=encoding == "raw",
    )
    parts: list[np.ndarray] = []
    lines: list[np.ndarray] = []
    arrays: dict[str, list[np.ndarray]] = {}
    for piece in root.iter("Piece"):
        point_count, line_count = int(piece.get("NumberOfPoints", 0)), int(piece.get("NumberOfLines", 0))
        if point_count == 0:
            continue
        base = sum(map(len, parts))
        parts.append(decoder.read(piece.find("Points/DataArray")).reshape(-1, 3).astype(np.float64))
        if line_count:
            cells = {a.get("Name"): decoder.read(a) for a in piece.iterfind("Lines/DataArray")}
            ends = np.concatenate([[0], cells["offsets"]])
            lines += [line + base for line in _split(ends, cells["connectivity"])]
        for array in piece.iterfind("PointData/DataArray"):
            if array.get("type") in _XML_TYPES:
                values = decoder.read(array).reshape(point_count, -1)
                arrays.setdefault(str(array.get("Name")), []).append(values)
    points = np.concatenate(parts) if parts else np.zeros((0, 3))
    whole = {name: np.concatenate(values) for name, values in arrays.items()}
    return Polylines(points, lines, {name: values for name, values in whole.items() if len(values) == len(points)})


@dataclass(frozen=True)
class _Decoder:
    """Decodes the data arrays of one XML file: text, or blocks inline (base64) or appended (base64 or raw)."""

    order: str
    header: str
    compressor: str | None
    appended: bytes
    raw: bool

    def read(self, array: ElementTree.Element | None) -> np.ndarray:
        if array is None:
            raise Rejected("centreline_unreadable", "the VTK file has points without coordinates")
        kind = self.order + _XML_TYPES[array.attrib["type"]]
        form = array.get("format", "ascii")
        if form == "ascii":
            return np.array((array.text or "").split(), dtype=str).astype(np.float64).astype(kind)
        if form == "appended":
            block = self.appended[int(array.attrib["offset"]) :]
        else:
            block = (array.text or "").strip().encode("ascii")
        return np.frombuffer(self._unpack(block, self.raw and form == "appended"), kind)

    def _unpack(self, block: bytes, raw: bool) -> bytes:
        """Uncompressed: size, data. Compressed: number of blocks, size, size of the last, compressed sizes; blocks."""
        width = int(self.header[1])

        def take(count: int) -> bytes:
            return block[:count] if raw else base64.b64decode(block[: 4 * -(-count // 3)])[:count]

        def counts(number: int) -> list[int]:
            return [int(n) for n in np.frombuffer(take(number * width), self.order + self.header, number)]

        if self.compressor is None:
            return take(width + counts(1)[0])[width:]
        if self.compressor != "vtkZLibDataCompressor":
            raise Rejected("centreline_unreadable", f"the VTK file is compressed by {self.compressor}; expected zlib")
        sizes = counts(3 + counts(1)[0])[3:]
        header = (3 + len(sizes)) * width
        packed = block[header:] if raw else base64.b64decode(block[4 * -(-header // 3) :][: 4 * -(-sum(sizes) // 3)])
        ends = np.cumsum([0, *sizes])
        return b"".join(zlib.decompress(packed[a:b]) for a, b in pairwise(ends))
