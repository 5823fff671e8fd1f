"""What a trainer's iteration gets: variables that are measured on the augmented image."""

import re

import pytest
import torch
from discs import NAMES, disc_datalist, render
from monai.data import MetaTensor
from monai.transforms import SaveImage

from segcft_ext.augmentation import BatchAugmentation
from segcft_ext.batches import (
    PrepareRegression,
    PrepareVariables,
    find_images,
    image_stem,
    label_extension,
    output_name,
)

VALUES = torch.tensor([[8.0, 10.0, 50.0], [6.0, 5.0, torch.nan]])


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return disc_datalist(tmp_path_factory.mktemp("discs"))


def batch(values):
    image, label = render(VALUES)
    return {"image": image, "label": label.float(), "variables": values, "spacing": torch.full((2, 2), torch.nan)}


def without_left(image, label):
    return image, torch.where(label == 1, 0, label)


def test_measured_variables_are_measured_after_the_augmentation_and_others_taken_as_they_are(datalist):
    image, values, spacing, reference = PrepareVariables(datalist, NAMES, without_left)(batch(VALUES))
    expected = torch.cat([torch.zeros(2, 1), VALUES[:, 1:]], 1)
    torch.testing.assert_close(values, expected, atol=0.05, rtol=0, equal_nan=True)  # half a pixel is 0.05 %
    assert image.shape == (2, 1, 32, 32) and spacing is None and not reference[:, 1].any()


def test_preparing_does_not_wait_for_the_device(datalist):
    on_disk = batch(VALUES)
    for spacing, known in ((torch.full((2, 2), 0.5), True), (torch.tensor([[0.5, 0.5], [torch.nan, 0.5]]), False)):
        _, values, found, _ = PrepareVariables(datalist, NAMES)({**on_disk, "spacing": spacing}, "meta")
        assert values.is_meta and (found is not None) == known  # no value can be read from the meta device
        assert found is None or found.is_meta


def test_the_order_is_that_of_the_names_asked_for(datalist):
    names = ["age", "right_area"]
    _, values = PrepareRegression(datalist, names, without_left)(batch(VALUES[:, [2, 1]]))
    torch.testing.assert_close(values, VALUES[:, [2, 1]], atol=0.05, rtol=0, equal_nan=True)


def test_a_drawn_augmentation_is_measured_on_what_it_leaves(datalist):
    torch.manual_seed(0)
    _, values, _, reference = PrepareVariables(datalist, NAMES, BatchAugmentation(probability=1.0))(batch(VALUES))
    torch.testing.assert_close(values[:, :2], 100 * reference[:, 1:].mean((2, 3)))
    assert ((values - VALUES)[:, :2].abs() > 0.05).any()


def test_a_folder_of_images_is_known_by_suffix_and_dicom_by_content(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("b.png", "notes.txt", "c.nii.gz", "._b.png", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    for name in ("IM0001", "1.2.840.1", "1.2.840.2"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    found = [item["image"] for item in find_images(tmp_path)]
    assert found == [str(tmp_path / name) for name in ("1.2.840.1", "1.2.840.2", "IM0001", "b.png", "c.nii.gz")]
    assert [image_stem(path) for path in found] == ["1.2.840.1", "1.2.840.2", "IM0001", "b", "c"]
    assert find_images(tmp_path / "b.png") == [{"image": str(tmp_path / "b.png")}]


def test_label_maps_are_named_after_the_whole_name_of_an_image_without_a_suffix(tmp_path):
    for name, wanted in (("1.2.840.1", "1.2.840.1_seg.png"), ("b.png", "b_seg.png"), ("c.nii.gz", "c_seg.png")):
        save = SaveImage(tmp_path, "seg", ".png", separate_folder=False, output_name_formatter=output_name)
        save(MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": f"folder/{name}"}))
        assert (tmp_path / wanted).is_file()


def test_two_images_of_one_name_are_refused(tmp_path):
    for name in ("a.dcm", "a.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"found a.dcm and a.png, expected names that differ"):
        find_images(tmp_path)


def test_a_folder_without_images_names_the_options(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--image, --dataset_dir: .*neither an image nor a folder"):
        find_images(tmp_path)


@pytest.mark.parametrize("path", [["a.png"], 1, None])
def test_what_is_no_path_names_the_options(path):
    with pytest.raises(ValueError, match=re.escape(f"--image, --dataset_dir: found {path!r}, expected the path of an")):
        find_images(path)


def test_label_maps_are_written_in_formats_that_keep_them():
    for extension in (".png", "png", ".nii", "nii.gz", ".nii.gz"):
        assert label_extension(extension) == extension
    for extension in (".jpg", "jpeg", "..png", ""):
        with pytest.raises(ValueError, match=f"output_ext: found '{extension}', expected '.png' or '.nii.gz'"):
            label_extension(extension)
