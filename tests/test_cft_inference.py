"""``inference.json`` of the bundles that make counterfactuals: what a user types, and what lies in the folder then."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle_docs import kept_logging
from drawn_chest import draw, write_png
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from small_chests import small_chests

from data_prep.geometry import fit_image
from segcft_ext.checkpoints import CheckpointError, save_model
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.scm import SCM
from segcft_ext.transforms import CounterfactualToOriginald

BUNDLES = Path(__file__).parent.parent / "bundles"
AREAS = ["left_lung_area", "right_lung_area", "heart_area"]
VALUES = {"left_lung_area": 14.0, "right_lung_area": 15.0, "heart_area": 5.0}
HVAE = {"channels": (8, 8, 8), "strides": (4, 4), "blocks": (0, 1, 1), "latent_channels": 2}
HEAD = {"channels": (8, 8), "hidden_channels": 8, "grid_stage": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``dscm.pt`` (with a deformation head), ``segmentor.pt`` and ``wide.png``, a colour picture."""
    folder = tmp_path_factory.mktemp("made")
    make_models(folder, small_chests(folder / "data"))
    grey, _ = draw(3, (60, 80))
    grey[5:15, 5:25] = 0  # a mark that tells left from right and top from bottom
    write_png(folder / "wide.png", np.stack([grey] * 3, axis=-1))
    return folder


def make_models(folder: Path, datalist: Datalist) -> None:
    """Write ``dscm.pt``, with a deformation head, and ``segmentor.pt``."""
    torch.manual_seed(0)
    variables = [{"name": name, "kind": "continuous"} for name in AREAS]
    dscm = DSCM([*variables, {"name": "sex", "kind": "binary"}], {"heart_area": ["sex"]}, HVAE, HEAD)
    dscm.fit(datalist)
    with torch.no_grad():
        for parameter in dscm.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for parameter in dscm.deformation.velocity_head.parameters():  # type: ignore[union-attr]
            parameter.mul_(6)
            parameter[0::2] = 0  # it moves things sidewards only, so that the axes can be told apart
    save_model(dscm, folder / "dscm.pt")
    segmentor = Segmentor(datalist.labels, "UNet", channels=(4, 4), strides=(2,))
    segmentor.describe(datalist, use="guide")
    save_model(segmentor, folder / "segmentor.pt")


def infer(made: Path, out: Path, bundle: str = "seg_cft_finetuning", **arguments: Any) -> None:
    given = {"image": str(made / "wide.png"), "dscm": str(made / "dscm.pt"), "output_dir": str(out), **arguments}
    with kept_logging():
        workflow = ConfigWorkflow(
            config_file=str(BUNDLES / bundle / "configs" / "inference.json"),
            meta_file=None,
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(BUNDLES / bundle),
            device="cpu",
            **given,
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def cause(error: BaseException) -> BaseException:
    """The first cause behind MONAI's "Failed to evaluate"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "variables.json").read_text(encoding="utf-8"))


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


def test_given_variables_and_one_relative_change(made: Path, tmp_path: Path) -> None:
    infer(made, tmp_path, variables=VALUES, intervention={"left_lung_area": "+20%"})
    found = content(tmp_path / "wide")
    assert found["variables"]["left_lung_area"] == {"value": 14.0, "unit": "percent"}
    assert found["variables"]["sex"]["value"] is None  # nobody measures it, so it may be missing
    (only,) = found["counterfactuals"]
    assert only["variables"]["left_lung_area"] == pytest.approx(16.8)
    assert only["variables"]["right_lung_area"] == 15.0
    assert only["folding"] == 0
    assert "measured" not in found
    for name in (*only["files"].values(), "figure.png", "reconstruction.png", "factual.png", "factual_original.png"):
        assert (tmp_path / "wide" / name).is_file()
    assert grey(tmp_path / "wide" / "counterfactual_01.png").shape == (32, 32)
    assert grey(tmp_path / "wide" / "counterfactual_01_original.png").shape == (60, 80)


def test_two_patients_do_not_share_their_noise_and_one_keeps_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    counterfactual = SCM.counterfactual

    def seen(self: SCM, values: torch.Tensor, do: Any, noise: torch.Generator) -> torch.Tensor:
        seeds.append(noise.initial_seed())
        return counterfactual(self, values, do, noise)

    monkeypatch.setattr(SCM, "counterfactual", seen)
    for number in range(3):
        write_png(tmp_path / "images" / f"{number}.png", draw(number, (60, 60))[0])
    sweep = {"variables": VALUES, "intervention": {"left_lung_area": ["-20%", "+20%"]}}
    infer(made, tmp_path / "all", image=None, dataset_dir=str(tmp_path / "images"), **sweep)
    infer(made, tmp_path / "one", image=str(tmp_path / "images" / "1.png"), **sweep)
    assert len(set(seeds)) == 3 and seeds[::2] == seeds[1::2] and seeds[6] == seeds[2]


def test_images_that_cannot_be_used_are_named_and_the_others_are_made(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    for number in range(3):
        write_png(images / f"{number}.png", draw(number, (60, 60))[0])
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[: len(whole) // 2])
    (images / "3.dcm").write_bytes(b"damaged")
    for folder, arguments in (("all", {}), ("workers", {"dataloader#num_workers": 1})):
        caplog.clear()
        with pytest.raises(RuntimeError) as caught:
            infer(made, tmp_path / folder, image=None, dataset_dir=str(images), variables=VALUES, **arguments)
        first, *faults = str(cause(caught.value)).split("\n")
        assert first == "2 of 4 images could not be used:" and len(faults) == 2
        for fault, name in zip(faults, ("1.png", "3.dcm")):
            assert re.match(rf"{images}/{name}: cannot be read, expected a picture .*: \w+: \w+", fault)
            assert f"{images}/{name} is left out: cannot be read" in caplog.text
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"0", "2"}
        assert content(tmp_path / folder / "2")["counterfactuals"]


def test_a_segmentor_measures_what_is_not_given(made: Path, tmp_path: Path) -> None:
    sweep = {"left_lung_area": ["-20%", "+1.5", "q90"], "heart_area": 6.5, "sex": "F"}
    infer(
        made,
        tmp_path,
        variables={"heart_area": 5.0, "sex": "M"},
        segmentor=str(made / "segmentor.pt"),
        intervention=sweep,
    )
    found = content(tmp_path / "wide")
    assert found["variables"]["heart_area"]["value"] == 5.0
    assert found["variables"]["sex"]["value"] == "M"
    left = found["variables"]["left_lung_area"]["value"]
    assert left == found["measured"]["left_lung_area"]
    steps = found["counterfactuals"]
    wanted = [step["variables"]["left_lung_area"] for step in steps]
    assert wanted[:2] == [pytest.approx(0.8 * left), pytest.approx(left + 1.5)]
    assert all(step["variables"]["heart_area"] == 6.5 and step["variables"]["sex"] == "F" for step in steps)
    assert all(step["measured"].keys() == set(AREAS) for step in steps)
    assert all(step["measured"] != found["measured"] for step in steps)
    assert len({step["files"]["counterfactual"] for step in steps}) == 3


def test_the_segmentor_sees_each_image_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = Segmentor.forward
    monkeypatch.setattr(Segmentor, "forward", lambda self, image: seen.append(len(image)) or forward(self, image))
    infer(made, tmp_path, segmentor=str(made / "segmentor.pt"), intervention={"left_lung_area": ["-20%", "+20%"]})
    assert sum(seen) == 1 + 2


def test_no_action_gives_the_image_back_in_its_own_place(made: Path, tmp_path: Path) -> None:
    infer(made, tmp_path, variables=VALUES, intervention={})
    assert set(np.unique(grey(tmp_path / "wide" / "difference_01.png"))) <= {127.0, 128.0}
    back, read = grey(tmp_path / "wide" / "counterfactual_01_original.png"), grey(made / "wide.png")[..., 0]
    low, high = np.percentile(read, [1, 99])
    wanted = 255 * ((read - low) / (high - low)).clip(0, 1)
    assert np.abs(back - wanted).max() < 2


def test_a_prepared_image_keeps_its_intensities(made: Path, tmp_path: Path) -> None:
    grey_levels = np.linspace(20000, 40000, 32 * 32).reshape(32, 32).astype(np.uint16)
    write_png(tmp_path / "phantom.png", grey_levels)
    image = str(tmp_path / "phantom.png")
    infer(made, tmp_path, image=image, variables=VALUES, intervention={}, prepared=True)
    for name in ("counterfactual_01.png", "counterfactual_01_original.png"):
        np.testing.assert_allclose(grey(tmp_path / "phantom" / name), grey_levels / 257, atol=1)


@pytest.mark.parametrize("shape", [(60, 80), (90, 30)])
def test_a_model_of_images_that_are_not_square(tmp_path: Path, shape: tuple[int, int]) -> None:
    make_models(tmp_path, small_chests(tmp_path / "data", 32, width=16))
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = (127 + 120 * np.sin(y / 9) * np.cos(x / 7)).astype(np.uint8)
    write_png(tmp_path / "image.png", smooth)
    image, segmentor = str(tmp_path / "image.png"), str(tmp_path / "segmentor.pt")
    infer(tmp_path, tmp_path, image=image, variables=VALUES, segmentor=segmentor, intervention={}, prepared=True)
    small = grey(tmp_path / "image" / "counterfactual_01.png")
    assert np.abs(small - fit_image(smooth, (32, 16))).mean() < 3  # MONAI's filter is not quite that of data_prep
    np.testing.assert_allclose(grey(tmp_path / "image" / "counterfactual_01_original.png"), smooth, atol=1)


def test_a_movement_is_scaled_by_the_axis_that_was_not_padded() -> None:
    fields = torch.zeros(2, 30, 90)
    fields[0] = -2  # 2 of 32 pixels downwards are 5.6 of 90
    blob = torch.exp(-((torch.arange(90.0) - 40) ** 2) / 50).expand(1, 30, 90)
    item = {"original": blob, "residual": torch.zeros(1, 30, 90), "displacement": fields}
    moved = CounterfactualToOriginald((32, 16))(item)["pred_original"][0, 15]
    assert int(moved.argmax()) == pytest.approx(40 + 2 * 90 / 32, abs=1)
    fields = torch.zeros(2, 60, 90)
    fields[1] = -2  # 2 of 16 pixels across are 7.5 of 60
    blob = torch.exp(-((torch.arange(60.0) - 20) ** 2) / 50)[None, :, None].expand(1, 60, 90)
    item = {"original": blob, "residual": torch.zeros(1, 60, 90), "displacement": fields}
    moved = CounterfactualToOriginald((32, 16))(item)["pred_original"][0, :, 45]
    assert int(moved.argmax()) == pytest.approx(20 + 2 * 60 / 16, abs=1)


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (96, 40, 24), (40, 96, 24), (24, 40, 96)])
def test_a_vessel_is_moved_along_its_own_axes(shape: tuple[int, ...]) -> None:
    """Two pixels along the vessel and one across, of 32 and 8, whichever way the vessel lies in the file."""
    along = shape.index(96)
    others = [axis for axis in range(len(shape)) if axis != along]
    moves = {along: 2 * 96 / 32, others[0]: shape[others[0]] / 8}

    def blob(moved: bool) -> torch.Tensor:
        axes = [torch.arange(float(n)) - n / 2 - (moves.get(k, 0) if moved else 0) for k, n in enumerate(shape)]
        return torch.exp(-sum(grid**2 for grid in torch.meshgrid(*axes, indexing="ij")) / 20)[None]

    fields = torch.zeros(len(shape), *shape)
    fields[0], fields[1] = -2, -1
    item = {"original": blob(False), "residual": torch.zeros(1, *shape), "displacement": fields}
    transform = CounterfactualToOriginald((32, *[8] * (len(shape) - 1)), along_vessel=True)
    torch.testing.assert_close(transform(item)["pred_original"].as_tensor(), blob(True), atol=0.02, rtol=0)


def test_the_spacing_is_that_of_the_file(tmp_path: Path) -> None:
    """A picture of twice the size, whose pixels have half the spacing, shows the same areas in mm²."""
    datalist = small_chests(tmp_path / "data", unit="mm2")
    make_models(tmp_path, datalist)
    case = datalist.entries["test"][0]
    stored = np.asarray(Image.open(datalist.path.parent / case["image"]))
    write_png(tmp_path / "once.png", stored)
    write_png(tmp_path / "twice.png", stored.repeat(2, 0).repeat(2, 1))
    measured = {}
    for name, spacing in (("once", [2.0, 2.0]), ("twice", [1.0, 1.0])):
        image, segmentor = str(tmp_path / f"{name}.png"), str(tmp_path / "segmentor.pt")
        infer(tmp_path, tmp_path, image=image, segmentor=segmentor, spacing=spacing, intervention={}, prepared=True)
        measured[name] = content(tmp_path / name)["measured"]
    # label maps of an untrained segmentor, on images resized or not
    assert measured["twice"] == pytest.approx(measured["once"], rel=0.1)
    with pytest.raises(RuntimeError) as caught:
        infer(tmp_path, tmp_path, segmentor=segmentor, image=str(tmp_path / "once.png"), intervention={})
    assert re.search(r"left_lung_area.* are measured in mm2.*--spacing", str(cause(caught.value)))


def test_the_original_becomes_what_the_small_image_becomes(made: Path, tmp_path: Path) -> None:
    y, x = np.mgrid[:60, :80]
    blobs = sum(np.exp(-((y - row) ** 2 + (x - column) ** 2) / 120) for row, column in ((20, 20), (30, 55), (45, 30)))
    write_png(tmp_path / "smooth.png", (200 * blobs / blobs.max()).astype(np.uint8))
    action = {"left_lung_area": 16.0}
    image = str(tmp_path / "smooth.png")
    infer(made, tmp_path, image=image, variables=VALUES, intervention=action, output_ext=".nii.gz")
    small, large = (
        torch.tensor(nibabel.load(tmp_path / "smooth" / f"difference_01{suffix}.nii.gz").get_fdata())[None, None]
        for suffix in ("", "_original")
    )
    shrunk = torch.nn.functional.interpolate(large, size=(32, 24), mode="area")
    assert small.abs().mean() > 0.01
    assert (shrunk - small[..., 4:28]).abs().mean() < 0.3 * small.abs().mean()
    for suffix in ("", "_original"):
        made, factual, change = (
            nibabel.load(tmp_path / "smooth" / f"{name}{suffix}.nii.gz").get_fdata()
            for name in ("counterfactual_01", "factual", "difference_01")
        )
        np.testing.assert_allclose(made - factual, change, atol=1e-5)


def test_a_displacement_at_the_models_size_is_scaled_to_the_originals() -> None:
    across, down = torch.meshgrid(torch.arange(80.0), torch.arange(60.0), indexing="ij")

    def blob(x: float, y: float) -> torch.Tensor:
        return torch.exp(-((across - x) ** 2 + (down - y) ** 2) / 50)[None]

    fields = torch.zeros(2, 2, 80, 60)
    fields[0, 0] = -4  # 4 of 32 pixels downwards are 10 of 80; an image is sampled where its content comes from
    fields[1, 1] = -2
    item = {"original": blob(40, 25), "residual": torch.zeros(2, 80, 60), "displacement": fields.flatten(0, 1)}
    made = CounterfactualToOriginald((32, 32))(item)
    torch.testing.assert_close(made["pred_original"].as_tensor()[0], blob(40, 35)[0], atol=0.02, rtol=0)
    torch.testing.assert_close(made["pred_original"].as_tensor()[1], blob(45, 25)[0], atol=0.02, rtol=0)
    upright = torch.stack([item["original"][0], *made["pred_original"].as_tensor()]).mT  # wide, so padded in height
    torch.testing.assert_close(made["detailed"], torch.nn.functional.pad(upright, (0, 0, 10, 10), value=-1.0))


def test_nifti_holds_the_numbers(made: Path, tmp_path: Path) -> None:
    infer(made, tmp_path, variables=VALUES, intervention={"heart_area": 8.0}, output_ext=".nii.gz")
    folder = tmp_path / "wide"
    difference = nibabel.load(folder / "difference_01.nii.gz").get_fdata()
    assert difference.shape == (32, 32) and np.abs(difference).max() > 0
    image = nibabel.load(folder / "counterfactual_01_original.nii.gz").get_fdata()
    assert image.shape == (80, 60) and image.min() >= -1 and image.max() <= 1


def test_particles_show_where_the_model_is_uncertain(made: Path, tmp_path: Path) -> None:
    found = {}
    for run in ("first", "again"):
        infer(made, tmp_path / run, variables=VALUES, intervention={"heart_area": [8.0, 10.0]}, particles=3)
        folder = tmp_path / run / "wide"
        names = [entry["files"]["uncertainty"] for entry in content(folder)["counterfactuals"]]
        assert names == ["uncertainty_01.nii.gz", "uncertainty_02.nii.gz"]
        found[run] = [nibabel.load(folder / name).get_fdata() for name in names]
    assert np.array_equal(found["first"], found["again"])
    assert found["first"][0].shape == (32, 32) and found["first"][0].max() > 1e-4
    infer(made, tmp_path / "none", variables=VALUES, intervention={}, particles=3)
    assert nibabel.load(tmp_path / "none" / "wide" / "uncertainty_01.nii.gz").get_fdata().max() < 1e-6


def test_pretraining_bundle_draws_samples_too(made: Path, tmp_path: Path) -> None:
    infer(made, tmp_path, "dscm_pretraining", variables=VALUES, samples=4)
    assert (tmp_path / "samples.png").is_file()
    assert len(content(tmp_path / "wide")["counterfactuals"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variables": None}, r"not known.*left_lung_area \(percent\), right_lung_area.*--variables.*--segmentor"),
        ({"variables": {"left_lung_area": 14.0}}, r"not known of the image: right_lung_area.*heart_area"),
        ({"intervention": {"sex": "F"}}, r"not known of the image: sex"),
        ({"variables": VALUES, "particles": 1}, r"particles: found 1, expected 0, or 2 and more"),
        (
            {"intervention": {"spleen": 3}},
            r"--intervention: no variable 'spleen'; the variables of .*dscm\.pt are \['left_lung",
        ),
        ({"intervention": {"left_lung_area": "a lot"}}, r"found 'a lot', expected"),
        ({"variables": VALUES | {"liver": 3.0}}, r"--variables: no variable 'liver'; the variables of .*dscm\.pt are"),
        ({"variables": VALUES | {"heart_area": "+20%"}}, r"heart_area: found '\+20%', expected a number"),
        ({"output_ext": ".bmp"}, r"output_ext: found '.bmp'"),
    ],
)
def test_errors_say_what_is_missing(made: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        infer(made, tmp_path, **{"variables": VALUES, "intervention": {"left_lung_area": "+20%"}, **arguments})
    assert isinstance(cause(caught.value), ValueError)
    assert re.search(message, str(cause(caught.value)))


def test_missing_checkpoint_is_an_error_that_names_it(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        infer(made, tmp_path, dscm=str(tmp_path / "nothing.pt"), variables=VALUES)
    assert isinstance(cause(caught.value), CheckpointError)
    assert re.search("--dscm: .*nothing.pt: no such.*bundle seg_cft_finetuning", str(cause(caught.value)))
    with pytest.raises(RuntimeError) as caught:
        infer(made, tmp_path, segmentor=str(tmp_path / "nothing.pt"))
    assert re.search("--segmentor: .*nothing.pt: no such.*bundle lung_heart_segmentor", str(cause(caught.value)))


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ("dscm_pretraining/configs/inference.json", "segmentor"),
        ("seg_cft_finetuning/configs/inference.json", "segmentor"),
        ("seg_cft_finetuning/configs/evaluate.json", "guide"),
    ],
)
def test_checkpoints_are_recorded_where_they_lie(config: str, option: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / config))
    (header,) = [f"handlers#{i}#header" for i, handler in enumerate(parser["handlers"]) if "header" in handler]
    assert parser.get_parsed_content(f"{header}#{option}") is None
    parser[option] = "model.pt"
    parser.parse(True)
    assert parser.get_parsed_content(f"{header}#{option}") == str(Path.cwd() / "model.pt")


def test_impossible_areas_are_refused_and_far_ones_logged_once(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError) as caught:
        infer(made, tmp_path, variables=VALUES, intervention={"left_lung_area": -20})
    assert re.search(r"'left_lung_area': found '-20'.*such as \"-20%\"", str(cause(caught.value)))
    infer(made, tmp_path, variables=VALUES, intervention={"left_lung_area": [90, 95]})
    assert caplog.text.count("intervention on 'left_lung_area': target 90, but it is") == 1
    assert "target 95" not in caplog.text


def test_segmentor_of_other_data_is_refused(made: Path, tmp_path: Path) -> None:
    datalist = small_chests(tmp_path / "data", size=16)
    segmentor = Segmentor(datalist.labels, "UNet", channels=(4, 4), strides=(2,))
    segmentor.describe(datalist, use="guide")
    save_model(segmentor, tmp_path / "segmentor.pt")
    with pytest.raises(RuntimeError) as caught:
        infer(made, tmp_path / "out", segmentor=str(tmp_path / "segmentor.pt"))
    assert isinstance(cause(caught.value), CheckpointError)
    assert "data.image_size" in str(cause(caught.value))
