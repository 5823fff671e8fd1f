"""Real radiographs where they are at hand."""

import numpy as np
import pytest
from real_data import CXR, needs_radiographs

from data_prep.cases import Rejected
from data_prep.chest_checks import check_chest
from data_prep.folder import FolderSource
from data_prep.masks import MaskFolders
from data_prep.structures import CHEST, check_label_map
from data_prep.table import Table

pytestmark = needs_radiographs


def test_real_radiographs_are_found_and_measured_as_published():
    variables = {"age": "continuous", "sex": ["F", "M"]}
    table = Table(CXR / "cases.csv", variables, missing={"age": 0})
    masks = MaskFolders({name: f"mask/{name}" for name in CHEST})
    source = FolderSource([CXR / "jsrt", CXR / "wingspan"], "png", masks, (64, 64), table)
    assert len(source.items) == 404 and table.unused == 0
    shares = []
    for item in source.items[:197:10]:
        case = source.load(item)
        check_label_map(case.label, source.labels)
        assert item.source == "jsrt" and case.variables["sex"] in (0, 1)
        shares.append([(case.label == value).mean() for value in (1, 2, 3)])
    # Mean area of left lung, right lung and heart as a share of the image, over all JSRT cases, plus or minus 1 SD.
    np.testing.assert_allclose(np.mean(shares, axis=0), (0.137, 0.169, 0.091), atol=0.02)


def test_of_real_radiographs_none_is_taken_for_inverted_and_the_one_with_exchanged_masks_is_found():
    source = FolderSource([CXR / "wingspan"], "png", MaskFolders({name: f"mask/{name}" for name in CHEST}), (64, 64))
    found = []
    for item in source.items[::3]:
        case = source.load(item)
        try:
            check_chest(case.image, case.label, source.labels)
            with pytest.raises(Rejected, match="inverted_greyscale"):
                check_chest(1 - case.image, case.label, source.labels)
        except Rejected as fault:
            found.append(fault.reason)
    assert found == ["exchanged_masks"]
