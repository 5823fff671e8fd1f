"""Every bundle on straightened vessels: not square, in mm² or mm³, with variables that are often zero; 2-D and 3-D."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bundle_docs import kept_logging, run_in_process
from matplotlib.figure import Figure
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import LoadImage
from small_vessels import small_vessels

from data_prep.regions import derive_regions, region_definition
from segcft_ext.checkpoints import DATA, CheckpointError, load_model, save_model
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM
from segcft_ext.figures import Panel, counterfactual_grid
from segcft_ext.networks.regressor import Regressor
from segcft_ext.networks.segmentor import Segmentor

BUNDLES = Path(__file__).parent.parent / "bundles"
HVAE = {
    "network_def#hvae#channels": [4] * 5,
    "network_def#hvae#blocks": [0, 0, 0, 1, 1],
    "network_def#hvae#latent_channels": 2,
}
HEAD = {"deformation_head#channels": [4, 4], "deformation_head#hidden_channels": 4, "deformation_head#grid_stage": 1}
JUDGE = {"network_def#channels": [4, 4, 4], "network_def#strides": [2, 2], "network_def#num_res_units": 1}


@pytest.fixture(scope="module", params=[(64, 16), (64, 16, 16)], ids=["2-D", "3-D"])
def datalist(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Datalist:
    return small_vessels(tmp_path_factory.mktemp("vessels"), request.param, training=4)


@pytest.fixture(scope="module")
def ran(datalist: Datalist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the outputs of all stages, none of which was told what is in the datalist."""
    folder = tmp_path_factory.mktemp("stages")
    guide = Segmentor(datalist.labels, "BasicUNet", datalist.spatial_dims, features=[4] * 6)
    guide.describe(datalist, use="guide")
    save_model(guide, folder / "guide.pt")

    def run(bundle: str, config: str, output: str, **settings: object) -> None:
        configs = BUNDLES / bundle / "configs"
        overlay = [config.replace("train", "coronary")] if "train" in config else []
        given = {
            "config_file": str([str(configs / name) for name in (config, *overlay)]),
            "bundle_root": str(BUNDLES / bundle),
            "datalist": str(datalist.path),
            "output_dir": str(folder / output),
            "tracking_uri": f"sqlite:///{tmp_path_factory.getbasetemp()}/mlflow.db",
            **({"max_epochs": 1, "batch_size": 2} if "train" in config else {}),
            **settings,
        }
        words = [
            word
            for key, value in given.items()
            for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segcft_ext.figures.pictures.DPI", 20)  # drawn, but not for looking at
            run_in_process(["run", *words])

    run("segmentor_evaluation", "train.json", "judge", **JUDGE)
    strides = [2, 2, 2, [8] + [2] * (datalist.spatial_dims - 1)]
    run("dscm_pretraining", "train.json", "dscm", **HVAE, **{"network_def#hvae#strides": strides})
    run("seg_cft_finetuning", "train_regressor.json", "regressor", **{"network_def#channels": [4, 4]})
    tuned = {"dscm": str(folder / "dscm" / "model.pt"), "guide": str(folder / "guide.pt")}
    run("seg_cft_finetuning", "train.json", "seg_cft", deformation=1, **tuned, **HEAD)
    run(
        "segmentor_evaluation",
        "evaluate.json",
        "evaluation",
        judge=str(folder / "judge" / "model.pt"),
        methods={"No-CFT": tuned["dscm"], "Seg-CFT": str(folder / "seg_cft" / "model.pt")},
        interventions_per_case=1,
        figure_cases=1,
    )
    return folder


def test_networks_are_built_for_the_datalist(ran: Path, datalist: Datalist) -> None:
    judge = load_model(ran / "judge" / "model.pt", Segmentor)
    assert judge.labels == datalist.labels and judge.definition["spatial_dims"] == datalist.spatial_dims
    for model in (load_model(ran / "dscm" / "model.pt", DSCM), load_model(ran / "regressor" / "model.pt", Regressor)):
        assert model.variables.names == datalist.variable_names
        assert set(model.variables.units) == {f"mm{datalist.spatial_dims}"}


def test_fine_tuning_adds_a_head_of_the_same_dimensions(ran: Path, datalist: Datalist) -> None:
    tuned = load_model(ran / "seg_cft" / "model.pt", DSCM)
    assert tuned.deformation is not None and tuned.deformation.spatial_dims == datalist.spatial_dims
    assert tuned.data["guide"]["data"]["labels"] == dict(datalist.labels)


def test_a_head_is_added_to_a_model_of_some_of_the_variables(tmp_path: Path) -> None:
    whole = small_vessels(tmp_path / "whole", training=12)
    halves = derive_regions(whole.path, tmp_path / "datalist.json", region_definition(boundaries=[0, 0.5, 1]))
    painted = halves.may_be_zero
    kept = ["lumen_area_proximal", painted[0]]
    hvae = {"channels": [4, 4], "strides": [2], "blocks": [0, 1], "latent_channels": 2}
    dscm = DSCM(halves.definitions(kept), hvae=hvae)
    dscm.fit(halves)
    save_model(dscm, tmp_path / "dscm.pt")
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "seg_cft_finetuning" / "configs" / "train.json"))
    for key, value in {"datalist": str(halves.path), "dscm": str(tmp_path / "dscm.pt"), "deformation": True}.items():
        parser[key] = value
    tuned = parser.get_parsed_content("network_def")
    assert tuned.variables.names == kept
    assert tuned.origin == str(tmp_path / "dscm.pt")
    assert tuned.definition["deformation"]["painted"] == painted[:1] != painted
    assert set(tuned.definition["deformation"]["bands"]) == set(kept) < set(halves.bands)
    assert set(tuned.definition["deformation"]["areas"]) == set(kept) < set(halves.area_labels)


@pytest.mark.parametrize(
    "config", ["dscm_pretraining/configs/train.json", "seg_cft_finetuning/configs/train_regressor.json"]
)
@pytest.mark.parametrize("given", ["calcified_plaque_area,lumen_area", ("calcified_plaque_area", "lumen_area")])
def test_variables_are_named_and_the_rest_is_known_of_the_data(config: str, given: Any, tmp_path: Path) -> None:
    datalist = small_vessels(tmp_path, training=12)
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / config))
    parser["datalist"], parser["variables"] = str(datalist.path), given
    network = parser.get_parsed_content("network_def")
    assert network.definition["variables"] == datalist.definitions(["calcified_plaque_area", "lumen_area"])
    assert network.variables.zero_inflated == [True, False]


@pytest.mark.parametrize("overlay", [[], ["coronary.json"]], ids=["chest", "vessels"])
@pytest.mark.parametrize("head", [False, True], ids=["HVAE", "head"])
def test_what_is_left_alone_weighs_as_much_for_the_hvae_of_vessels(overlay: list[str], head: bool) -> None:
    configs = BUNDLES / "seg_cft_finetuning" / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / name) for name in ("train.json", *overlay)])
    parser["deformation"], parser["guide_network"] = head, None
    objective = parser.get_parsed_content("objective")
    assert objective.others == ((1.6 if overlay else 2.0) if head else 4.0)
    assert objective.preservation == (1.0 if overlay or head else 0.25)


@pytest.mark.parametrize(("dims", "rate"), [(2, 0.003), (3, 0.001)])
def test_the_shipped_networks_take_pictures_and_volumes(dims: int, rate: float, tmp_path: Path) -> None:
    datalist = small_vessels(tmp_path, training=12, size=(64, 16, 16)[:dims])
    for bundle in ("dscm_pretraining", "seg_cft_finetuning"):
        parser = ConfigParser()
        parser.read_config([str(BUNDLES / bundle / "configs" / name) for name in ("train.json", "coronary.json")])
        parser["datalist"] = str(datalist.path)
        if bundle == "dscm_pretraining":
            dscm = parser.get_parsed_content("network_def")
            dscm.fit(datalist)
            save_model(dscm, tmp_path / "dscm.pt")
    parser["dscm"], parser["deformation"] = str(tmp_path / "dscm.pt"), True
    tuned = parser.get_parsed_content("network_def").eval()
    assert parser.get_parsed_content("learning_rate") == rate
    assert tuned.deformation is not None and tuned.deformation.slip == (0,)
    values = datalist.training_values(tuned.variables.names)["values"][:2]
    image = torch.rand(2, 1, *datalist.size) * 2 - 1
    made = tuned.counterfactual(image, values, {tuned.variables.names[0]: 1.5 * values[:, 0]})
    assert made.image.shape == image.shape and made.image.isfinite().all()


def test_an_edit_of_a_whole_vessel_costs_as_much_as_three_of_a_third(tmp_path: Path) -> None:
    whole = small_vessels(tmp_path / "whole", training=12)
    thirds = derive_regions(whole.path, tmp_path / "datalist.json", region_definition())
    prices = []
    for datalist in (whole, thirds):
        parser = ConfigParser()
        configs = BUNDLES / "seg_cft_finetuning" / "configs"
        parser.read_config([str(configs / name) for name in ("train.json", "coronary.json")])
        parser["datalist"], parser["deformation"], parser["guide_network"] = str(datalist.path), True, None
        objective = parser.get_parsed_content("objective")
        prices.append((objective.minimality, objective.paint))
    np.testing.assert_allclose(3 * np.array(prices[0]), prices[1])


@pytest.mark.parametrize(("measurements", "paint"), [({}, 10.0), ({"lumen_area": 1}, 40.0)])
def test_paint_that_corrects_a_tissue_costs_more(measurements: dict[str, int], paint: float) -> None:
    configs = BUNDLES / "seg_cft_finetuning" / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / name) for name in ("train.json", "coronary.json")])
    parser["deformation"] = True
    parser["guide_network"] = {"_target_": "types.SimpleNamespace", "measurements": measurements}
    assert parser.get_parsed_content("objective").paint == paint


def test_the_judge_evaluates(ran: Path, datalist: Datalist) -> None:
    evaluation = json.loads((ran / "evaluation" / "evaluation.json").read_text())
    assert set(evaluation["judge"]) == set(datalist.structures)
    for method in evaluation["methods"].values():
        assert method["composition"] == method["composition_sampled"] == {"1": 0, "10": 0}
    figures = json.loads((ran / "evaluation" / "figures" / "figures.json").read_text())
    assert {figure["kind"] for figure in figures} == {"scatter", "heatmap", "maps", "sweep", "comparison"}
    for figure in figures:
        sliced = datalist.spatial_dims == 3 and figure["kind"] not in ("scatter", "heatmap")
        assert figure["caption"].endswith("middle slice.") == sliced


def infer(bundle: str, **options: Any) -> None:
    """Run the inference of a bundle, with the overlay for vessels."""
    configs = BUNDLES / bundle / "configs"
    with kept_logging():
        workflow = ConfigWorkflow(
            config_file=[str(configs / name) for name in ("inference.json", "coronary_inference.json")],
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(configs.parent),
            device="cpu",
            **options,
        )
        workflow.initialize()
        workflow.run()


def test_the_judge_segments_what_it_was_trained_on(ran: Path, datalist: Datalist, tmp_path: Path) -> None:
    case = datalist.items("test")[0]
    infer(
        "segmentor_evaluation",
        dataset_dir=str(Path(case["image"]).parent),
        judge=str(ran / "judge" / "model.pt"),
        output_dir=str(tmp_path),
    )
    (written,) = tmp_path.glob(f"{case['id']}_seg.*")
    label = LoadImage(reader=datalist.reader(), image_only=True)(written)
    assert label.shape == datalist.size and set(label.unique().tolist()) <= set(datalist.labels.values())


@pytest.mark.parametrize(
    ("bundle", "option"),
    [
        ("dscm_pretraining", "dscm"),
        ("seg_cft_finetuning", "dscm"),
        ("segmentor_evaluation", "judge"),
        ("plaque_lumen_segmentor", "segmentor"),
    ],
)
@pytest.mark.parametrize("window", [None, (-100.0, 300.0)])
def test_intensities_are_read_as_the_model_was_trained_on_them(
    bundle: str, option: str, window: tuple[float, float] | None, tmp_path: Path
) -> None:
    names = ["inference.json"] if bundle == "plaque_lumen_segmentor" else ["inference.json", "coronary_inference.json"]
    parser = ConfigParser(
        ConfigParser.load_config_files([str(BUNDLES / bundle / "configs" / name) for name in names]),
    )
    parser[option] = str(tmp_path / "model.pt")
    if window:
        network = Segmentor({"background": 0}, "UNet", channels=(4, 8), strides=(2,))
        network.data = {**dict.fromkeys(DATA), "image_size": [64, 16], "window": list(window)}
        save_model(network, tmp_path / "model.pt")
    (transform,) = (
        place
        for place, step in enumerate(parser["preprocessing"]["transforms"])
        if step["_target_"].endswith("VesselIntensityd")
    )
    found = parser.get_parsed_content(f"preprocessing#transforms#{transform}")
    assert list(found.window) == list(window or (-150, 750))


VESSELS = dict.fromkeys(["background", "lumen"])
CHEST = dict.fromkeys(["background", "left_lung", "heart"])


@pytest.mark.parametrize(
    ("window", "labels", "refused"),
    [
        ([-150.0, 750.0], VESSELS, "inference.json"),
        ([-150.0, 750.0], {"background": 0, "wall": 1}, "inference.json"),
        (None, VESSELS, "inference.json"),
        (None, CHEST, "coronary_inference.json"),
        (None, {"background": 0, "clavicle": 1}, None),
    ],
    ids=["vessels", "their window", "their labels", "chest", "not told"],
)
@pytest.mark.parametrize("overlay", [False, True], ids=["radiographs", "vessels"])
@pytest.mark.parametrize(
    ("bundle", "option"),
    [("dscm_pretraining", "dscm"), ("seg_cft_finetuning", "dscm"), ("segmentor_evaluation", "judge")],
)
def test_images_are_read_as_those_of_the_training(
    bundle: str, option: str, overlay: bool, window: Any, labels: dict[str, Any], refused: str | None, tmp_path: Path
) -> None:
    names = ["inference.json", "coronary_inference.json"] if overlay else ["inference.json"]
    parser = ConfigParser(ConfigParser.load_config_files([str(BUNDLES / bundle / "configs" / n) for n in names]))
    network = Segmentor({"background": 0}, "UNet", channels=(4, 8), strides=(2,))
    network.data = {**dict.fromkeys(DATA), "image_size": [64, 16], "window": window, "labels": labels}
    save_model(network, tmp_path / "model.pt")
    parser[option] = str(tmp_path / "model.pt")
    if refused != names[-1]:
        assert parser.get_parsed_content("run#2") is None
        return
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("run#2")
    trained, expected = (
        ("radiographs", "configs/inference.json without coronary_inference.json")
        if overlay
        else ("straightened vessels", "add configs/coronary_inference.json")
    )
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert re.search(f"model.pt: trained on {trained} .*, found .*, expected .*{expected}", str(caught.value.__cause__))


@pytest.mark.parametrize("bundle", ["seg_cft_finetuning", "dscm_pretraining"])
@pytest.mark.parametrize("head", [False, True], ids=["no head", "head"])
def test_counterfactuals_of_an_image(
    datalist: Datalist, bundle: str, head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An action to the factual value gives the image back, in its own window, place and format; others change it."""
    torch.manual_seed(0)
    dims = datalist.spatial_dims
    hvae = {"spatial_dims": dims, "channels": [4, 4], "strides": [4], "blocks": [0, 1], "latent_channels": 1}
    deformation = {"spatial_dims": dims, "channels": [4, 4], "hidden_channels": 4, "grid_stage": 1}
    dscm = DSCM(datalist.definitions(), hvae=hvae, deformation=deformation if head else None)
    dscm.fit(datalist)
    with torch.no_grad():
        for parameter in (dscm.hvae if dscm.deformation is None else dscm.deformation).parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(dscm, tmp_path / "model.pt")
    case = datalist.entries["test"][0]
    source = datalist.path.parent / case["image"]
    lumen = datalist.variable_names[0]
    panels: list[Panel] = []

    def noting(factual: Panel, *arguments: Any) -> Figure:
        panels.append(factual)
        return counterfactual_grid(factual, *arguments)

    monkeypatch.setattr("segcft_ext.handlers.counterfactual_writer.counterfactual_grid", noting)
    infer(
        bundle,
        image=str(source),
        dscm=str(tmp_path / "model.pt"),
        output_dir=str(tmp_path),
        variables=case["variables"],
        intervention={lumen: [case["variables"][lumen], "q95"]},
        **({"samples": 2} if bundle == "dscm_pretraining" else {}),
    )
    suffix = ".png" if dims == 2 else ".nii.gz"
    read = LoadImage(image_only=True)
    true = read(source) / 65535
    names = [f"{step}{kind}" for step in ("01", "02") for kind in ("", "_original")]
    files = [read(tmp_path / case["id"] / f"counterfactual_{name}{suffix}") for name in names]
    same, same_original, other, other_original = (x / 255 if dims == 2 else (x + 1) / 2 for x in files)
    for made in (same, same_original):
        np.testing.assert_allclose(made, true, atol=0.01)
    assert (other - same).abs().max() > 0.01 and (other_original - same_original).abs().max() > 0.01
    np.testing.assert_allclose(other_original.affine, true.affine)
    assert (tmp_path / case["id"] / "figure.png").is_file()
    assert [panel.subtitle for panel in panels] == [f"{case['variables'][lumen]:.3g} {('mm²', 'mm³')[dims - 2]}"]
    if dims == 3:  # the file is shortest along another axis than the model's images
        oblong = F.interpolate(true.as_tensor()[None, None], size=(64, 30, 20))[0, 0].numpy()
        nibabel.save(nibabel.Nifti1Image(oblong, np.eye(4)), tmp_path / "oblong.nii.gz")
        infer(
            bundle,
            image=str(tmp_path / "oblong.nii.gz"),
            dscm=str(tmp_path / "model.pt"),
            output_dir=str(tmp_path),
            variables=case["variables"],
            intervention={lumen: "q95"},
        )
        assert panels[-1].mask.shape == (64, 16) and panels[-1].image.shape == (64, 20)
