"""Centrelines: read from a file or extracted from a label volume, joined into trees, and divided into vessels.

The longest path from the ostium of a tree to an end is the first vessel; from each junction on it, the longest
remaining path is another. So every piece of a tree belongs to exactly one vessel (the left main to the vessel that runs
on longest, as a rule the LAD), and no plaque is counted twice. Points are in RAS mm throughout.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import networkx
import numpy as np
from networkx.utils import UnionFind
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from scipy.spatial import KDTree
from skimage.morphology import skeletonize

from data_prep.cases import Rejected, rejecting
from data_prep.polydata import Polylines, parse_polydata

__all__ = [
    "CONVENTIONS", "Vessel", "arc_length", "check_centreline", "find_centrelines", "join_lines", "read_centrelines",
    "smooth_curve", "split_vessels",
]  # fmt: skip

CONVENTIONS = {"LPS": np.array([-1.0, -1.0, 1.0]), "RAS": np.ones(3)}
"""Factors that turn a file's x, y, z into RAS.

RAS: x runs to the right, y to anterior, z to superior, as in NIfTI; LPS: x to the left, y to posterior, as in DICOM,
ITK, VTK and 3D Slicer's files."""

SMALLEST, LARGEST = 0.001, 1000.0
"""Range of a centreline's extent, mm."""

REACH = 1.0
"""A line that begins within this distance of another one, mm, begins on it; less than any coronary's diameter."""

STAIRS = 1.0
"""Standard deviation of the Gaussian that smooths a skeleton's lines from voxel to voxel, mm."""

STEP = 0.25
"""Distance of the points of a dense curve, mm."""


@dataclass(frozen=True)
class Vessel:
    """A vessel's centreline from its ostium or, for a side branch, from the axis of the vessel it comes from.

    Attributes:
        points: shape (N, 3), RAS mm.
        start: arc length from the ostium to the first point, mm.
        tree: index of the tree, whose first vessel is the longest from the ostium, the others following by length.
        line: index of the line on which it ends.
        marked: whether ``start_points`` marks the ostium of its tree.
    """

    points: np.ndarray
    start: float
    tree: int
    line: int = 0
    marked: bool = False


def arc_length(points: np.ndarray) -> np.ndarray:
    """Arc length from the first to each of the points (N, 3)."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def read_centrelines(path: Path, convention: str) -> Polylines:
    """Read VTK polydata, or a CSV file with the columns x, y, z in mm (and, for several lines, ``line``).

    Args:
        path: the file; its format is recognised by the content.
        convention: convention of the file's coordinates, a key of :data:`CONVENTIONS`.

    Raises:
        Rejected: when the file cannot be read, or holds coordinates that are not finite, or points that all lie at one
            place or farther apart than in any heart.
    """
    with rejecting("centreline_unreadable", "the centreline's file cannot be opened"):
        data = path.read_bytes()
    is_vtk = data.startswith(b"# vtk DataFile") or b"<VTKFile" in data[:1000]
    found = parse_polydata(data) if is_vtk else _parse_csv(data)
    if not np.isfinite(found.points).all():
        raise Rejected("centreline_unreadable", "the centreline has coordinates that are not finite")
    used = found.points[np.concatenate(found.lines)]
    extent = float(np.ptp(used, axis=0).max())
    if not SMALLEST <= extent <= LARGEST:
        text = f"the centreline's points lie {extent:.4g} mm apart, expected {SMALLEST:g} to {LARGEST:g} mm"
        raise Rejected("centreline_unreadable", text)
    return Polylines(found.points * CONVENTIONS[convention], found.lines, found.arrays)


def _parse_csv(data: bytes) -> Polylines:
    text = "the centreline is neither VTK polydata nor CSV with numbers in the columns x, y, z"
    with rejecting("centreline_unreadable", text):
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in rows]
        points = np.array([[float(row[axis]) for axis in "xyz"] for row in rows]).reshape(-1, 3)
    names = np.array([row.get("line") or "" for row in rows])
    lines = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    if not any(line.size > 1 for line in lines):
        raise Rejected("centreline_unreadable", "the CSV file has less than two points of a line")
    return Polylines(points, lines)


def find_centrelines(vessels: np.ndarray, affine: np.ndarray) -> Polylines:
    """Skeleton of a mask of vessels (3-D, boolean), without spurs; ``start_points`` marks each tree's thickest end.

    The mask is thinned to lines one voxel wide (Lee et al., 1994). Their voxels, joined with their neighbours, form a
    graph, whose minimum spanning tree has no cycles. A side branch is a spur of the thinning, and left out, if it is
    not longer than the vessel's diameter where it leaves, plus 1 mm.
    """
    where = np.argwhere(vessels)
    if not len(where):
        return Polylines(np.zeros((0, 3)), [])
    low, high = where.min(0), where.max(0) + 1
    mask = np.pad(vessels[tuple(slice(a, b) for a, b in zip(low, high))], 1)
    thickness = distance_transform_edt(mask, sampling=np.linalg.norm(affine[:3, :3], axis=0))
    voxels = np.argwhere(skeletonize(mask))
    radii = thickness[tuple(voxels.T)]
    points = (voxels - 1 + low) @ affine[:3, :3].T + affine[:3, 3]
    pairs = KDTree(voxels).query_pairs(np.sqrt(3) + 1e-6, output_type="ndarray")
    forest = networkx.minimum_spanning_tree(_graph(points, pairs))
    lines: list[np.ndarray] = []
    ostia = np.zeros(len(points))
    for nodes in sorted(networkx.connected_components(forest), key=min):
        tree = forest.subgraph(nodes)
        ends = [n for n in sorted(nodes) if tree.degree[n] == 1]
        if not ends:
            continue
        root = max(ends, key=lambda n: _radius_near(tree, n, radii))
        ostia[root] = 1
        ways = _ways(tree, root)
        lines += [w for i, w in enumerate(ways) if i == 0 or arc_length(points[w])[-1] > 2 * radii[w[0]] + 1]
    for line in lines:  # a vessel before its side branches, so that these begin where it lies after smoothing
        points[line[1:]] = _without_stairs(points[line])[1:]
    return Polylines(points, lines, {"start_points": ostia[:, None]})


def _without_stairs(points: np.ndarray) -> np.ndarray:
    """Move the points of a line from voxel to voxel, which its steps make a tenth too long, onto a smooth curve."""
    arc = arc_length(points)
    curve, length = smooth_curve(points, STAIRS)
    return curve(arc * length / arc[-1])


def _radius_near(tree: networkx.Graph, end: int, radii: np.ndarray) -> float:
    """Mean radius of the nodes within 5 mm of an end, along the tree."""
    near = networkx.single_source_dijkstra_path_length(tree, end, cutoff=5.0)
    return float(np.mean(radii[list(near)]))


def _graph(points: np.ndarray, pairs: np.ndarray) -> networkx.Graph:
    graph = networkx.Graph()
    lengths = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    graph.add_weighted_edges_from((int(a), int(b), float(w)) for (a, b), w in zip(pairs, lengths) if a != b)
    return graph


def split_vessels(lines: Polylines) -> list[Vessel]:
    """The vessels of each tree, the longest first; if several leave the ostium, each is a vessel of its own.

    Lines form a tree if they share a point, or have points at the same place, or if one begins within :data:`REACH` mm
    of another. The ostium is the point marked by the point array ``start_points`` (ImageCAS-X and skeletons have it).
    Without a mark it is a point where lines only begin (or, without any, an end of the tree): the one where most lines
    begin, and the first given of several such.
    """
    places, node = np.unique(lines.points.round(4), axis=0, return_inverse=True)
    node = node.reshape(-1)  # numpy 2.0 gave it another shape
    marks = lines.arrays.get("start_points", np.zeros((len(lines.points), 1)))[:, 0]
    marked = set(node[marks != 0].tolist())
    numbers = [number for number, line in enumerate(lines.lines) if line.size > 1]
    if not numbers:
        return []
    places, given = _attach(places, [node[lines.lines[number]] for number in numbers])
    holder = {int(n): number for number, line in reversed(list(zip(numbers, given))) for n in line}
    pairs = np.concatenate([np.stack([line[:-1], line[1:]], axis=1) for line in given])
    forest = networkx.minimum_spanning_tree(_graph(places, pairs))
    order = {int(n): i for i, n in reversed(list(enumerate(np.concatenate(given))))}
    vessels = []
    for tree, nodes in enumerate(sorted(networkx.connected_components(forest), key=lambda c: min(order[n] for n in c))):
        branches = forest.subgraph(nodes)
        root = _ostium(branches, [line for line in given if line[0] in nodes], marked, order)
        distance = networkx.single_source_dijkstra_path_length(branches, root)
        vessels += [
            Vessel(places[way], float(distance[way[0]]), tree, holder[int(way[-1])], root in marked)
            for way in _ways(branches, root)
        ]
    return vessels


def join_lines(parts: Sequence[Polylines]) -> Polylines:
    """The lines of several files, one after the other, with their ``start_points``."""
    offsets = np.cumsum([0, *(len(part.points) for part in parts)])
    marks = [part.arrays.get("start_points", np.zeros((len(part.points), 1)))[:, :1] for part in parts]
    return Polylines(
        np.concatenate([part.points for part in parts]),
        [line + offset for part, offset in zip(parts, offsets) for line in part.lines],
        {"start_points": np.concatenate(marks)},
    )


def _attach(places: np.ndarray, lines: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Move the first node of each line onto a nearby line of another tree, if there is one, as a node of both lines.

    Only beginnings are moved: the far ends of vessels of two trees may meet, at the apex for instance.
    """
    places, lines = places.copy(), list(lines)
    trees = UnionFind()
    for line in lines:
        trees.union(*line.tolist())
    for begin in [int(line[0]) for line in lines]:
        others = [k for k, line in enumerate(lines) if trees[int(line[0])] != trees[begin]]
        found = [(*_foot(places[lines[k]], places[begin]), k) for k in others]
        distance, segment, foot, k = min(found, key=lambda f: f[0], default=(np.inf, 0, places[begin], 0))
        if distance <= REACH:
            places[begin] = foot
            lines[k] = np.insert(lines[k], segment + 1, begin)
            trees.union(begin, int(lines[k][0]))
    return places, lines


def _foot(line: np.ndarray, place: np.ndarray) -> tuple[float, int, np.ndarray]:
    """Distance of a place from a polyline (N, 3), index of the nearest segment, and the nearest point on it."""
    first, along = line[:-1], np.diff(line, axis=0)
    squared = np.maximum((along**2).sum(1), 1e-12)
    feet = first + np.clip(((place - first) * along).sum(1) / squared, 0, 1)[:, None] * along
    distances = np.linalg.norm(feet - place, axis=1)
    nearest = int(distances.argmin())
    return float(distances[nearest]), nearest, feet[nearest]


def _ostium(
    tree: networkx.Graph, lines: Sequence[np.ndarray], marked: Collection[int], order: Mapping[int, int]
) -> int:
    """The marked node; else that where most lines begin and none passes or ends; else an end. Ties: the first given."""
    nodes = sorted(tree, key=lambda n: order[n])
    begins = Counter(int(line[0]) for line in lines)
    passed = {int(n) for line in lines for n in line[1:]}
    starts = [n for n in nodes if n in begins and n not in passed] or [n for n in nodes if tree.degree[n] == 1]
    return next((n for n in [*starts, *nodes] if n in marked), max(starts, key=lambda n: begins[n]))


def _ways(tree: networkx.Graph, root: int) -> list[np.ndarray]:
    """Divide a tree into paths: the longest from the root, then the longest from each junction, sorted by length."""
    reach: dict[int, float] = {}  # node -> greatest distance to an end beyond it
    parent = dict(networkx.bfs_predecessors(tree, root))
    order = [root, *parent]
    for n in reversed(order):
        reach[n] = max((reach[c] + tree.edges[n, c]["weight"] for c in tree[n] if parent.get(n) != c), default=0.0)
    ways, starts = [], [(root, root)]
    while starts:
        before, n = starts.pop()
        way = [before] if before != n else []
        while True:
            way.append(n)
            onward = sorted(
                (c for c in tree[n] if parent.get(n) != c), key=lambda c: (-reach[c] - tree.edges[n, c]["weight"], c)
            )
            starts += [(n, c) for c in onward[1:]]
            if not onward:
                break
            n = onward[0]
        ways.append(np.array(way))
    lengths = [sum(tree.edges[int(a), int(b)]["weight"] for a, b in pairwise(w)) for w in ways]
    first, rest = ways[0], sorted(zip(lengths[1:], ways[1:]), key=lambda pair: -pair[0])
    # Where a line goes on from the end of another, that end is a side branch without length.
    return [first, *(way for length, way in rest if length >= SMALLEST)]


def smooth_curve(points: np.ndarray, sigma: float) -> tuple[CubicSpline, float]:
    """A smooth curve through points (N, 3): a spline over its arc length, and its length in mm.

    The polyline is resampled every :data:`STEP` mm and smoothed by a Gaussian of ``sigma`` mm along the arc; beyond its
    ends it is continued by point reflection, so that the ends stay in place.
    """
    arc = arc_length(points)
    points, arc = points[np.diff(arc, prepend=-1) > 1e-6], arc[np.diff(arc, prepend=-1) > 1e-6]
    count = max(8, round(arc[-1] / STEP)) + 1
    even = np.linspace(0, arc[-1], count)
    dense = np.stack([np.interp(even, arc, axis) for axis in points.T], axis=1)
    if sigma > 0:
        pad = min(count - 1, int(np.ceil(4 * sigma / even[1])))
        head, tail = 2 * dense[0] - dense[pad:0:-1], 2 * dense[-1] - dense[-2 : -pad - 2 : -1]
        dense = gaussian_filter1d(np.concatenate([head, dense, tail]), sigma / even[1], axis=0)[pad : pad + count]
    arc = arc_length(dense)
    return CubicSpline(arc, dense), float(arc[-1])


def check_centreline(points: np.ndarray, shortest: float) -> None:
    """Check that a centreline is long enough and does not double back.

    Successive chords of 1.5 mm must not turn by more than a right angle. No vessel has such a bend, with a radius of
    curvature of about 1 mm, and straightened it would show the same place twice.

    Raises:
        Rejected: when the centreline is shorter than ``shortest`` (mm) or doubles back.
    """
    length = arc_length(points)[-1]
    if length < shortest:
        raise Rejected("centreline_short", f"the centreline is {length:.1f} mm long, less than {shortest:g} mm")
    curve, length = smooth_curve(points, 0)
    chords = np.diff(curve(np.linspace(0, length, max(3, round(length / 1.5)) + 1)), axis=0)
    turns = (chords[:-1] * chords[1:]).sum(1) < 0
    if turns.any():
        at = length * (int(np.argmax(turns)) + 1) / len(chords)
        raise Rejected("centreline_folded", f"the centreline doubles back {at:.1f} mm from its start")
