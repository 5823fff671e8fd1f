"""Whole CT volumes with curved, branching, tapering coronary arteries, laid out like ImageCAS-X.

    >>> phantom = HeartPhantom()
    >>> heart = write_heart(phantom, seed=0, name="heart-000", folder=Path("hearts"))

Each artery is a :class:`~data_prep.coronary_vessel.Vessel`, defined in coordinates along and across a centreline. Here
the centreline runs over a heart, and every voxel is mapped back to the coordinates of the vessels near it. So
straightening the volume must give what the vessel's own functions say, which tests ``python -m data_prep ccta`` from
end to end.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from data_prep.centrelines import arc_length
from data_prep.coronary_model import draw, factual
from data_prep.coronary_tissues import vessel_hu
from data_prep.coronary_vessel import Grid, Vessel, smooth_step
from data_prep.ct import blur, correlated_noise, smooth_field
from data_prep.straightening import make_frames
from segcft_ext.folders import write_atomically

__all__ = ["Artery", "Heart", "HeartPhantom", "write_heart"]

REACH = 6.5
"""Distance from a centreline, mm, up to which the vessel's own functions are drawn; beyond it are heart and fat."""

STEP = 0.1
"""Distance between the points of a centreline, mm, among which a voxel's nearest one is looked for."""


@dataclass(frozen=True)
class Artery:
    """An artery on its heart.

    Attributes:
        tree: "left" or "right".
        points: centreline (N, 3), RAS mm, from the ostium or, for a side branch, the axis of the artery it comes from.
        begin: arc length in mm from the first point to where the vessel's own coordinate ``s`` is 0: the ostium, or the
            wall of the artery it comes from.
        vessel: the anatomy in coordinates along and across.
        scan: noise of the scan, as :func:`~data_prep.coronary_tissues.vessel_hu` takes it.
    """

    tree: str
    points: np.ndarray
    begin: float
    vessel: Vessel
    scan: Mapping[str, float]


@dataclass(frozen=True)
class Heart:
    """One rendered volume: HU as int16 and labels as uint8, (X, Y, Z), with the affine to RAS mm."""

    hu: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    arteries: tuple[Artery, ...]


class HeartPhantom:
    """Hearts with a left anterior descending artery, a diagonal branch of it, and a right coronary artery.

    Args:
        spacing: voxel spacing in mm along the three axes, which lie obliquely.
    """

    def __init__(self, spacing: tuple[float, float, float] = (0.4, 0.4, 0.5)) -> None:
        self.spacing = spacing

    def render(self, seed: int) -> Heart:
        """Draw and render one heart."""
        rng = np.random.default_rng([seed, 7])
        axes = rng.uniform((31, 29, 38), (35, 33, 42))
        arteries = _arteries(rng, axes)
        affine, shape = self._grid(rng, np.concatenate([artery.points for artery in arteries]))
        hu, label = _paint(rng, arteries, axes, affine, shape, self.spacing)
        scan = arteries[0].scan
        hu = blur(hu, self.spacing, scan["psf"])
        hu += correlated_noise(rng, shape, self.spacing, scan["noise"], scan["grain"])
        return Heart(np.rint(np.clip(hu, -1024, 3071)).astype(np.int16), label, affine, arteries)

    def _grid(self, rng: np.random.Generator, points: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """An oblique grid, left-handed as those made from DICOM are, around all centrelines."""
        turn = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag([-1.0, 1.0, 1.0]) @ np.diag(self.spacing)
        local = points @ np.linalg.inv(affine[:3, :3]).T
        margin = 10 / np.array(self.spacing)
        low = np.floor(local.min(0) - margin)
        affine[:3, 3] = affine[:3, :3] @ low
        return affine, tuple(int(n) for n in np.ceil(local.max(0) + margin - low))


def write_heart(phantom: HeartPhantom, seed: int, name: str, folder: Path) -> Heart:
    """Render a heart and write it into ``volumes/``, ``segmentations/`` and ``centerlines/``, each file atomically."""
    heart = phantom.render(seed)
    for sub, suffix, voxels in (("volumes", "img", heart.hu), ("segmentations", "coronary", heart.label)):
        image = nibabel.Nifti1Image(voxels, heart.affine)
        image.header.set_xyzt_units("mm")
        _write(folder / sub / f"{name}.{suffix}.nii.gz", gzip.compress(image.to_bytes(), 3, mtime=0))
    for tree in ("left", "right"):
        text = _polydata([artery.points for artery in heart.arteries if artery.tree == tree])
        _write(folder / "centerlines" / f"{name}.coronary_{tree}_centerline.vtk", text.encode("ascii"))
    return heart


def _arteries(rng: np.random.Generator, axes: np.ndarray) -> tuple[Artery, ...]:
    """The arteries, whose centrelines run on an ellipsoid with half-axes ``axes``, mm."""

    def curve(polar: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
        """Points given by their angle from superior, and the angle about that axis from right over anterior to left."""
        across = np.sin(polar)
        return axes * np.stack([across * np.cos(azimuth), across * np.sin(azimuth), np.cos(polar)], axis=1)

    t = np.linspace(0, 1, 400)
    phases, sway = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.02, 0.06, 3)
    waves = [size * np.sin(2 * np.pi * 2.5 * t + phase) * smooth_step(4 * t) for size, phase in zip(sway, phases)]
    polar, azimuth = 0.75 + 1.95 * t, 2.2 - 0.35 * t + 2 * waves[0]
    descending = curve(polar, azimuth)
    right = curve(0.80 + 0.65 * smooth_step(2.5 * t) + waves[1], 1.25 - rng.uniform(2.6, 3.1) * t)
    leaves = int(rng.uniform(0.25, 0.35) * len(t))
    side = curve(polar[leaves] + 0.75 * t, azimuth[leaves] + 1.1 * t + waves[2])
    side += (1 - smooth_step(3 * t))[:, None] * (descending[leaves] - side[0])

    seed = int(rng.integers(2**31))
    first = _artery(seed, "left", descending, 0.0, thin=1.0)
    branch = _artery(seed + 1, "left", side, _leaves(first, side), thin=0.62, scan=first.scan)
    return first, branch, _artery(seed + 2, "right", right, 0.0, thin=1.0, scan=first.scan)


def _leaves(artery: Artery, side: np.ndarray) -> float:
    """Arc length at which a side branch (N, 3) leaves the lumen and the plaques of the artery that it comes from."""
    where, s, u, v = _vessel_coordinates(artery, side.T[:, :, None, None])
    label = np.zeros(len(side), np.uint8)
    label[where[0]] = artery.vessel.label(s, u, v)
    return float(arc_length(side)[np.argmin(label > 0)])


def _artery(
    seed: int, tree: str, points: np.ndarray, begin: float, thin: float, scan: Mapping[str, float] | None = None
) -> Artery:
    """An artery along a centreline. One narrowed by ``thin`` < 1 has no plaque: there would be no room for it."""
    exogenous = draw(np.random.default_rng(seed))
    exogenous["vessel"]["length"] = float(arc_length(points)[-1]) - begin
    exogenous["vessel"]["radius"] *= thin
    if thin < 1:
        exogenous["noise"]["burden"] = -5.0
    vessel = Vessel(exogenous)
    vessel.fit(Grid.of((256, 64, 64), vessel.length, 16.0), factual(exogenous, 3))
    return Artery(tree, points, begin, vessel, scan or exogenous["scan"])


def _paint(
    rng: np.random.Generator,
    arteries: tuple[Artery, ...],
    axes: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """HU (float32) before the scanner blurs them, and labels."""
    index = np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)
    world = np.stack([sum(affine[r, c] * index[c] for c in range(3)) + affine[r, 3] for r in range(3)])
    world = world.astype(np.float32)
    hu = _heart(rng, arteries, axes, world, shape, spacing)
    label = np.zeros(shape, np.uint8)
    for artery in arteries:
        where, s, u, v = _vessel_coordinates(artery, world)
        at = artery.vessel.points(s, u, v)
        margins = artery.vessel.margins(at)
        own = artery.vessel.label_at(at, margins)
        tissue = vessel_hu(artery.vessel, at, margins, artery.scan)
        # Where a side branch leaves, voxels of the artery that it comes from keep their label and tissue.
        free = label[where] == 0
        label[tuple(w[free] for w in where)] = own[free]
        free &= ~np.isnan(tissue)
        hu[tuple(w[free] for w in where)] = tissue[free]
    return hu, label


def _vessel_coordinates(
    artery: Artery, world: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, np.ndarray]:
    """The voxels near an artery, and their coordinates s, u, v in mm."""
    length = float(arc_length(artery.points)[-1])
    count = round(length / STEP)
    frames = make_frames(artery.points, count)
    tree = KDTree(frames.points)
    # First every fourth voxel along each axis, then those of the blocks that are near.
    blocks = np.moveaxis(world[:, ::4, ::4, ::4], 0, -1)
    near = np.isfinite(tree.query(blocks, distance_upper_bound=REACH + 4)[0])
    for axis in range(3):
        near = near.repeat(4, axis).take(range(world.shape[axis + 1]), axis)
    where = np.nonzero(near)
    places = np.stack([axis[where] for axis in world], axis=1)
    distance, nearest = tree.query(places, distance_upper_bound=REACH)
    close = np.isfinite(distance)
    where, places, nearest = tuple(w[close] for w in where), places[close], nearest[close]
    offset = places - frames.points[nearest]
    along, across, beside = (
        np.einsum("ij,ij->i", offset, vectors[nearest])
        for vectors in (frames.tangents, frames.normals, frames.binormals)
    )
    s = (nearest + 0.5) * length / count + along
    inside = (s > 0) & (s < length)
    return tuple(w[inside] for w in where), s[inside] - artery.begin, across[inside], beside[inside]


def _heart(
    rng: np.random.Generator,
    arteries: tuple[Artery, ...],
    axes: np.ndarray,
    world: np.ndarray,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
) -> np.ndarray:
    """HU of muscle, blood, fat, pericardium and lung; the arteries lie in the fat, 3 mm above the muscle."""
    texture = smooth_field(rng, shape, spacing, 1.2)
    relative = np.sqrt(sum((c / a) ** 2 for c, a in zip(world, axes)))
    depth = (1 - relative) * float(np.mean(axes)) + 0.4 * texture
    hu = -95 + 12 * texture
    for value, cover in (
        (100 + 6 * texture, depth - 3.0),
        (330 + 6 * texture, depth - 13.0),
        (15.0, 0.7 - np.abs(depth + 7.5)),
        (-820 + 20 * texture, -depth - 8.5),
    ):
        hu += (value - hu) * smooth_step(cover / 0.6 + 0.5)
    # The root of the aorta, on whose wall both ostia lie.
    ostia = [artery.points[0] for artery in arteries if artery.begin == 0]
    middle = np.mean(ostia, axis=0)
    centre = middle * (1 - 7.0 / np.linalg.norm(middle))
    radius = float(np.linalg.norm(ostia[0] - centre))
    distance = np.sqrt(sum((c - m) ** 2 for c, m in zip(world, centre)))
    return hu + (arteries[0].scan["lumen"] - hu) * smooth_step((radius - distance) / 0.6 + 0.5)


def _polydata(lines: list[np.ndarray]) -> str:
    """Legacy VTK polydata in LPS, as ImageCAS-X has it: a line for each artery, ``start_points`` marking the ostium.

    A side branch shares its first point with the artery it comes from.
    """
    points: list[np.ndarray] = []
    cells = []
    for line in lines:
        known = {tuple(p): i for i, p in enumerate(points)}
        cell = []
        for point in np.round(line * (-1, -1, 1), 4):
            if tuple(point) not in known:
                known[tuple(point)] = len(points)
                points.append(point)
            cell.append(known[tuple(point)])
        cells.append(cell)
    marks = [1 if i == cells[0][0] else 0 for i in range(len(points))]
    rows = [
        "# vtk DataFile Version 3.0", "centreline", "ASCII", "DATASET POLYDATA", f"POINTS {len(points)} double",
        *(" ".join(f"{c:.4f}" for c in point) for point in points),
        f"LINES {len(cells)} {sum(len(cell) + 1 for cell in cells)}",
        *(" ".join(map(str, [len(cell), *cell])) for cell in cells),
        f"POINT_DATA {len(points)}", "SCALARS start_points int 1", "LOOKUP_TABLE default", *map(str, marks),
    ]  # fmt: skip
    return "\n".join(rows) + "\n"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))
