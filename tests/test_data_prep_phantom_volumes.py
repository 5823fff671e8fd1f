"""Whole CT volumes through the command line: straightening gives back what the vessels' own functions say."""

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.ccta import CctaSource, Straightening
from data_prep.coronary_vessel import LABELS, Grid
from data_prep.phantom_volumes import HeartPhantom, write_heart
from data_prep.scans import find_scans


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """The folder, and the arteries in the order of the cases: left, its branch, right."""
    folder = tmp_path_factory.mktemp("data") / "hearts"
    return folder, write_heart(HeartPhantom((0.5, 0.5, 0.6)), seed=4, name="heart", folder=folder).arteries


def test_straightened_volumes_have_the_areas_of_the_phantom(hearts):
    folder, arteries = hearts
    labels = {name: (value,) for name, value in LABELS.items() if value}
    source = CctaSource(find_scans(folder), Straightening(labels, size=(256, 64, 64)))
    found, truth = np.zeros((3, 3)), np.zeros((3, 3))
    for item, artery in zip(source.items, arteries):
        case = source.load(item)
        length = artery.vessel.length
        assert case.arc_length[1] - case.arc_length[0] == pytest.approx(length, abs=1)
        grid = Grid.of((256, 64, 64), length, 16.0)
        label = artery.vessel.label(grid.s, grid.u, grid.v)
        for volumes, values, spacing in ((found, case.label, case.spacing), (truth, label, grid.spacing)):
            for third, part in enumerate(np.array_split(values, 3)):
                volumes[third] += np.bincount(part.ravel(), minlength=4)[1:] * np.prod(spacing)
    # Over all arteries within 3 %; a single third's plaque is a few voxels here and may be off by more.
    np.testing.assert_allclose(found.sum(0), truth.sum(0), rtol=0.03)
    np.testing.assert_allclose(found, truth, rtol=0.04, atol=1.5)


def test_wrong_options_end_with_one_line(hearts, tmp_path):
    folder, _ = hearts
    for arguments, text in (
        (["--labels", "aorta=1"], r"labels: found \['aorta'\], expected lumen"),
        (["--angles", "left"], "angles: found 'left'"),
        (["--window", "5"], "window: found '5', expected 2"),
        (["--coordinates", "XYZ"], "coordinates: found XYZ"),
    ):
        with pytest.raises(SystemExit, match=text):
            main(["ccta", str(folder), "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit, match="no such folder"):
        main(["ccta", str(tmp_path), "--out", str(tmp_path / "out")])
