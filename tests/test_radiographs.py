"""A radiograph is read in inference as ``data_prep`` reads it for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from dicom_files import write_dicom
from drawn_chest import draw, write_png
from monai.bundle import ConfigParser
from monai.transforms import LoadImage
from PIL import ExifTags, Image

from data_prep.geometry import fit_spacing
from data_prep.intensity import to_unit_range
from data_prep.readers import read_picture
from segcft_ext.radiographs import PIXEL_SPACING, RadiographReader
from segcft_ext.transforms import ResizedSpacingd
from segcft_ext.vessels import VesselReader

BUNDLES = Path(__file__).parent.parent / "bundles"
READING = ("seg_cft_finetuning", "dscm_pretraining", "lung_heart_segmentor", "segmentor_evaluation")
OF_VESSELS = (
    "seg_cft_finetuning/configs/coronary_inference.json",
    "dscm_pretraining/configs/coronary_inference.json",
    "segmentor_evaluation/configs/coronary_inference.json",
    "plaque_lumen_segmentor/configs/inference.json",
)
GREY = draw(3, (60, 80))[0]


def preprocessing(bundle: str) -> Any:
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(BUNDLES / bundle)
    parser["image_size"] = [60, 80]  # that of the picture, so that nothing is resized
    return parser.get_parsed_content("preprocessing")


def write_files(folder: Path) -> list[Path]:
    wide = GREY.astype(np.uint16) * 16
    window = {"WindowCenter": "1200", "WindowWidth": "900"}
    files = [
        write_dicom(folder / "plain.dcm", wide),
        write_dicom(folder / "windowed.dcm", wide, **window),
        write_dicom(folder / "rescaled.dcm", wide, RescaleSlope="0.5", RescaleIntercept="400", **window),
        write_dicom(folder / "white.dcm", wide, PhotometricInterpretation="MONOCHROME1", **window),
    ]
    for name, affine in (("ras", np.diag([0.5, 0.7, 1, 1])), ("lpi", np.diag([-0.5, -0.7, 1, 1]))):
        for shape in ((80, 60), (80, 60, 1)):
            files.append(folder / f"{name}_{len(shape)}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(GREY.T.reshape(shape), affine), files[-1])
    files.append(folder / "coronal.nii")
    nibabel.save(nibabel.Nifti1Image(GREY.T[::-1, None, ::-1], np.diag([0.5, 9, 0.7, 1])), files[-1])
    write_png(folder / "grey.png", GREY)
    write_png(folder / "colour.png", np.stack([GREY] * 3, axis=-1))
    Image.fromarray(GREY).convert("P").save(folder / "palette.png")
    tifffile.imwrite(folder / "white.tif", wide, photometric="miniswhite")
    return [*files, folder / "grey.png", folder / "colour.png", folder / "palette.png", folder / "white.tif"]


@pytest.mark.parametrize("bundle", READING)
def test_pixels_and_spacing_are_those_of_data_prep(bundle: str, tmp_path: Path) -> None:
    transform = preprocessing(bundle)
    for file in write_files(tmp_path):
        picture = read_picture(file)
        image = transform({"image": str(file)})["image"]
        np.testing.assert_allclose(image[0], 2 * to_unit_range(picture.pixels) - 1, atol=1e-4, err_msg=file.name)
        assert image.meta.get(PIXEL_SPACING) == (picture.spacing and pytest.approx(picture.spacing)), file


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_orientation_says_in_every_format(orientation: int, tmp_path: Path) -> None:
    stored, exif = Image.fromarray(GREY), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("a.png", "a.jpg", "a.tif"):
        stored.save(tmp_path / name, exif=exif, quality=95)
    found = {name: LoadImage(reader=RadiographReader())(tmp_path / name).numpy().T for name in ("a.png", "a.jpg")}
    upright = read_picture(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, upright)
    np.testing.assert_array_equal(found["a.png"], upright)
    np.testing.assert_allclose(found["a.jpg"], upright, atol=12)


def test_colours_of_print_are_those_that_are_seen(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "a.tif")
    found = LoadImage(reader=RadiographReader())(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, np.stack([GREY.T] * 3, axis=-1))


def test_a_nifti_picture_keeps_its_place_in_the_world(tmp_path: Path) -> None:
    """Each pixel of what is read lies where the same value lies in the file."""
    stored = np.arange(12.0).reshape(4, 1, 3)
    affine = np.array([[0, 0, 0.5, 3], [0, 2, 0, -1], [0.7, 0, 0, 5], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "a.nii")
    image = LoadImage(reader=RadiographReader())(tmp_path / "a.nii")
    np.testing.assert_array_equal(image.T, read_picture(tmp_path / "a.nii").pixels)
    for across, down in np.ndindex(3, 4):
        world = image.affine.numpy() @ [across, down, 0, 1]
        voxel = np.round(np.linalg.inv(affine) @ world).astype(int)
        assert stored[tuple(voxel[:3])] == image[across, down]


def test_the_spacing_of_the_header_is_that_of_the_resized_image_and_a_given_one_wins(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", GREY.astype(np.uint16), PixelSpacing=[0.2, 0.3], ImagerPixelSpacing=[0.4, 0.6])
    item = {"image": LoadImage(reader=RadiographReader())(tmp_path / "a").T[None]}
    found = ResizedSpacingd("image", (30, 20))(item)["spacing"]
    np.testing.assert_allclose(found, [0.2 * 60 / 30, 0.3 * 80 / 20], rtol=1e-6)
    given = ResizedSpacingd("image", (30, 20), [1.0, 2.0])(item)["spacing"]
    np.testing.assert_allclose(given, [60 / 30, 2 * 80 / 20])
    write_png(tmp_path / "b.png", GREY)
    item = {"image": LoadImage(reader=RadiographReader())(tmp_path / "b.png")[None]}
    assert "spacing" not in ResizedSpacingd("image", (30, 20))(item)


def test_the_spacing_of_a_padded_file_is_that_of_data_prep(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(GREY[:40]).astype(np.uint16), PixelSpacing=[0.2, 0.3])
    item = preprocessing("seg_cft_finetuning")({"image": str(file)})
    wanted = fit_spacing(read_picture(file).spacing, (40, 80), (60, 80))
    torch.testing.assert_close(item["spacing"], torch.tensor(wanted))


@pytest.mark.parametrize("reader", [RadiographReader(), VesselReader(2)])
def test_a_file_of_several_pictures_is_refused_but_the_previews_of_a_camera_are_not(
    reader: Any, tmp_path: Path
) -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    for name in ("pages.tif", "frames.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(ValueError, match=f"{name}: cannot be read, expected a picture .*: found 2 pictures"):
            LoadImage(reader=reader)(tmp_path / name)
    pages[0].save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=pages[1:], quality=95)
    np.testing.assert_allclose(LoadImage(reader=reader)(tmp_path / "camera.jpg").T, GREY, atol=12)


@pytest.mark.filterwarnings("ignore:PydicomReader. ImageOrientationPatient:UserWarning")  # a cut has none
@pytest.mark.parametrize("config", OF_VESSELS)
def test_a_vessel_is_read_with_the_same_numbers_from_every_format(config: str, tmp_path: Path) -> None:
    content = ConfigParser.load_config_file(str(BUNDLES / config))
    parser = ConfigParser({"image_size": [80, 60], **content["preprocessing"]})
    load = parser.get_parsed_content("transforms#0")
    wide = GREY.astype(np.uint16) * 250
    write_png(tmp_path / "wide.png", wide)
    tifffile.imwrite(tmp_path / "wide.tif", wide)
    write_dicom(tmp_path / "wide.dcm", wide // 16, RescaleSlope="16", RescaleIntercept="-100")
    nibabel.save(nibabel.Nifti1Image(wide.T, np.eye(4)), tmp_path / "wide.nii.gz")
    nibabel.save(nibabel.Nifti1Image(wide.T[..., None, None], np.eye(4)), tmp_path / "slice.nii.gz")
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    found = {path.name: load({"image": str(path)})["image"].numpy() for path in tmp_path.iterdir()}
    for name in ("wide.png", "wide.tif", "wide.nii.gz", "slice.nii.gz"):
        np.testing.assert_array_equal(found[name], wide.T[None], err_msg=name)
    np.testing.assert_array_equal(found["wide.dcm"][0], wide.T // 16 * 16.0 - 100)  # in HU, not windowed
    np.testing.assert_array_equal(found["palette.png"][0], GREY.T)


def test_a_vessel_of_other_dimensions_than_the_models_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "colour.png", np.stack([GREY] * 3, axis=-1))
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 5, 5), np.float32), np.eye(4)), tmp_path / "volume.nii")
    for name, dims in (("colour.png", 3), ("volume.nii", 2)):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read, .*: found an array .*, expected {dims} dimens"):
            LoadImage(reader=VesselReader(dims))(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a.nii.gz", "volume.nii", "frames.dcm"])
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    if name == "volume.nii":
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6)), np.eye(4)), tmp_path / name)
    elif name == "frames.dcm":
        write_dicom(tmp_path / name, np.zeros((3, 8, 9), np.uint16), NumberOfFrames=3)
    else:
        (tmp_path / name).write_text("this is no image")
    with pytest.raises(ValueError, match=rf"{name}: cannot be read, expected a picture .PNG, JPEG, TIFF., DICOM or"):
        LoadImage(reader=RadiographReader())(tmp_path / name)
