import errno
import gzip
import logging
import os
import threading
import warnings
import zipfile

import nibabel
import numpy as np
import pytest
import tifffile
from dicom_files import write_dicom
from PIL import Image

from data_prep.cases import Rejected, rejecting
from data_prep.names import strip_suffix
from data_prep.readers import quiet, read_picture

PIXELS = np.arange(6 * 4, dtype=np.uint16).reshape(6, 4) * 100


def reason_of(path):
    with pytest.raises(Rejected) as fault:
        read_picture(path)
    return fault.value.reason


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_its_bits(tmp_path, dtype):
    pixels = (PIXELS if dtype == np.uint16 else PIXELS // 10).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.pixels.dtype == dtype and picture.spacing is None
    np.testing.assert_array_equal(picture.pixels, pixels)


def test_png_with_equal_channels_is_grey_and_with_colours_is_rejected(tmp_path):
    grey = (PIXELS // 10).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], -1), "LA").save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    for name in ("rgb", "alpha", "palette"):
        np.testing.assert_array_equal(read_picture(tmp_path / f"{name}.png").pixels, grey)
    Image.fromarray(grey > 30).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "bit.png").pixels, grey > 30)
    Image.fromarray(np.stack([grey, grey, grey + 1], -1)).save(tmp_path / "colour.png")
    assert reason_of(tmp_path / "colour.png") == "colour"


def test_a_palette_of_colours_shows_labels_and_one_of_greys_is_grey(tmp_path):
    labels = (PIXELS // 100 % 4).astype(np.uint8)
    for name, palette in (("colours", [0, 0, 0, 200, 0, 0, 0, 9, 9, 8, 8, 8]), ("greys", [0] * 3 + [70] * 9)):
        picture = Image.fromarray(labels).convert("P")
        picture.putpalette(palette)
        picture.save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "colours.png", indexed=True).pixels, labels)
    np.testing.assert_array_equal(read_picture(tmp_path / "greys.png", indexed=True).pixels, 70 * (labels > 0))
    assert reason_of(tmp_path / "colours.png") == "colour"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 1, 1)])
def test_nifti_of_an_itk_picture_is_read_upright(tmp_path, suffix, shape):
    # ITK writes a picture with x along the columns; in NIfTI's axes both directions are negative.
    path = tmp_path / f"a{suffix}"
    nibabel.save(nibabel.Nifti1Image(PIXELS.T.reshape(shape).astype(np.int16), np.diag([-0.5, -0.7, 1, 1])), path)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.spacing == pytest.approx((0.7, 0.5))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_orientation_is_obeyed(tmp_path, kind):
    """A coronal slice stored towards right and superior is shown with the patient's left on the right, head up."""
    stored = PIXELS.T[::-1, ::-1].astype(np.int16)[:, None, :]
    affine = np.diag([0.5, 9, 0.7, 1])
    nibabel.save(kind(stored, affine), tmp_path / "a.nii")
    picture = read_picture(tmp_path / "a.nii")
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.spacing == pytest.approx((0.7, 0.5))


def test_nifti_unit_is_obeyed_and_volumes_are_rejected(tmp_path):
    image = nibabel.Nifti1Image(PIXELS.T.astype(np.int16), np.diag([-500.0, -700, 1, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert read_picture(tmp_path / "a.nii").spacing == pytest.approx((0.7, 0.5))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "b.nii")
    assert reason_of(tmp_path / "b.nii") == "multi_frame"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiff_is_read_and_turned_over_where_zero_is_white(tmp_path, dtype, white_is_zero):
    pixels = (PIXELS // 10).astype(dtype)
    photometric = "miniswhite" if white_is_zero else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, resolution=(300, 300))
    picture = read_picture(tmp_path / "a.tif")
    assert picture.spacing is None
    if white_is_zero:
        np.testing.assert_array_equal(np.diff(picture.pixels.astype(int).ravel()), -np.diff(pixels.astype(int).ravel()))
    else:
        np.testing.assert_array_equal(picture.pixels, pixels)


def test_compressed_tiff_is_read_and_several_pages_are_rejected(tmp_path):
    page = Image.fromarray((PIXELS // 10).astype(np.uint8))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        page.save(tmp_path / "a.tiff", compression=compression)
        np.testing.assert_array_equal(read_picture(tmp_path / "a.tiff").pixels, PIXELS // 10)
    page.save(tmp_path / "b.tiff", save_all=True, append_images=[page])
    assert reason_of(tmp_path / "b.tiff") == "multi_frame"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, kind, monkeypatch):
    Image.new("1", (9000, 2)).save(tmp_path / "a", format=kind)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("the file was decoded"))
    assert reason_of(tmp_path / "a") == "too_large"


def test_a_huge_nifti_file_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    image = nibabel.Nifti1Image(PIXELS.astype(np.int16), np.eye(4))
    image.header["dim"][1:3] = 32000
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(100))
    assert reason_of(tmp_path / "a.nii") == "too_large"
    nibabel.save(nibabel.Nifti1Image(np.zeros((400, 400), np.int16), np.eye(4)), tmp_path / "b.nii.gz")
    monkeypatch.setattr("data_prep.readers.MAX_BYTES", 10_000)
    assert (tmp_path / "b.nii.gz").stat().st_size < 10_000
    assert reason_of(tmp_path / "b.nii.gz") == "too_large"


def test_nifti_with_colours_is_rejected(tmp_path):
    colours = np.zeros((6, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    assert reason_of(tmp_path / "a.nii") == "colour"


def test_a_file_within_a_zip_archive_is_read_and_a_damaged_one_rejected(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "1/a.png")
    path = zipfile.Path(tmp_path / "all.zip", "1/a.png")
    np.testing.assert_array_equal(read_picture(path).pixels, PIXELS)
    whole = (tmp_path / "all.zip").read_bytes()
    (tmp_path / "all.zip").write_bytes(whole.replace(b"IDAT", b"IDOT"))
    assert reason_of(zipfile.Path(tmp_path / "all.zip", "1/a.png")) == "unreadable"


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr("data_prep.readers.MAX_BYTES", 50)
    assert reason_of(tmp_path / "a.png") == "too_large"


def test_format_is_told_by_content_not_by_name(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.dcm", format="PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.dcm").pixels, PIXELS)
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "photo.png").write_bytes(b"\xff\xd8\xff\xe0" + bytes(400))
    for name in ("notes", "empty", "photo"):
        assert reason_of(tmp_path / f"{name}.png") == "unsupported_format"
    (tmp_path / "folder.png").mkdir()
    assert reason_of(tmp_path / "folder.png") == "unreadable"


def test_a_file_in_a_folder_that_may_not_be_entered_is_rejected(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    with pytest.raises(Rejected, match=r"cannot be opened \(PermissionError in ") as fault:
        read_picture(tmp_path / "a.png")
    assert fault.value.reason == "unreadable" and str(tmp_path) not in fault.value.text


def test_damaged_files_are_rejected_and_their_names_are_not_told(tmp_path):
    folder = tmp_path / "Jane Doe"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (40, 40), np.uint16)).save(folder / "a.png")
    nibabel.save(nibabel.Nifti1Image(PIXELS.astype(np.int16), np.eye(4)), folder / "b.nii")
    (folder / "c.nii.gz").write_bytes(gzip.compress((folder / "b.nii").read_bytes()))
    write_dicom(folder / "d", PIXELS, PatientName="Doe^Jane")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for end in (len(whole) // 2, len(whole) * 9 // 10):
            damaged = tmp_path / "Doe Jane.png"
            damaged.write_bytes(whole[:end])
            with pytest.raises(Rejected) as fault:
                read_picture(damaged)
            assert fault.value.reason in ("unreadable", "unsupported_format")
            assert "Doe" not in fault.value.text


class Unforeseen(Exception):
    """An error of a type that no list of a decoder's errors holds."""


@pytest.mark.parametrize("error", [Unforeseen, ZeroDivisionError, AssertionError])
@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        ("pydicom.dcmread", "d"),
        ("nibabel.Nifti1Image.from_bytes", "b.nii"),
        ("PIL.Image.open", "a.png"),
        ("zipfile.Path.open", "a.zip"),
    ],
)
def test_an_error_of_any_type_rejects_the_file_and_says_where_it_arose(tmp_path, monkeypatch, decoder, name, error):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    nibabel.save(nibabel.Nifti1Image(PIXELS.astype(np.int16), np.eye(4)), tmp_path / "b.nii")
    write_dicom(tmp_path / "d", PIXELS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    path = zipfile.Path(tmp_path / name, "a.png") if name == "a.zip" else tmp_path / name

    def fail(*_, **__):
        raise error("of Doe Jane")

    monkeypatch.setattr(decoder, fail)
    with pytest.raises(
        Rejected, match=rf"cannot be (decoded|opened) \({error.__name__} in {__name__}.py, line \d+\)"
    ) as fault:
        read_picture(path)
    assert fault.value.reason == "unreadable" and "Doe" not in fault.value.text


def test_an_interruption_and_errors_that_do_not_lie_in_the_case_are_passed_on():
    for error in (KeyboardInterrupt, SystemExit, OSError):
        with pytest.raises(error), rejecting("unreadable", "the case cannot be loaded", OSError):
            raise error
    with pytest.raises(Rejected, match="colour"), rejecting("unreadable", "the case cannot be loaded"):
        raise Rejected("colour")


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.png", "a"), ("b.NII.gz", "b"), ("1.2.840.113", "1.2.840.113"), ("1.2.3.dcm", "1.2.3"), ("x/y.nii", "x/y")],
)
def test_only_known_suffixes_are_taken_off(name, stem):
    assert strip_suffix(name) == stem


def test_threads_that_read_side_by_side_leave_logging_and_warnings_as_they_were() -> None:
    disabled, filters = logging.root.manager.disable, list(warnings.filters)
    inside, go = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with quiet():  # entered while the first is inside, and left after it
        go.set()
        thread.join()
        assert logging.root.manager.disable == logging.CRITICAL
    assert logging.root.manager.disable == disabled and warnings.filters == filters
