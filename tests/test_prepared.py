import nibabel
import numpy as np
import pytest
from monai.data import NibabelReader, PILReader
from monai.transforms import LoadImage
from PIL import Image
from small_chests import small_chests

from segcft_ext.datalist_format import DatalistError
from segcft_ext.prepared import PreparedReader


@pytest.fixture
def datalist(tmp_path):
    return small_chests(tmp_path)


def load(datalist, path):
    return LoadImage(reader=datalist.reader(), ensure_channel_first=True)(path)


@pytest.mark.parametrize("key", ["image", "label"])
def test_pictures_are_read_as_monai_reads_them(datalist, key):
    path = datalist.items("test")[0][key]
    assert (load(datalist, path) == LoadImage(PILReader(reverse_indexing=False), ensure_channel_first=True)(path)).all()


def test_volumes_are_read_as_monai_reads_them(tmp_path):
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4)), path)
    found = LoadImage(reader=PreparedReader((4, 3, 2)), ensure_channel_first=True)(path)
    assert (found == LoadImage(NibabelReader(), ensure_channel_first=True)(path)).all()
    with pytest.raises(DatalistError, match=r"volume.nii.gz: found pixels of shape \(4, 3, 2\), expected \(4, 2, 3\)"):
        LoadImage(reader=PreparedReader((4, 2, 3)))(path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "volume.nii.gz"
    voxels = np.zeros((4, 3, 2), np.float32)
    voxels[1, 2, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    with pytest.raises(DatalistError, match=f"{path}: found values that are not finite"):
        LoadImage(reader=PreparedReader((4, 3, 2)))(path)


def picture(*shape, value=0):
    return Image.fromarray(np.full(shape, value, np.uint8))


@pytest.mark.parametrize(
    ("key", "damage", "message"),
    [
        ("image", lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read: "),
        ("image", lambda path: path.write_bytes(b""), "cannot be read: UnidentifiedImageError"),
        ("image", lambda path: path.unlink(), "cannot be read: FileNotFoundError"),
        ("label", lambda path: picture(5, 4).save(path), r"found pixels of shape \(5, 4\), expected \("),
        ("image", lambda path: picture(5, 4, 3).save(path), r"found pixels of shape \(5, 4, 3\), expected \("),
    ],
)
def test_a_file_that_is_not_as_the_datalist_says_is_named(datalist, key, damage, message):
    path = datalist.path.parent / datalist.entries["test"][0][key]
    damage(path)
    with pytest.raises(DatalistError, match=f"{path}: {message}"):
        load(datalist, path)


def test_labels_that_the_datalist_does_not_have_are_refused(datalist):
    path = datalist.path.parent / datalist.entries["test"][0]["label"]
    picture(*datalist.size, value=77).save(path)
    with pytest.raises(DatalistError, match=rf"{path}: found the labels \[77\], expected some of \[0, 1"):
        load(datalist, path)
