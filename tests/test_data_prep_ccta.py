"""CT volumes to straightened vessels: reading, geometry, which vessel a label belongs to, every fault's reason."""

import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from scipy.spatial import KDTree

import data_prep.planning
from data_prep.__main__ import main
from data_prep.cases import REASONS, Item, Rejected
from data_prep.ccta import CctaSource, Straightening
from data_prep.centrelines import Vessel, arc_length
from data_prep.executors import _batches
from data_prep.journal import stamp
from data_prep.outcomes import Worker
from data_prep.scans import find_scans, list_scans
from data_prep.territories import Axis, foreign, other_limb, trace_axes
from data_prep.volumes import Volume, read_ct, read_labels
from segcft_ext.datalist import read_datalist
from tests.ct_volumes import centreline, draw, write_csv, write_nifti, write_scan, write_series

LABELS = {"lumen": (1,), "calcified_plaque": (2,)}
LENGTH = float(arc_length(centreline(2000))[-1])


def source_of(root: Path, **options) -> CctaSource:
    return CctaSource(find_scans(root), Straightening(LABELS, **{"size": (96, 32), "spacing": 0.4} | options))


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan"))


def rejection(source: CctaSource, index: int = 0) -> Rejected:
    with pytest.raises(Rejected) as caught:
        source.load(source.items[index])
    assert caught.value.reason in REASONS
    assert "one" not in caught.value.text  # the scan's name
    return caught.value


def test_a_cut_shows_the_vessel_straight_with_its_physical_size(scan):
    source = pickle.loads(pickle.dumps(source_of(scan)))  # as processes get it
    assert [item.name for item in source.items] == ["one/left"]
    case = source.load(source.items[0])
    assert case.image.shape == case.label.shape == (96, 32)
    assert case.spacing == pytest.approx((LENGTH / 96, 0.4), rel=5e-3)
    assert case.arc_length == pytest.approx((0, LENGTH), rel=5e-3)
    assert (case.label == 1).sum() * np.prod(case.spacing) == pytest.approx(2 * 1.6 * LENGTH, rel=0.03)
    rows = np.flatnonzero((case.label == 2).any(1)) * case.spacing[0]
    assert rows.min() == pytest.approx(300 / 800 * LENGTH, abs=1) and rows.max() == pytest.approx(
        420 / 800 * LENGTH, abs=1
    )
    hu = -150 + 900 * case.image
    inside = case.label[:, 14:18] == 1
    assert np.median(hu[:, 14:18][inside]) == pytest.approx(380, abs=15)
    assert np.median(hu[:, :8]) == pytest.approx(-90, abs=10)


def test_a_volume_and_cuts_at_angles_are_of_one_patient(scan):
    source = source_of(scan, size=(96, 32, 32))
    case = source.load(source.items[0])
    assert case.spacing == pytest.approx((LENGTH / 96, 0.4, 0.4), rel=5e-3)
    assert (case.label == 1).sum() * np.prod(case.spacing) == pytest.approx(np.pi * 1.6**2 * LENGTH, rel=0.03)
    cuts = source_of(scan, angles=(0, 90, 180))
    assert [item.name for item in cuts.items] == ["one/left@0", "one/left@90", "one/left@180"]
    assert {item.patient for item in cuts.items} == {f"{scan.name}/one"}
    first, _, third = (cuts.load(item) for item in cuts.items)
    np.testing.assert_array_equal(first.label, third.label[:, ::-1])
    middle = case.label[:, :, 15:17]  # the plane v = 0 lies between two samples
    assert ((first.label == middle[..., 0]) | (first.label == middle[..., 1])).mean() > 0.97


def test_centrelines_are_found_in_the_label_volume_when_there_are_none(scan, tmp_path):
    for folder in ("volumes", "segmentations"):
        (tmp_path / folder).symlink_to(scan / folder)
    source = source_of(tmp_path)
    case = source.load(source.items[0])
    length = case.arc_length[1]
    assert LENGTH - 4 < length < LENGTH + 2
    assert (case.label == 1).sum() * np.prod(case.spacing) == pytest.approx(2 * 1.6 * length, rel=0.06)


def test_coarse_samples_of_a_long_vessel_are_averages(scan):
    """96 samples are 0.4 mm apart, 16 are 2.3 mm apart: each is the mean over its part, so noise falls."""
    fine, coarse = (source_of(scan, size=(n, 32)).load(source_of(scan, size=(n, 32)).items[0]) for n in (96, 16))
    assert coarse.image[:, :8].std() < 0.75 * fine.image[:, :8].std()
    assert (coarse.label == 1).sum() * np.prod(coarse.spacing) == pytest.approx(2 * 1.6 * LENGTH, rel=0.05)


@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_a_dicom_series_lies_where_the_same_nifti_file_does(tmp_path, tilt):
    hu, _, affine = draw()
    affine = affine + tilt * np.outer(
        affine[:, 1], [0, 0, 1, 0]
    )  # a gantry tilted: slices are not stacked along their normal
    write_nifti(tmp_path / "a.nii.gz", hu, affine)
    write_series(tmp_path / "series", hu, affine)
    series, nifti = read_ct(tmp_path / "series"), read_ct(tmp_path / "a.nii.gz")
    # The series may run the other way along its slices; the places of the voxels are what counts.
    flipped = np.linalg.det(series.affine) * np.linalg.det(nifti.affine) < 0
    voxels = series.voxels[:, :, ::-1] if flipped else series.voxels
    moved = series.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, hu.shape[2] - 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(voxels, nifti.voxels)
    np.testing.assert_allclose(moved if flipped else series.affine, nifti.affine, atol=1e-4)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("directions", [(1, 1, 1), (1, -1, 1), (-1, 1, -1)])
def test_labels_in_another_order_of_axes_are_turned_to_the_image(scan, tmp_path, axes, directions):
    _, label, affine = draw()
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(axes):
        turn[old, new] = directions[old]
        turn[old, 3] = 0 if directions[old] > 0 else label.shape[old] - 1
    turned = label[tuple(slice(None, None, step) for step in directions)].transpose(axes)
    for folder in ("volumes", "centerlines"):
        (tmp_path / folder).symlink_to(scan / folder)
    write_nifti(tmp_path / "segmentations" / "one.coronary.nii.gz", turned, affine @ turn)
    found, expected = (source.load(source.items[0]) for source in (source_of(tmp_path), source_of(scan)))
    np.testing.assert_array_equal(found.label, expected.label)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_label_volume_is_read_without_copies_of_it(tmp_path, dtype):
    label = np.zeros((160, 160, 80), dtype)
    label[40:60, 40:60, 20:60], label[60:70] = 7, 9
    nibabel.Nifti1Image(label, np.eye(4)).to_filename(tmp_path / "a.nii")
    tracemalloc.start()
    found = read_labels(tmp_path / "a.nii", {1: (7, 8), 2: (9,)}).voxels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.where(label == 7, 1, np.where(label == 9, 2, 0)))
    assert peak < 2 * label.size + 2**20


@pytest.mark.parametrize(
    ("value", "reason"), [(5, "unknown_label"), (-1, "unknown_label"), (1e30, "unknown_label"), (0.5, "bad_label"),
                          (np.nan, "bad_label"), (1j, "bad_label")],
)  # fmt: skip
def test_a_value_that_no_structure_has_is_found(tmp_path, value, reason):
    label = np.zeros((8, 8, 8), np.complex64 if isinstance(value, complex) else np.float32)
    label[3, 4, 5] = value
    nibabel.Nifti1Image(label, np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(Rejected) as caught:
        read_labels(tmp_path / "a.nii", {1: (7,)})
    assert caught.value.reason == reason


def test_labels_that_were_saved_as_scaled_integers_are_whole(tmp_path):
    """As nibabel saves floats with the header of the CT."""
    label = np.arange(512, dtype=float).reshape(8, 8, 8) % 15
    for dtype in (np.int16, np.uint8):
        image = nibabel.Nifti1Image(label, np.eye(4))
        image.set_data_dtype(dtype)
        image.to_filename(tmp_path / "a.nii")
        assert (nibabel.load(tmp_path / "a.nii").get_fdata() != label).any()
        found = read_labels(tmp_path / "a.nii", {value: (value,) for value in range(1, 15)})
        np.testing.assert_array_equal(found.voxels, label)


def test_scaled_and_micrometre_nifti_files_are_in_hounsfield_units_and_millimetres(tmp_path):
    hu, _, affine = draw()
    image = nibabel.Nifti1Image((hu + 1024).astype(np.uint16), np.diag([1000, 1000, 1000, 1]) @ affine)
    image.header.set_slope_inter(1.0, -1024.0)
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    volume = read_ct(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.voxels, hu)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)


def touch(folder, *names):
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_scans_are_found_by_their_names(tmp_path):
    touch(
        tmp_path,
        "volumes/7.img.nii.gz", "volumes/7_b/1.dcm", "volumes/.hidden", "segmentations/7.coronary.nii.gz",
        "segmentations/7_b.nii.gz", "segmentations/9.coronary.nii.gz", "centerlines/7.coronary_left_centerline.vtk",
        "centerlines/7.coronary_right_centerline.vtk", "centerlines/7_b.vtp", "centerlines/7_b_LAD.csv",
    )  # fmt: skip
    scans = {scan.name: scan for scan in find_scans(tmp_path)}
    assert list(scans) == ["7", "7_b", "9"]
    assert [name for name, _ in scans["7"].centrelines] == ["left", "right"]
    assert [name for name, _ in scans["7_b"].centrelines] == ["LAD", "vessel"]
    assert [path.name for path in scans["7_b"].labels] == ["7_b.nii.gz"]
    assert scans["9"].volumes == () and len(scans["9"].labels) == 1


def test_words_that_tell_what_a_file_is_are_no_part_of_a_name_but_at_its_end(tmp_path):
    touch(
        tmp_path,
        "volumes/img_001.nii.gz", "segmentations/img_001.label.nii.gz", "centerlines/img_001_LAD.csv",
        "volumes/coronary_7.img.nii.gz", "segmentations/coronary_7 seg.nii.gz",
        "centerlines/coronary_7.coronary_left.csv",
        "volumes/img.nii.gz", "segmentations/img.coronary_label.nii.gz", "centerlines/img_centerline.vtk",
    )  # fmt: skip
    scans = {scan.name: scan for scan in find_scans(tmp_path)}
    assert list(scans) == ["coronary_7", "img", "img_001"]
    assert all(len(scan.volumes) == len(scan.labels) == 1 for scan in scans.values())
    assert [scan.centrelines[0][0] for scan in scans.values()] == ["left", "vessel", "LAD"]


def test_what_belongs_to_a_scan_without_a_volume_is_not_given_to_another_one(tmp_path):
    touch(
        tmp_path,
        "volumes/p.nii.gz", "segmentations/p.nii.gz", "segmentations/p_2.nii.gz", "centerlines/p_2_LAD.csv",
    )  # fmt: skip
    first, second = find_scans(tmp_path)
    assert (first.name, [path.name for path in first.labels], first.centrelines) == ("p", ["p.nii.gz"], ())
    assert (second.name, second.volumes, len(second.labels)) == ("p_2", (), 1)
    assert [name for name, _ in second.centrelines] == ["LAD"]


def test_a_list_names_files_vessels_and_patients(scan, tmp_path):
    table = tmp_path / "list.csv"
    rows = ["volume,label,centreline,vessel,patient"]
    for vessel, patient in (("LAD", "p1"), ("again", "p1")):
        files = ("volumes/one.img.nii.gz", "segmentations/one.coronary.nii.gz")
        line = "centerlines/one.coronary_left_centerline.csv"
        rows.append(",".join([*(str(scan / file) for file in (*files, line)), vessel, patient]))
    table.write_text("\n".join(rows), encoding="utf-8")
    source = CctaSource(list_scans(table), Straightening(LABELS, size=(96, 32)))
    assert [(item.source, item.patient, item.name.rsplit("/", 1)[1]) for item in source.items] == [
        ("list", "p1", "LAD"), ("list", "p1", "again"),
    ]  # fmt: skip
    assert source.load(source.items[0]).label.any()
    assert "nothing of the centreline is left" in rejection(source, 1).text  # it is the same line
    table.write_text("volume,mask\na,b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="mask"):
        list_scans(table)


def test_scans_of_one_number_in_two_sources_are_of_two_patients(scan, tmp_path):
    for site in ("a", "b"):
        shutil.copytree(scan, tmp_path / site)
        files = (scan / "volumes/one.img.nii.gz", scan / "segmentations/one.coronary.nii.gz")
        (tmp_path / f"list_{site}.csv").write_text("volume,label\n" + ",".join(map(str, files)), encoding="utf-8")
    found = [*find_scans(tmp_path / "a"), *find_scans(tmp_path / "b")]
    found += [*list_scans(tmp_path / "list_a.csv"), *list_scans(tmp_path / "list_b.csv")]
    assert len({scan.name for scan in found}) == 2
    assert len({scan.patient for scan in found}) == 4


def test_a_row_without_a_centreline_beside_one_with_it_is_refused(scan, tmp_path):
    files = f"{scan / 'volumes/one.img.nii.gz'},{scan / 'segmentations/one.coronary.nii.gz'}"
    line = scan / "centerlines/one.coronary_left_centerline.csv"
    rows = ["volume,label,centreline,vessel", f"{files},{line},LAD", f"{files},,RCA"]
    (tmp_path / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=r"list.csv: centreline: found none of vessel RCA for volume .*one.img.nii.gz"):
        list_scans(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("\n".join([rows[0], rows[2]]), encoding="utf-8")
    assert list_scans(tmp_path / "list.csv")[0].centrelines == ()


def test_a_source_whose_name_is_not_utf_8_is_named_so_that_it_can_be_written(scan, tmp_path):
    name = os.fsdecode(b"ct\xff")
    shutil.copytree(scan, tmp_path / name)
    files = f"{scan / 'volumes/one.img.nii.gz'},{scan / 'segmentations/one.coronary.nii.gz'}"
    (tmp_path / f"{name}.csv").write_text(f"volume,label\n{files}", encoding="utf-8")
    for found in (find_scans(tmp_path / name), list_scans(tmp_path / f"{name}.csv")):
        assert found[0].source == "ct?" and found[0].patient.startswith("ct?/")


def test_a_neighbour_and_a_side_branch_are_not_the_vessels_own():
    """Three vessels in a plane: a trunk, a branch that leaves it at 20 mm, a stranger 5 mm beside it."""
    trunk = np.stack([np.zeros(81), np.zeros(81), np.arange(81) * 0.5], axis=1)
    side = trunk[40] + np.outer(np.arange(61) * 0.5, [np.sqrt(0.5), 0, np.sqrt(0.5)])
    stranger = trunk + np.array([0, 5, 0])
    affine = np.diag([0.3, 0.3, 0.3, 1.0])
    affine[:3, 3] = (-6, -6, -3)
    index = np.stack(np.meshgrid(*map(np.arange, (120, 60, 160)), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]

    def tube(points: np.ndarray, radius: float) -> np.ndarray:
        t = np.clip(((world - points[0]) @ (points[-1] - points[0])) / ((points[-1] - points[0]) ** 2).sum(), 0, 1)
        return np.linalg.norm(world - points[0] - t[..., None] * (points[-1] - points[0]), axis=-1) < radius

    masks = [tube(trunk, 2.0), tube(side, 1.2), tube(stranger, 1.5)]
    label = Volume(np.any(masks, axis=0).astype(np.uint8), affine)
    vessels = [Vessel(trunk, 0.0, 0), Vessel(side, 20.0, 0), Vessel(stranger, 0.0, 1)]
    axes = trace_axes(vessels, label, 0.0)
    assert [float(np.median(axis.radii)) for axis in axes] == pytest.approx([2.0, 1.2, 1.5], abs=0.15)
    # At 45° the branch's axis leaves the trunk after 2 mm / sin 45°.
    assert axes[1].start == pytest.approx(20 + 2 * np.sqrt(2), abs=0.6)

    # A copy of the stem is the trunk's, although the label begins 1 mm behind the lines.
    begun = Volume(label.voxels * (world[..., 2] > 1), affine)
    copy = trace_axes([vessels[0], Vessel(trunk[:50] + 0.05, 0.0, 0)], begun, 0.0)[1]
    assert copy.length < 1

    places = world[label.voxels > 0]
    member = np.stack([mask[label.voxels > 0] for mask in masks])
    for own, points in ((0, trunk), (2, stranger)):
        radius = float(np.median(axes[own].radii))
        depth = radius - np.linalg.norm(places[:, :2] - points[0, :2], axis=1)
        kept = ~foreign(axes, own, places, depth)
        assert kept[member[own]].mean() > 0.99
        outside = ~member[own] & (places[:, 2] > 0) & (places[:, 2] < 40)
        assert kept[outside & (depth < -0.5)].mean() < 0.03
    assert not foreign(axes[:1], 0, places, np.zeros(len(places))).any()


def test_the_other_limb_of_a_vessel_that_bends_back_is_not_shown_twice():
    """Two limbs of 30 mm, 6 mm apart, and an arch between them; the vessel is 1.5 mm in radius."""
    straight, turn = np.arange(0, 30, 0.5), np.linspace(0, np.pi, 20)
    limbs = [np.stack([np.full(60, x), y, np.zeros(60)], axis=1) for x, y in ((-3, straight), (3, straight[::-1]))]
    arch = np.stack([-3 * np.cos(turn), 30 + 3 * np.sin(turn), np.zeros(20)], axis=1)
    points = np.concatenate([limbs[0], arch, limbs[1]])
    axis = Axis(points, np.full(len(points), 1.5), 0.0, 0)
    at = np.tile(arc_length(points), 2)
    beside = points + np.array([0, 0, 1.4])
    for shift, expected in ((0, False), (6, True)):  # of the places of the first limb: its own, and the other limb's
        places = np.concatenate([points, beside]) + np.array([shift, 0, 0])
        first = np.tile(np.arange(len(points)) < 60, 2)
        depth = 1.5 - np.tile([shift, np.hypot(shift, 1.4)], (len(points), 1)).T.reshape(-1)
        assert (other_limb(axis, places, depth, at)[first] == expected).all()
    assert not other_limb(axis, beside, np.full(len(points), 0.1), arc_length(points)).any()


def test_files_of_one_scan_share_their_stem(tmp_path):
    """Three vessels, each drawn from the ostium on in its own file, with points and jitter of its own."""
    trunk = np.outer(np.arange(81) * 0.5, [0, 0, 1.0])
    side = trunk[40] + np.outer(np.arange(1, 31) * 0.5, [np.sqrt(0.5), 0, np.sqrt(0.5)])
    other = np.outer(np.arange(1, 61) * 0.5, [0, 1.0, 0])
    random = np.random.default_rng(0)
    files = {"LAD": trunk, "D1": np.concatenate([trunk[1:41:3], side]), "LCX": np.concatenate([trunk[:1], other])}
    affine = np.diag([0.4, 0.4, 0.4, 1.0])
    affine[:3, 3] = (-8, -8, -4)
    index = np.stack(np.meshgrid(*map(np.arange, (90, 110, 120)), indexing="ij"), axis=-1)
    tree = KDTree(np.concatenate([trunk, side, other]))
    distance = tree.query(index @ affine[:3, :3].T + affine[:3, 3], distance_upper_bound=2)[0]
    label = (distance < 1.5).astype(np.uint8)
    hu = np.where(label, 350, np.where(index[..., 0] < 10, -900, -90)).astype(np.int16)
    write_nifti(tmp_path / "volumes" / "one.nii.gz", hu, affine)
    write_nifti(tmp_path / "segmentations" / "one.nii.gz", label, affine)
    for name, points in files.items():
        write_csv(tmp_path / "centerlines" / f"one_{name}.csv", points + random.normal(0, 0.05, points.shape))
    source = source_of(tmp_path, convention="RAS", size=(64, 40, 40), shortest=10)
    cases = {item.name: source.load(item) for item in source.items}
    assert set(cases) == {"one/LAD", "one/D1", "one/LCX"}
    assert cases["one/LAD"].arc_length == pytest.approx((0, 40), abs=0.5)
    assert cases["one/D1"].arc_length == pytest.approx((20 + 1.5 * np.sqrt(2), 35), abs=1.2)
    assert cases["one/LCX"].arc_length == pytest.approx((1.5, 30), abs=0.7)
    volume = sum(float((case.label > 0).sum() * np.prod(case.spacing)) for case in cases.values())
    assert volume == pytest.approx(float(label.sum()) * 0.4**3, rel=0.06)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_centreline_drawn_backwards_is_noted(tmp_path, backwards):
    hu, _, affine = draw()
    index = np.stack(np.meshgrid(*map(np.arange, hu.shape), indexing="ij"), axis=-1)
    distance, nearest = KDTree(centreline(800)).query(index @ affine[:3, :3].T + affine[:3, 3], distance_upper_bound=3)
    label = (distance < 2.2 - 1.2 * nearest / 800).astype(np.uint8)
    root = write_scan(tmp_path)
    write_nifti(root / "volumes" / "one.img.nii.gz", np.where(label, 380, -90).astype(np.int16), affine)
    write_nifti(root / "segmentations" / "one.coronary.nii.gz", label, affine)
    write_csv(line(root), lps()[:: -1 if backwards else 1])
    source = source_of(root)
    assert source.load(source.items[0]).notes == (("centreline_reversed",) if backwards else ())


FAULTS = {
    "missing_image": lambda root: (root / "volumes" / "one.img.nii.gz").unlink(),
    "missing_mask": lambda root: (root / "segmentations" / "one.coronary.nii.gz").unlink(),
    "duplicate_name": lambda root: (root / "volumes" / "one.nii").touch(),
    "unreadable": lambda root: (root / "volumes" / "one.img.nii.gz").write_bytes(b"\x1f\x8b no volume"),
    "centreline_unreadable": lambda root: line(root).write_text("nothing"),
    "centreline_short": lambda root: write_csv(line(root), lps()[:30]),
    "centreline_folded": lambda root: write_csv(line(root), np.random.default_rng(0).permutation(lps())),
    "centreline_outside": lambda root: write_csv(line(root), lps() * (-1, -1, 1)),
    "centreline_off_vessel": lambda root: write_csv(line(root), lps() + np.array([5, 5, 0])),
    "shape_mismatch": lambda root: relabel(root, lambda voxels, affine: (voxels[:-1], affine)),
    "grid_mismatch": lambda root: relabel(root, lambda voxels, affine: (voxels, affine + shift(0.2))),
    "empty_structure": lambda root: relabel(root, lambda voxels, affine: (0 * voxels, affine)),
    "unknown_label": lambda root: relabel(root, lambda voxels, affine: (4 * voxels, affine)),
    "bad_label": lambda root: relabel(root, lambda voxels, affine: (voxels * np.float32(0.5), affine)),
    "not_hounsfield": lambda root: recolour(root, lambda voxels: voxels + 1024),
    "not_finite": lambda root: recolour(root, lambda voxels: np.where(voxels > 700, np.nan, voxels).astype("f4")),
}  # fmt: skip


def line(root: Path) -> Path:
    return root / "centerlines" / "one.coronary_left_centerline.csv"


def lps() -> np.ndarray:
    return centreline() * (-1, -1, 1)


def shift(millimetres: float) -> np.ndarray:
    moved = np.zeros((4, 4))
    moved[0, 3] = millimetres
    return moved


def relabel(root: Path, change) -> None:
    _, label, affine = draw()
    write_nifti(root / "segmentations" / "one.coronary.nii.gz", *change(label, affine))


def recolour(root: Path, change) -> None:
    hu, _, affine = draw()
    write_nifti(root / "volumes" / "one.img.nii.gz", change(hu), affine)


@pytest.mark.parametrize("reason", FAULTS)
def test_each_fault_has_its_reason(tmp_path, reason):
    root = write_scan(tmp_path / "set")
    FAULTS[reason](root)
    assert rejection(source_of(root)).reason == reason


@pytest.mark.parametrize("text", ["x,y,z\n1,2,3\n1,2,3\n", "x,y,z\n1,2,3\n1,2,3.00001\n", "x,y,z\n0,0,0\n1e300,0,0\n"])
def test_a_bad_centreline_costs_its_own_case_only(tmp_path, text):
    root = write_scan(tmp_path)
    (root / "centerlines" / "one.bad.csv").write_text(text, encoding="utf-8")
    source = source_of(root)
    assert sorted(item.name for item in source.items) == ["one/bad", "one/left"]
    good, bad = sorted((item.name == "one/bad", item.index) for item in source.items)
    assert source.load(source.items[good[1]]).label.any()
    assert rejection(source, bad[1]).reason == "centreline_unreadable"


@pytest.mark.parametrize("step", ["find_centrelines", "split_vessels"])
def test_a_scan_whose_vessels_cannot_be_found_costs_its_own_case_only(tmp_path, monkeypatch, step):
    for name in ("scan1", "scan2"):
        write_scan(tmp_path, name)
    if step == "find_centrelines":
        shutil.rmtree(tmp_path / "centerlines")
    whole, calls = getattr(data_prep.planning, step), []

    def fail_once(*given):
        calls.append(given)
        return whole(*given) if len(calls) > 1 else calls[0][99]  # an error that no check foresaw

    monkeypatch.setattr(data_prep.planning, step, fail_once)
    source = source_of(tmp_path)
    assert [item.name.split("/")[0] for item in source.items] == ["scan1", "scan2"]
    fault = rejection(source)
    assert fault.reason == "unreadable" and "the vessels cannot be found (IndexError in " in fault.text
    assert source.load(source.items[1]).label.any()


def test_a_file_whose_name_contradicts_its_compression_is_told_from_a_damaged_one(tmp_path):
    packed = write_nifti(tmp_path / "a.nii.gz", np.zeros((8, 8, 8), np.uint8), np.eye(4))
    plain = write_nifti(tmp_path / "b.nii", np.zeros((8, 8, 8), np.uint8), np.eye(4))
    for path, text in (
        (packed.rename(tmp_path / "c.nii"), "is compressed, contrary"),
        (plain.rename(tmp_path / "d.nii.gz"), "not compressed, contrary"),
    ):
        for read in (read_ct, lambda path: read_labels(path, {1: (1,)})):
            with pytest.raises(Rejected, match=text):
                read(path)


def test_a_mirrored_centreline_is_told_from_one_that_is_elsewhere(tmp_path):
    source = source_of(write_scan(tmp_path, lps=False))
    assert "read as RAS it would lie inside" in rejection(source).text
    right = source_of(tmp_path, convention="RAS")
    assert right.load(right.items[0]).label.any()


def test_windowed_and_shifted_intensities_are_not_hounsfield(tmp_path):
    for change, text in (
        (lambda hu: ((hu.clip(-150, 750) + 150) / 900).astype(np.float32), "negative"),
        (lambda hu: (hu.astype(np.float32) - 90) / 150, "negative"),
        (lambda hu: np.where(hu < -100, -2000, hu + 1024).astype(np.int16), "median over the lumen"),
    ):
        root = write_scan(tmp_path)
        recolour(root, change)
        fault = rejection(source_of(root))
        assert fault.reason == "not_hounsfield" and text in fault.text


@pytest.mark.parametrize(
    ("elements", "reason", "text"),
    [
        ({"RescaleSlope": None}, "not_hounsfield", "no Rescale Slope"),
        ({"RescaleType": "OD"}, "not_hounsfield", "not a CT"),
        ({"Modality": "MR"}, "not_hounsfield", "not a CT"),
        ({"ImageOrientationPatient": None}, "unreadable", "no Image Orientation"),
        ({"PixelSpacing": "", "SeriesInstanceUID": None}, "unreadable", "has no Pixel Spacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "incomplete_series", "at one position"),
    ],
)
def test_faults_of_a_dicom_series_have_their_reason(tmp_path, elements, reason, text):
    hu, _, affine = draw()
    with pytest.raises(Rejected) as caught:
        read_ct(write_series(tmp_path / "a", hu[..., :12], affine, **elements))
    assert caught.value.reason == reason and text in caught.value.text


def test_gaps_strangers_and_doubles_in_a_dicom_series_are_found(tmp_path):
    hu, _, affine = draw()
    for name, change, reason in (
        ("gap", lambda folder: (folder / "010.dcm").unlink(), "incomplete_series"),
        ("stranger", lambda folder: write_series(folder / "sub", hu[..., :1], affine), "several_series"),
        (
            "double",
            lambda folder: (folder / "b.dcm").write_bytes((folder / "005.dcm").read_bytes()),
            "incomplete_series",
        ),
        ("empty", lambda folder: [path.unlink() for path in folder.iterdir()], "unreadable"),
        ("texts", lambda folder: [path.write_text("no DICOM") for path in folder.iterdir()], "unreadable"),
    ):
        folder = write_series(tmp_path / name, hu[..., :12], affine)
        change(folder)
        if (folder / "sub").is_dir():
            (folder / "sub" / "000.dcm").rename(folder / "other.dcm")
        with pytest.raises(Rejected) as caught:
            read_ct(folder)
        assert caught.value.reason == reason, name


@pytest.mark.parametrize("last", [6, 8, 12])
def test_slices_that_are_displaced_sideways_are_found(tmp_path, last):
    hu, _, affine = draw()
    folder = write_series(tmp_path / "series", hu[..., :12], affine)
    files = sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    for path in files[5:last]:
        dataset = pydicom.dcmread(path)
        along_row = np.array(dataset.ImageOrientationPatient[:3], float)
        dataset.ImagePositionPatient = list(np.array(dataset.ImagePositionPatient, float) + 3 * along_row)
        dataset.save_as(path)
    with pytest.raises(Rejected, match="beside the line") as caught:
        read_ct(folder)
    assert caught.value.reason == "incomplete_series"


def test_files_that_are_no_slices_are_passed_over_and_a_slice_that_is_replaced_is_seen(tmp_path):
    hu, _, affine = draw()
    folder = write_series(tmp_path / "series", hu, affine)
    expected, before = read_ct(folder), stamp(folder)
    (folder / "readme.txt").write_text("no DICOM")
    np.testing.assert_array_equal(read_ct(folder).voxels, expected.voxels)
    (folder / "readme.txt").unlink()
    assert stamp(folder) == before
    slice_ = folder / "005.dcm"
    slice_.write_bytes(slice_.read_bytes()[:-1] + b"\1")
    os.utime(slice_, ns=(1, 1))
    assert stamp(folder) != before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": (96,)}, "size"), ({"size": (96, 4)}, "size"), ({"spacing": 0}, "across"), ({"angles": ()}, "angles"),
        ({"angles": (0, 0)}, "angles"), ({"size": (96, 32, 32), "angles": (0, 90)}, "a volume is not cut"),
        ({"window": (750, -150)}, "window"), ({"order": 2}, "order"),
        ({"convention": "XYZ"}, "coordinates"), ({"shortest": 0}, "shortest"), ({"sigma": -1}, "smoothing"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        Straightening(LABELS, **options)


@pytest.mark.parametrize(
    "structures", [{}, {"lumen": (0,)}, {"lumen": (1,), "calcified_plaque": (1,)}, {"plaque": (1,)}]
)
def test_wrong_labels_are_named(structures):
    with pytest.raises(ValueError, match="labels"):
        Straightening(structures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "[1,2]"], r"labels: found '\[1,2\]', expected structures and their values, as lumen=1"),
        (["--labels", "lumen:1"], "labels: found 'lumen:1', expected structures and their values, as lumen=1"),
        (["--labels", "lumen=14-1"], "labels: found 'lumen=14-1', expected structures and their values"),
        (["--labels", "lumen=1-999999"], "labels: found 'lumen=1-999999', expected structures and their values"),
        (["--labels", '{"lumen": []}'], "labels: found '{\"lumen\": \\[\\]}', expected structures"),
        (["--labels", "lumen=1-70000"], r"labels: found the values \[65536, .*, expected whole numbers"),
        (["--labels", '{"lumen": null}'], "labels: found '{\"lumen\": null}', expected structures"),
        (["--fractions", "0.5"], "fractions: found '0.5', expected JSON"),
        (["--boundaries", "0.2,0.5"], r"boundaries: found \[0.2, 0.5\], expected \d numbers that rise from 0 to 1"),
        (["--boundaries", "0"], r"boundaries: found \[0.0\], expected 2 numbers that rise from 0 to 1"),
        (["--size", "96x"], "size: found '96x'"),
        (["--size", "32x64"], "size: found '32x64', expected more samples along the vessel than across"),
        (["--regions", "none", "--boundaries", "0,0.5,1"], "boundaries: found '0,0.5,1', expected none for whole"),
        (["--angles", "0,nan"], "angles: found '0,nan', expected one or several finite"),
        (["--window", "-150,inf"], "window: found .* expected 2 finite"),
        (["--order", "2"], "order: found 2, expected 1 or 3"),
        (["--coordinates", "XYZ"], "coordinates: found XYZ, expected LPS or RAS"),
        (["--seed", "one"], "seed: found 'one'"),
        (["--workers", "0"], "workers: found 0"),
        (["--strict=maybe"], "strict: found 'maybe'"),
        (["--salt", ""], "salt: found an empty text"),
        (["--mapping", "{out}/names.json"], "which is to be free of names"),
    ],
)
def test_command_line_mistakes_end_with_one_line_before_anything_is_read(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("data_prep.commands.find_scans", lambda path: pytest.fail("a folder was read"))
    scan, out = tmp_path, tmp_path / "out"
    with pytest.raises(SystemExit, match=message):
        main(["ccta", str(scan), "--out", str(out), *(option.replace("{out}", str(out)) for option in options)])


def test_two_places_of_one_name_are_refused(scan, tmp_path):
    places = [tmp_path / site / "data" for site in ("one", "two")]
    for place in places:
        place.parent.mkdir()
        shutil.copytree(scan, place)
    with pytest.raises(
        SystemExit, match=r"places: \['data', 'data'\] are to be the sources' names, so they must differ"
    ):
        main(["ccta", *map(str, places), "--labels", "lumen=1,background=2", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("column", ["volume", "label", "centreline"])
def test_a_list_that_names_a_file_that_is_not_there_is_refused(scan, tmp_path, column):
    files = {
        "volume": scan / "volumes/one.img.nii.gz",
        "label": scan / "segmentations/one.coronary.nii.gz",
        "centreline": scan / "centerlines/one.coronary_left_centerline.csv",
    }
    rows = [files, files | {column: "nowhere"}]
    lines = [",".join(files), *(",".join(map(str, row.values())) for row in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"list.csv: line 3: {column}: \S*nowhere: no such file; paths are relative"):
        list_scans(tmp_path / "list.csv")
    for wrong, message in (
        # a row that was cut
        (lines[1].rpartition(",")[0], "the table cannot be read: line 3: found 2 cells, expected 3"),
        (lines[1] + ",x", "the table cannot be read: line 3: found 4 cells, expected 3"),
        ("," + lines[1].partition(",")[2], "line 3: volume: found nothing"),
    ):
        (tmp_path / "list.csv").write_text("\n".join([*lines[:2], wrong]), encoding="utf-8")
        with pytest.raises(ValueError, match=f"list.csv: {message}"):
            list_scans(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("volume,label,label\na,b,c\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"list\.csv: found the column 'label' twice, expected every name once"):
        list_scans(tmp_path / "list.csv")
    with pytest.raises(ValueError, match="elsewhere: no such folder or list"):
        list_scans(tmp_path / "elsewhere")


@pytest.mark.parametrize("dims", [2, 3])
def test_the_command_line_prepares_a_datalist_of_regions(tmp_path, capsys, dims):
    root = tmp_path / "set"
    for n in range(6):
        write_scan(root, f"scan{n}")
        hu, _, affine = draw()
        write_nifti(root / "volumes" / f"scan{n}.img.nii.gz", hu + np.int16(n), affine)  # none is like another
    (root / "segmentations" / "stray.nii.gz").touch()
    arguments = ["ccta", str(root), "--labels", "lumen=1,background=2", "--dims", str(dims), "--size", "96x24"]
    main([*arguments, "--across", "0.4", "--salt", "x", "--out", str(tmp_path / "out")])
    assert "7 cases found, 6 accepted, 1 rejected" in capsys.readouterr().out
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    kind, unit = ("area", "mm2") if dims == 2 else ("volume", "mm3")
    assert datalist.variable_names == [f"lumen_{kind}_{name}" for name in ("proximal", "mid", "distal")]
    assert {variable.unit for variable in datalist.variables} == {unit}
    assert dict(datalist.labels) == {"background": 0, "lumen": 1}
    entry = datalist.entries["training"][0]
    assert len(entry["spacing"]) == dims and entry["arc_length"] == pytest.approx([0, LENGTH], abs=0.2)
    section = 3.2 if dims == 2 else np.pi * 1.6**2
    assert sum(entry["variables"].values()) == pytest.approx(section * LENGTH, rel=0.04)
    assert "scan" not in (tmp_path / "out" / "datalist.json").read_text(encoding="utf-8")


def test_a_run_with_another_window_takes_nothing_over(tmp_path):
    root = write_scan(tmp_path / "set")
    digests = {
        Worker(source, tmp_path, "auto", "salt").input_digest(source.items[0])
        for window in ((-150, 750), (-150, 750), (-100, 500))
        for source in [source_of(root, window=window)]
    }
    assert len(digests) == 2


def test_a_volume_is_read_once_for_all_of_its_cases(tmp_path, monkeypatch):
    for name in ("scan1", "scan2"):
        write_scan(tmp_path, name)
    (tmp_path / "volumes" / "scan2.img.nii.gz").write_bytes(b"damaged")
    source = source_of(tmp_path, angles=(0, 45, 90))
    read: list[Path] = []
    monkeypatch.setattr("data_prep.ccta.read_ct", lambda path: (read.append(path), read_ct(path))[1])
    for item in source.items[:3]:
        source.load(item)
    assert [rejection(source, i).reason for i in (3, 4, 5)] == ["unreadable"] * 3
    assert [path.name for path in read] == ["scan1.img.nii.gz", "scan2.img.nii.gz"]
    # With several processes each patient's cases go to one of them.
    batches = list(_batches((item, str(item.index)) for item in source.items))
    assert [[item.patient for item, _ in batch] for batch in batches] == [
        [f"{tmp_path.name}/{name}"] * 3 for name in ("scan1", "scan2")
    ]
    alone = [(Item("clinic", f"{i}", i), str(i)) for i in range(3)]
    assert [len(batch) for batch in _batches(alone)] == [1, 1, 1]
