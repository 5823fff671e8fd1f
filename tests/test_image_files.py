"""Which images inference finds in a folder, and how what it writes is named."""

import re

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from segcft_ext.image_files import find_images, image_stem, label_extension, output_name


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
