import os
import select
import signal

import numpy as np
import pydicom
import pytest
from dicom_files import LOSSLESS, write_dicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)
from test_data_prep_readers import PIXELS, reason_of

from data_prep import dicom, isolated
from data_prep.cases import Rejected
from data_prep.readers import read_picture


def test_pixels_are_rescaled_and_windowed(tmp_path):
    path = write_dicom(tmp_path / "a", PIXELS, RescaleSlope="2", RescaleIntercept="-100")
    np.testing.assert_allclose(read_picture(path).pixels, PIXELS * 2.0 - 100)
    path = write_dicom(tmp_path / "b", PIXELS, WindowCenter="1000", WindowWidth="400")
    windowed = read_picture(path).pixels
    assert (windowed[PIXELS <= 800] == windowed.min()).all() and (windowed[PIXELS >= 1200] == windowed.max()).all()
    inside = windowed[(PIXELS >= 900) & (PIXELS <= 1100)]
    assert (np.diff(inside) > 0).all()


def look_up_table(values):
    """The item of a sequence with a table for stored values from 0 on, 16 bits wide."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), 0, 16])
    item.add_new("LUTData", "US", [int(value) for value in values])
    return [item]


def test_look_up_tables_are_applied(tmp_path):
    gamma = (np.arange(4096) ** 2 // 1000).astype(np.uint16)
    window = {"WindowCenter": "1000", "WindowWidth": "400"}
    path = write_dicom(tmp_path / "a", PIXELS, VOILUTSequence=look_up_table(gamma), **window)
    np.testing.assert_array_equal(read_picture(path).pixels, gamma[PIXELS])  # the table goes before the window
    modality = {"ModalityLUTSequence": look_up_table(gamma), "RescaleSlope": "9", "RescaleIntercept": "9"}
    np.testing.assert_array_equal(read_picture(write_dicom(tmp_path / "b", PIXELS, **modality)).pixels, gamma[PIXELS])


def test_of_several_windows_the_first_is_taken_and_one_without_width_is_no_window(tmp_path):
    first = write_dicom(tmp_path / "a", PIXELS, WindowCenter="1000", WindowWidth="400")
    both = write_dicom(tmp_path / "b", PIXELS, WindowCenter=["1000", "20"], WindowWidth=["400", "30"])
    np.testing.assert_array_equal(read_picture(both).pixels, read_picture(first).pixels)
    with pytest.raises(Rejected, match="window"):
        read_picture(write_dicom(tmp_path / "c", PIXELS, WindowCenter="0", WindowWidth="0"))


def test_monochrome1_is_turned_over(tmp_path):
    straight = read_picture(write_dicom(tmp_path / "a.dcm", PIXELS)).pixels
    turned = read_picture(write_dicom(tmp_path / "b.dcm", PIXELS, PhotometricInterpretation="MONOCHROME1")).pixels
    np.testing.assert_allclose(turned, straight.max() - straight)


def test_signed_monochrome1_is_turned_over_over_its_whole_range(tmp_path):
    pixels = np.linspace(-32768, 32767, 24).astype(np.int16).reshape(6, 4)
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "PhotometricInterpretation": "MONOCHROME1"}
    found = read_picture(write_dicom(tmp_path / "a.dcm", pixels.view(np.uint16), **signed)).pixels
    np.testing.assert_array_equal(found, 32767 - pixels.astype(int))


def test_padding_is_as_dark_as_the_darkest_pixel_of_the_picture(tmp_path):
    padded = np.pad(PIXELS + 10, ((2, 0), (0, 0)), constant_values=3)
    padded[0] = 0
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}
    for limit, rows in (({}, 1), ({"PixelPaddingRangeLimit": 3}, 2)):
        found = read_picture(write_dicom(tmp_path / str(rows), padded, **inverted, **limit)).pixels
        assert (found[:rows] == found[rows:].min()).all() and found[rows:].max() > found[rows:].min()
    assert (read_picture(write_dicom(tmp_path / "all", np.zeros_like(PIXELS), **inverted)).pixels == 0).all()


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "2", "RescaleIntercept": "-1024"},
        {"WindowCenter": "1000", "WindowWidth": "400"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 1000},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_labels_are_the_stored_values(tmp_path, elements):
    path = write_dicom(tmp_path / "a", PIXELS, **elements)
    np.testing.assert_array_equal(read_picture(path, indexed=True).pixels, PIXELS)
    assert (read_picture(path).pixels != PIXELS).any()


def test_spacing_is_pixel_spacing_before_imager_pixel_spacing(tmp_path):
    assert read_picture(write_dicom(tmp_path / "a", PIXELS)).spacing is None
    assert read_picture(write_dicom(tmp_path / "b", PIXELS, ImagerPixelSpacing=["0.2", "0.3"])).spacing == (0.2, 0.3)
    path = write_dicom(tmp_path / "c", PIXELS, PixelSpacing=["0.15", "0.1"], ImagerPixelSpacing=["0.2", "0.2"])
    assert read_picture(path).spacing == (0.15, 0.1)
    assert reason_of(write_dicom(tmp_path / "d", PIXELS, PixelSpacing=["0", "0.1"])) == "unreadable"


def test_spacing_at_the_detector_is_noted(tmp_path):
    detector = ["0.2", "0.2"]
    noted = [{"ImagerPixelSpacing": detector}, {"ImagerPixelSpacing": detector, "PixelSpacing": detector}]
    for spacing in noted:
        assert "detector_spacing" in read_picture(write_dicom(tmp_path / "a", PIXELS, **spacing)).notes
    for spacing in ({}, {"PixelSpacing": detector}, {"ImagerPixelSpacing": detector, "PixelSpacing": ["0.1", "0.1"]}):
        assert "detector_spacing" not in read_picture(write_dicom(tmp_path / "a", PIXELS, **spacing)).notes


@pytest.mark.parametrize(
    ("stated", "notes"),
    [("YES", ("burned_in_text",)), ("NO", ()), ("", ("burned_in_unknown",)), (None, ("burned_in_unknown",))],
)
def test_what_the_file_says_of_burned_in_text_is_noted(tmp_path, stated, notes):
    elements = {} if stated is None else {"BurnedInAnnotation": stated}
    assert read_picture(write_dicom(tmp_path / "a", PIXELS, **elements)).notes == notes


def test_several_frames_are_rejected(tmp_path):
    frames = write_dicom(tmp_path / "a", np.stack([PIXELS, PIXELS]), NumberOfFrames="2")
    assert reason_of(frames) == "multi_frame"


def test_equal_channels_are_grey_and_colours_are_rejected(tmp_path):
    grey = (PIXELS // 10).astype(np.uint8)
    path = write_dicom(tmp_path / "a", np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(read_picture(path).pixels, grey)
    path = write_dicom(tmp_path / "a", np.full((*grey.shape, 3), 128, np.uint8), PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(read_picture(path).pixels, 128)
    assert reason_of(write_dicom(tmp_path / "a", np.stack([grey, grey, grey + 1], -1))) == "colour"
    assert reason_of(write_dicom(tmp_path / "a", grey, PhotometricInterpretation="PALETTE COLOR")) == "colour"


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_lossless_compression_gives_the_pixels_back(tmp_path, syntax, dtype):
    pixels = np.random.default_rng(0).integers(0, 4096 if dtype == np.uint16 else 256, (40, 34)).astype(dtype)
    path = write_dicom(tmp_path / "a", pixels, syntax, PixelSpacing=["0.3", "0.2"])
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.spacing == (0.3, 0.2)


def test_lossy_jpeg_gives_the_pixels_nearly_back(tmp_path):
    rows, columns = np.mgrid[:40, :34]
    pixels = (rows * 5 + columns * 3).astype(np.uint8)
    path = write_dicom(tmp_path / "a", pixels, JPEGBaseline8Bit)
    np.testing.assert_allclose(read_picture(path).pixels, pixels, atol=3)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_pixels_are_windowed_and_turned_over_too(tmp_path, syntax):
    elements = {"WindowCenter": "1000", "WindowWidth": "400", "PhotometricInterpretation": "MONOCHROME1"}
    pixels = np.arange(40 * 34, dtype=np.uint16).reshape(40, 34) * 3
    plain, compressed = (
        read_picture(write_dicom(tmp_path / "a", pixels, s, **elements)) for s in (ExplicitVRLittleEndian, syntax)
    )
    np.testing.assert_array_equal(compressed.pixels, plain.pixels)
    assert plain.pixels[0, 0] == plain.pixels.max() > plain.pixels[-1, -1]


def test_compression_without_a_decoder_is_a_reason_of_its_own(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    for syntax in (JPEGExtended12Bit, MPEG2MPML, DeflatedExplicitVRLittleEndian):
        dataset = pydicom.dcmread(write_dicom(tmp_path / "a", pixels, JPEGBaseline8Bit, BitsStored=12))
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(tmp_path / "a")
        assert reason_of(tmp_path / "a") == "no_decoder"


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, *LOSSLESS], ids=lambda syntax: syntax.keyword)
def test_a_huge_declared_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch, syntax):
    pixels = np.zeros((40, 34), np.uint8)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda _: pytest.fail("the file was decoded")))
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a", pixels, syntax))
    dataset.Rows = 60000
    dataset.save_as(tmp_path / "a")
    assert reason_of(tmp_path / "a") == "too_large"
    if syntax not in (ExplicitVRLittleEndian, RLELossless):  # these two have no size of their own
        dataset.Rows = 41
        dataset.save_as(tmp_path / "a")
        assert reason_of(tmp_path / "a") == "unreadable"


@pytest.mark.skipif(not hasattr(os, "WUNTRACED"), reason="needs processes that can be stopped")
@pytest.mark.parametrize("dies", [False, True], ids=["hangs", "dies"])
def test_a_decoder_that_does_not_answer_costs_one_file(tmp_path, monkeypatch, dies):
    path = write_dicom(tmp_path / "a", PIXELS, JPEGLosslessSV1)
    np.testing.assert_array_equal(read_picture(path).pixels, PIXELS)
    decoder = dicom._gdcm
    decoder._process.kill()
    assert decoder._process.wait()  # dies between two files
    np.testing.assert_array_equal(read_picture(path).pixels, PIXELS)
    process = decoder._process
    os.kill(process.pid, signal.SIGSTOP)  # … or while at work, where it cannot have answered already
    os.waitpid(process.pid, os.WUNTRACED)
    if dies:
        wait = select.select
        monkeypatch.setattr(isolated.select, "select", lambda *given: (process.kill(), wait(*given))[1])
    else:
        monkeypatch.setattr(isolated, "SECONDS", 0)
    assert reason_of(path) == "unreadable"
    assert process.returncode == -signal.SIGKILL
    monkeypatch.undo()
    np.testing.assert_array_equal(read_picture(path).pixels, PIXELS)


def test_what_the_other_process_cannot_decode_is_told_by_the_type_of_the_error(tmp_path):
    path = write_dicom(tmp_path / "a", PIXELS, JPEGLosslessSV1)
    with pytest.raises(Rejected, match=r"the compressed data cannot be decoded \(\w*Error\)"):
        dicom._gdcm.decode(path.read_bytes()[:-40])


def test_a_dicom_file_without_a_picture_is_rejected(tmp_path):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a", PIXELS))
    del dataset.Rows
    dataset.save_as(tmp_path / "a")
    assert reason_of(tmp_path / "a") == "unreadable"
