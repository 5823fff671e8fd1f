"""Centrelines, frames and sampling, against curves and volumes given by formulas."""

import numpy as np
import pytest
from scipy.spatial import KDTree

from data_prep.cases import Rejected
from data_prep.centrelines import (
    arc_length,
    check_centreline,
    find_centrelines,
    join_lines,
    read_centrelines,
    smooth_curve,
    split_vessels,
)  # fmt: skip
from data_prep.polydata import Polylines
from data_prep.straightening import (
    first_normal,
    make_frames,
    rotation_minimising,
    sample_grid,
    sample_image,
    sample_labels,
)

RADIUS, PITCH = 20.0, 8.0
LENGTH_PER_TURN = float(np.hypot(RADIUS, PITCH))


def helix(count: int, turns: float = 2.0) -> np.ndarray:
    """Points of a helix of radius 20 mm, rising by 8 mm for each radian."""
    t = np.linspace(0, turns, count)
    return np.stack([RADIUS * np.cos(t), RADIUS * np.sin(t), PITCH * t], axis=1)


def oblique_affine(spacing=(0.5, 0.4, 0.6)) -> np.ndarray:
    """Rotated about two axes, anisotropic, left-handed as NIfTI from DICOM often is."""
    a, b = 0.4, -0.3
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.0, 1.0]) @ np.diag(spacing)
    return affine


def grid_around(points: np.ndarray, affine: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The affine moved so that a grid holds the points with a margin, and the grid's world coordinates."""
    local = points @ np.linalg.inv(affine[:3, :3]).T
    low = np.floor(local.min(0) - margin / 0.4)
    shape = np.ceil(local.max(0) - low + margin / 0.4).astype(int)
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ low
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return moved, index @ moved[:3, :3].T + moved[:3, 3]


def test_frames_turn_against_the_helix_torsion():
    """Relative to the Frenet frame of a helix a rotation-minimising frame turns at the rate of minus the torsion."""
    frames = make_frames(helix(4000), 200)
    t = (np.arange(200) + 0.5) * 2.0 / 200
    inward = np.stack([-np.cos(t), -np.sin(t), 0 * t], axis=1)  # the Frenet normal
    side = np.cross(frames.tangents, inward)
    angle = np.unwrap(np.arctan2((frames.normals * side).sum(1), (frames.normals * inward).sum(1)))
    torsion = PITCH / LENGTH_PER_TURN**2
    np.testing.assert_allclose(angle - angle[0], -torsion * LENGTH_PER_TURN * (t - t[0]), atol=2e-4)


def test_frames_are_orthonormal_right_handed_and_evenly_spaced():
    frames = make_frames(helix(300), 256)
    matrix = np.stack([frames.tangents, frames.normals, frames.binormals], axis=1)
    np.testing.assert_allclose(matrix @ matrix.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (256, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrix), 1)
    part = 2 * LENGTH_PER_TURN / 256
    np.testing.assert_allclose(arc_length(frames.points)[1:], np.arange(1, 256) * part, rtol=2e-3)
    assert frames.normals[0][2] == pytest.approx(np.sqrt(1 - frames.tangents[0][2] ** 2))  # as much superior as can be


def test_the_frame_of_a_straight_line_does_not_turn():
    line = np.outer(np.linspace(0, 30, 50), [0.0, 0.0, 1.0])
    normals = rotation_minimising(line, np.tile([0.0, 0.0, 1.0], (50, 1)), first_normal(np.array([0.0, 0.0, 1.0])))
    np.testing.assert_allclose(normals, np.tile([0.0, 1.0, 0.0], (50, 1)), atol=1e-12)


def test_smoothing_takes_jitter_and_leaves_curve_and_ends():
    clean = helix(400)
    noisy = clean + 0.2 * np.random.default_rng(0).standard_normal(clean.shape)
    curve, length = smooth_curve(noisy, 1.0)
    found = curve(np.linspace(0, length, 200))
    distance = KDTree(helix(20000)).query(found)[0]
    assert np.sqrt((distance**2).mean()) < 0.1
    np.testing.assert_allclose(found[[0, -1]], noisy[[0, -1]], atol=1e-6)


def test_an_oblique_anisotropic_volume_is_straightened_to_the_formula():
    """Intensity is a function of arc length and of the position across, so the value of each sample is known."""
    points = helix(4000, turns=1.0)
    affine, world = grid_around(points, oblique_affine(), margin=7)
    fine = make_frames(points, 4000)
    distance, nearest = KDTree(fine.points).query(world, distance_upper_bound=8)
    near = np.isfinite(distance)
    offset, nearest = world[near] - fine.points[nearest[near]], nearest[near]
    u, v = (offset * fine.normals[nearest]).sum(1), (offset * fine.binormals[nearest]).sum(1)
    s = (nearest + 0.5) * LENGTH_PER_TURN / 4000
    volume = np.full(near.shape, np.nan)
    volume[near] = 300 + 40 * u - 25 * v + 4 * s
    frames = make_frames(points, 64)
    grid = sample_grid(frames, (16, 16), 0.5, 0, affine)
    image = sample_image(volume, grid, order=1, outside=-1000)
    across = (np.arange(16) - 7.5) * 0.5
    along = (np.arange(64) + 0.5) * LENGTH_PER_TURN / 64
    expected = 300 + 40 * across[None, :, None] - 25 * across[None, None, :] + 4 * along[:, None, None]
    np.testing.assert_allclose(image, expected, atol=3)
    cut = sample_grid(frames, (16,), 0.5, 90, affine)
    cubic = sample_image(np.nan_to_num(volume, nan=300.0), cut, 3, -1000)
    np.testing.assert_allclose(cubic, 300 - 25 * across + 4 * along[:, None], atol=3)


def test_labels_are_those_of_the_voxels_and_nothing_else():
    label = np.random.default_rng(0).integers(0, 4, (12, 12, 12)).astype(np.uint8) * 5
    voxels = np.random.default_rng(1).uniform(0, 11, (3, 40, 6)).astype(np.float32)
    found = sample_labels(label, voxels)
    np.testing.assert_array_equal(found, label[tuple(np.rint(voxels).astype(int))])
    assert (sample_labels(label, voxels + 100) == 0).all()
    assert (sample_image(label, voxels + 100, 1, -1000) == -1000).all()


def tree() -> Polylines:
    """A trunk of 20 mm, then branches of 30 and 12 mm; the lines run as they like."""
    trunk = np.outer(np.arange(21), [0, 0, 1.0])
    long = trunk[-1] + np.outer(np.arange(31), [0, 0.6, 0.8])
    short = trunk[-1] + np.outer(np.arange(13), [0, -0.6, 0.8])
    points = np.concatenate([long, trunk, short])
    lines = [np.arange(31)[::-1], 31 + np.arange(21), 52 + np.arange(13)]
    marks = np.zeros((65, 1))
    marks[31] = 1
    return Polylines(points, lines, {"start_points": marks})


def test_a_tree_is_taken_apart_from_the_marked_ostium_longest_first():
    vessels = split_vessels(tree())
    assert [round(arc_length(v.points)[-1]) for v in vessels] == [50, 12]
    assert [v.start for v in vessels] == pytest.approx([0, 20])
    np.testing.assert_array_equal(vessels[0].points[0], [0, 0, 0])
    np.testing.assert_array_equal(vessels[1].points[0], [0, 0, 20])


def test_without_a_mark_the_end_given_first_is_the_ostium():
    line = Polylines(helix(50), [np.arange(50)])
    np.testing.assert_allclose(split_vessels(line)[0].points[0], [RADIUS, 0, 0], atol=1e-4)
    back = Polylines(helix(50), [np.arange(50)[::-1]])
    np.testing.assert_allclose(split_vessels(back)[0].points[-1], [RADIUS, 0, 0], atol=1e-4)


@pytest.mark.parametrize("marked", [True, False])
def test_two_vessels_of_one_ostium_both_begin_there(marked):
    """The left main may be missing: the ostium is then no end, but a point within the tree."""
    first, second = (np.outer(np.arange(n), d) for n, d in ((61, [0, 0.6, -0.8]), (41, [0.8, 0, -0.6])))
    marks = np.zeros((102, 1))
    marks[[0, 61]] = 1
    lines = [np.arange(61, 102), np.arange(61)]
    vessels = split_vessels(
        Polylines(np.concatenate([first, second]), lines, {"start_points": marks} if marked else {})
    )
    assert [round(arc_length(v.points)[-1]) for v in vessels] == [60, 40]
    for vessel in vessels:
        assert vessel.start == 0 and vessel.tree == 0
        np.testing.assert_array_equal(vessel.points[0], [0, 0, 0])


def test_a_side_branch_that_is_given_first_does_not_begin_the_tree():
    trunk = np.outer(np.arange(41), [0, 0, 1.0])
    side = trunk[10] + np.outer(np.arange(21), [0, 0.6, 0.8])
    vessels = split_vessels(Polylines(np.concatenate([side, trunk]), [np.arange(21), np.arange(21, 62)]))
    assert [v.start for v in vessels] == pytest.approx([0, 10])
    np.testing.assert_array_equal(vessels[0].points[[0, -1]], trunk[[0, -1]])


@pytest.mark.parametrize("beside", [0.0, 0.6])
def test_a_branch_may_begin_between_the_points_of_its_parent_or_a_little_beside_it(beside):
    trunk = np.outer(np.arange(0, 41, 2), [0, 0, 1.0])
    side = np.array([0, beside, 11]) + np.outer(np.arange(25), [0, 0.6, 0.8])
    for lines in ([trunk, side], [side, trunk]):
        parts = [Polylines(points, [np.arange(len(points))]) for points in lines]
        vessels = split_vessels(join_lines(parts))
        assert [(v.start, v.tree) for v in vessels] == [(0, 0), (pytest.approx(11), 0)]
        np.testing.assert_array_equal(vessels[0].points[[0, -1]], trunk[[0, -1]])
        np.testing.assert_allclose(vessels[1].points[0], [0, 0, 11])
        assert [lines[v.line] is line for v, line in zip(vessels, (trunk, side))] == [True, True]


@pytest.mark.parametrize("beside", [0.0, 0.6])
def test_a_line_that_goes_on_from_the_end_of_another_makes_one_vessel_with_it(beside):
    first = np.outer(np.arange(21), [0, 0, 1.0])
    second = np.array([0, beside, 20.5]) + np.outer(np.arange(21), [0, 0, 1.0])
    (vessel,) = split_vessels(join_lines([Polylines(points, [np.arange(21)]) for points in (first, second)]))
    np.testing.assert_array_equal(vessel.points[[0, -1]], [first[0], second[-1]])
    assert smooth_curve(vessel.points, 1.0)[1] == pytest.approx(40.5, abs=0.2)


def test_far_ends_that_meet_do_not_join_two_trees():
    first = np.outer(np.arange(41), [0, 0, 1.0])
    second = np.array([20, 0.5, 40]) - np.outer(np.arange(21), [1.0, 0, 0])
    lines = join_lines([Polylines(first, [np.arange(41)]), Polylines(second, [np.arange(21)])])
    assert [v.tree for v in split_vessels(lines)] == [0, 1]


def test_a_cycle_is_cut_and_two_trees_stay_two():
    square = np.array([[0, 0, 0], [10, 0, 0], [10, 10.5, 0], [0, 10, 0], [50, 0, 0], [50, 9, 0]], float)
    vessels = split_vessels(Polylines(square, [np.array([0, 1, 2, 3, 0]), np.array([4, 5])]))
    assert [v.tree for v in vessels] == [0, 1]
    assert arc_length(vessels[0].points)[-1] == pytest.approx(30, abs=1)


@pytest.mark.parametrize("convention", ["LPS", "RAS"])
def test_a_table_of_coordinates_is_read_in_either_convention(tmp_path, convention):
    rows = ["line,X,Y,Z", *(f"{i // 3},{i},{2 * i},{3 * i}" for i in range(6))]
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    found = read_centrelines(tmp_path / "a.csv", convention)
    sign = -1 if convention == "LPS" else 1
    np.testing.assert_array_equal(found.points[1], [sign, 2 * sign, 3])
    assert [line.tolist() for line in found.lines] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "text",
    [
        "", "x,y\n1,2\n", "x,y,z\n1,2,three\n", "x,y,z\n1,2,3\n", "x,y,z\n1,2,3\n1,2,nan\n", "x,y,z\n1,2,3\n1,2,3\n",
        "x,y,z\n1,2,3\n2,2,3\n123456789012,2,3\n", "x,y,z\n1,2,3\n1e300,2,3\n",
    ],
)  # fmt: skip
def test_a_bad_table_is_rejected(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(Rejected) as caught:
        read_centrelines(tmp_path / "a.csv", "RAS")
    assert caught.value.reason == "centreline_unreadable"


def test_a_skeleton_follows_the_vessels_from_the_thicker_end():
    points = helix(400, turns=1.2)
    affine, world = grid_around(points, oblique_affine(), margin=6)
    distance, nearest = KDTree(points).query(world)
    mask = distance < 2.4 - 1.2 * nearest / 400  # thins from the first point on
    side = np.linspace(points[200], points[200] + np.array([0, 0, 12.0]), 100)
    mask |= KDTree(side).query(world)[0] < 1.2
    vessels = split_vessels(find_centrelines(mask, affine))
    assert len(vessels) == 2 and vessels[0].tree == vessels[1].tree
    assert np.linalg.norm(vessels[0].points[0] - points[0]) < 3
    curve, length = smooth_curve(vessels[0].points, 1.0)
    assert KDTree(points).query(curve(np.linspace(0, length, 100)))[0].mean() < 0.3
    ends = KDTree(points).query(vessels[0].points[[0, -1]])[1]
    first, last = arc_length(points)[ends]
    assert arc_length(vessels[0].points)[-1] == pytest.approx(last - first, rel=0.02)  # voxels alone give 12 % more
    junction = arc_length(points)[KDTree(points).query(vessels[1].points[0])[1]]
    assert vessels[1].start == pytest.approx(junction - first, abs=0.4)
    assert find_centrelines(np.zeros((5, 5, 5), bool), affine).lines == []


def test_short_and_folded_centrelines_are_rejected():
    check_centreline(helix(100), 20)
    there_and_back = np.concatenate([helix(100), helix(100)[::-1]])
    for points, reason in ((helix(100, 0.5), "centreline_short"), (there_and_back, "centreline_folded")):
        with pytest.raises(Rejected) as caught:
            check_centreline(points, 20)
        assert caught.value.reason == reason
    shuffled = np.random.default_rng(0).permutation(helix(60))
    with pytest.raises(Rejected, match="doubles back"):
        check_centreline(shuffled, 20)
