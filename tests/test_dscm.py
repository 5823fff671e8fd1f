"""The axioms that hold by construction, and checkpoints of the whole model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_vessels import small_vessels
from torch import Tensor, nn

from segcft_ext.checkpoints import load_model, save_model
from segcft_ext.dscm import DSCM
from segcft_ext.networks.hvae import Posterior

VARIABLES = [{"name": "left", "kind": "continuous"}, {"name": "right", "kind": "continuous"}]
HVAE = {"channels": (8, 8, 8), "strides": (2, 2), "blocks": (0, 1, 1), "latent_channels": 4}
DEFORMATION = {"channels": (8, 8), "hidden_channels": 8, "classes": 3, "areas": {"left": 1, "right": 2}}


def model(deformation: bool, conditional_prior: bool = False, parents: dict[str, list[str]] | None = None) -> DSCM:
    """A model whose weights are away from their start at zero, so that parents and action matter."""
    torch.manual_seed(0)
    dscm = DSCM(
        VARIABLES, parents, {**HVAE, "conditional_prior": conditional_prior}, DEFORMATION if deformation else None
    )
    dscm.variables.fit(torch.tensor([[5.0, 10.0], [15.0, 30.0], [12.0, 11.0]]), ["percent", "percent"])
    with torch.no_grad():
        for parameter in dscm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dscm.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(3, 1, 24, 24) * 1.8 - 0.9, torch.tensor([[6.0, 12.0], [9.0, 28.0], [14.0, 20.0]])


@pytest.mark.parametrize("deformation", [False, True])
@pytest.mark.parametrize("conditional_prior", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_composition_is_exact(deformation: bool, conditional_prior: bool, temperature: float) -> None:
    dscm, (image, values) = model(deformation, conditional_prior), batch()
    for do in ({}, {"left": values[:, 0]}):
        counterfactual = dscm.counterfactual(image, values, do, temperature)
        # To the last bit, unless the latents are rounded on their way through a conditional prior.
        torch.testing.assert_close(counterfactual.image, image, atol=1e-5 if conditional_prior else 0, rtol=0)
        assert torch.equal(counterfactual.values, values)


class KnownImage(nn.Module):
    """An image mechanism without latents, with a mean and a scale that are simple functions of the parents."""

    def decode(self, latents: list[Tensor], parents: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        mean, log_scale = (
            column.view(-1, 1, 1, 1).expand(-1, 1, *size) for column in (0.2 * parents[:, 0], 0.3 * parents[:, 1] - 1)
        )
        return mean, log_scale

    def posterior(self, image: Tensor, parents: Tensor, temperature: float, with_kl: bool) -> Posterior:
        return Posterior([], *self.decode([], parents, image.shape[2:]), image.new_zeros(len(image)))


def test_the_noise_of_the_image_is_kept_in_units_of_its_scale() -> None:
    dscm, (image, values) = model(False), batch()
    dscm.hvae = KnownImage()  # type: ignore[assignment]
    # Scaled by the ranges 5 … 15 and 10 … 30.
    before, after = torch.tensor([[-0.8, -0.8], [-0.2, 0.8], [0.8, 0.0]]), torch.tensor([0.6, -1.0, 0.0])
    mean, spread = 0.2 * before[:, 0], torch.exp(0.3 * before[:, 1] - 1)
    for name, mean_after, spread_after in (
        ("left", 0.2 * after, spread),
        ("right", mean, torch.exp(0.3 * after - 1)),
    ):
        do = {name: {"left": 10 + 5 * after, "right": 20 + 10 * after}[name]}
        expected = [
            ((x - m) / s * t + n).clamp(-1, 1) for x, m, s, n, t in zip(image, mean, spread, mean_after, spread_after)
        ]
        torch.testing.assert_close(dscm.counterfactual(image, values, do).image, torch.stack(expected))


@pytest.mark.parametrize("deformation", [False, True])
def test_an_action_changes_the_image_and_stays_in_range(deformation: bool) -> None:
    dscm, (image, values) = model(deformation), batch()
    counterfactual = dscm.counterfactual(image, values, {"left": 1.5 * values[:, 0]})
    assert (counterfactual.image - image).abs().max() > 1e-3
    assert counterfactual.image.abs().max() <= 1
    torch.testing.assert_close(counterfactual.values[:, 0], 1.5 * values[:, 0])
    assert (counterfactual.displacement is None) is not deformation


def test_descendants_follow_the_action() -> None:
    dscm, (image, values) = model(False, parents={"right": ["left"]}), batch()
    after = dscm.counterfactual(image, values, {"left": values[:, 0] + 3}).values
    assert (after[:, 1] != values[:, 1]).all()
    after = dscm.counterfactual(image, values, {"right": values[:, 1] + 3}).values
    assert torch.equal(after[:, 0], values[:, 0])


def test_a_fresh_deformation_head_changes_no_counterfactual() -> None:
    plain, (image, values) = model(False), batch()
    extended = plain.with_deformation(DEFORMATION).eval()
    do = {"right": values[:, 1].flip(0)}
    torch.testing.assert_close(
        extended.counterfactual(image, values, do).image, plain.counterfactual(image, values, do).image
    )


@pytest.mark.parametrize("deformation", [False, True])
def test_a_checkpoint_rebuilds_the_model(deformation: bool, tmp_path: Path) -> None:
    dscm, (image, values) = model(deformation, parents={"right": ["left"]}), batch()
    save_model(dscm, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", DSCM)
    do = {"left": values[:, 0].flip(0)}
    assert torch.equal(loaded.counterfactual(image, values, do).image, dscm.counterfactual(image, values, do).image)
    assert loaded.variables.units == ["percent", "percent"]
    assert loaded.scm.parents == {"left": [], "right": ["left"]}


def test_an_image_alone_is_reconstructed() -> None:
    image, _ = batch()
    dscm = model(True)
    made = [dscm(image) for _ in range(2)]
    assert torch.equal(*made) and made[0].shape == image.shape and made[0].abs().max() <= 1


def test_missing_variables_are_no_obstacle() -> None:
    dscm, (image, values) = model(True), batch()
    values[0, 1] = torch.nan
    counterfactual = dscm.counterfactual(image, values, {"left": 1.2 * values[:, 0]})
    assert torch.isfinite(counterfactual.image).all()
    assert counterfactual.values[0, 1].isnan()


def test_samples() -> None:
    images, values = model(False).sample(2, (24, 24))
    assert images.shape == (2, 1, 24, 24)
    assert values.shape == (2, 2)


def test_a_variable_to_be_painted_is_named_and_painted_in_all_its_channels() -> None:
    variables = [
        {"name": "side", "kind": "categorical", "num_categories": 3},
        {"name": "lumen_area", "kind": "continuous"},
        {"name": "plaque_area", "kind": "continuous", "zero_inflated": True},
    ]
    for painted, channels in ((["plaque_area"], [4]), (["side"], [0, 1, 2])):
        head = DSCM(variables, deformation={"channels": [4, 4], "painted": painted}).deformation
        assert head is not None and head.is_painted.nonzero()[:, 0].tolist() == channels
    with pytest.raises(ValueError, match="no variable 'plaque'"):
        DSCM(variables, deformation={"painted": ["plaque"]})


def test_the_band_of_a_variable_is_that_of_its_channels() -> None:
    variables = [
        {"name": "side", "kind": "categorical", "num_categories": 3},
        {"name": "plaque_area_mid", "kind": "continuous", "zero_inflated": True},
    ]
    head = DSCM(variables, deformation={"channels": [4, 4], "bands": {"plaque_area_mid": (0, 0.3, 0.6)}}).deformation
    assert head is not None and head.bands == {3: (0, 0.3, 0.6)}


def test_the_head_is_told_the_sizes_of_its_channels() -> None:
    variables = [
        {"name": "side", "kind": "categorical", "num_categories": 2},
        {"name": "lung", "kind": "continuous"},
        {"name": "lumen", "kind": "continuous"},
    ]
    dscm = DSCM(variables, hvae=HVAE, deformation={"channels": [4, 4], "classes": 2, "areas": {"lung": 1}}).eval()
    assert dscm.deformation is not None and dscm.deformation.areas == {2: 1}
    training = torch.tensor([[0.0, 10.0, 3.0], [1.0, 20.0, 4.0]])
    dscm.variables.fit(training, ["", "percent", "mm2"], [["F", "M"], [], []])
    told = []
    dscm.deformation.register_forward_pre_hook(lambda head, inputs: told.append(inputs[3]))
    dscm.counterfactual(
        torch.rand(1, 1, 16, 16), torch.tensor([[1.0, 12.0, torch.nan]]), {"lung": torch.tensor([15.0])}
    )
    (sizes,) = told
    torch.testing.assert_close(sizes.factual, torch.tensor([[1, 1, 12, torch.nan]]), equal_nan=True)
    torch.testing.assert_close(sizes.wanted, torch.tensor([[1, 1, 15, torch.nan]]), equal_nan=True)
    nan = torch.nan
    torch.testing.assert_close(sizes.whole, torch.tensor([[nan, nan, 100, nan]]), equal_nan=True)


@pytest.mark.parametrize("unit", ["percent", "mm2"])
def test_what_is_painted_is_told_for_each_variable_in_pixels_of_its_own_image(unit: str) -> None:
    variables = [
        {"name": "side", "kind": "categorical", "num_categories": 2},
        {"name": "lumen", "kind": "continuous"},
        {"name": "plaque", "kind": "continuous", "zero_inflated": True},
    ]
    deformation = {"channels": [4, 4], "classes": 3, "painted": ["plaque"], "areas": {"lumen": 1, "plaque": 2}}
    dscm = DSCM(variables, hvae=HVAE, deformation=deformation)
    training = torch.tensor([[0.0, 10.0, 0.0], [1.0, 20.0, 4.0], [1.0, 15.0, 2.0]])
    dscm.variables.fit(training, ["", unit, unit], [["F", "M"], [], []])
    head = dscm.deformation
    assert head is not None and head.anatomy is not None
    # A head that sees a quarter of every pixel as lumen, which is 16 mm² or 16 percent of 256 pixels.
    with torch.no_grad():
        head.anatomy.weight.mul_(0.01)
        head.anatomy.bias.copy_(torch.tensor([0.75, 0.25, 1e-6]).log())
    values = torch.tensor([[1.0, 16.0, 0.0], [0.0, 16.0, 3.0]])
    abduction = dscm.abduct(torch.rand(2, 1, 16, 16), values)
    wanted = values + torch.tensor([[0.0, 0.0, 2.0], [0.0, 4.0, 0.0]])
    gained = dscm.predict(abduction, wanted).gained
    assert gained is not None and gained.shape == (2, 3, 16, 16)
    assert not gained[:, :2].any() and not gained[1].any()
    pixels = 2 * 256 / 100 if unit == "percent" else 2 * 64 / 16
    assert gained[0, 2].sum().item() == pytest.approx(pixels, rel=0.05)


def test_a_point_mass_at_zero_is_not_passed_over(tmp_path: Path) -> None:
    datalist = small_vessels(tmp_path, training=12)
    name = "calcified_plaque_area"
    DSCM(datalist.definitions([name]), hvae=HVAE).fit(datalist)
    with pytest.raises(ValueError, match=rf'datalist\.json: variables\.{name}: zero .*, expected "zero_inflated"'):
        DSCM([{"name": name, "kind": "continuous"}], hvae=HVAE).fit(datalist)
