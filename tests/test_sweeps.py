"""Along a sweep a case keeps its exogenous noise: what follows from the swept variable appears once, and stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import Dataset, MetaTensor
from small_vessels import small_vessels
from torch import Tensor, nn

from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM, Abduction, Counterfactual
from segcft_ext.engines import CounterfactualEvaluator
from segcft_ext.evaluation.cases import Cases
from segcft_ext.evaluation.sweeps import sweep
from segcft_ext.handlers import DSCMFigures
from segcft_ext.measurements import RegionArea
from segcft_ext.mechanisms import Conditioner, ZeroInflatedMechanism
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.ruler import Ruler
from segcft_ext.scm import SCM

PARENT, CHILD = "lumen_area", "calcified_plaque_area"
HVAE = {"channels": (4, 4), "strides": (4,), "blocks": (0, 1), "latent_channels": 1}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Datalist:
    return small_vessels(tmp_path_factory.mktemp("vessels"), training=12)


@pytest.fixture(scope="module")
def dscm(datalist: Datalist) -> DSCM:
    """A model in which a larger lumen makes the plaque likelier and larger."""
    dscm = DSCM(datalist.definitions([PARENT, CHILD]), {CHILD: [PARENT]}, HVAE)
    dscm.fit(datalist)
    mechanism = dscm.scm.mechanisms[1]
    assert isinstance(mechanism, ZeroInflatedMechanism)
    for conditioner in (mechanism.presence.conditioner, mechanism.amount.conditioner):
        assert isinstance(conditioner, Conditioner) and conditioner.network is not None
        hidden, _, last = conditioner.network
        with torch.no_grad():
            hidden.weight.fill_(1)
            hidden.bias.fill_(1)
            last.weight[0] = 0.1
    return dscm.eval()


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The variables (K,) of each counterfactual that is made, one after the other."""
    found: list[Tensor] = []
    predict = DSCM.predict

    def noting(self: DSCM, abduction: Abduction, values: Tensor) -> Counterfactual:
        found.extend(values)
        return predict(self, abduction, values)

    monkeypatch.setattr(DSCM, "predict", noting)
    return found


def check(steps: list[Tensor], wanted: list[float]) -> None:
    """The parent rises as it is asked to, and the child with it; two steps alike have the same child."""
    parent, child = torch.stack(steps).T
    torch.testing.assert_close(parent, torch.tensor(wanted))
    assert (child.diff() >= 0).all()
    assert child[-1] > 0 and child[-1] == child[-2]


def targets(dscm: DSCM) -> list[float]:
    low, high = (float(limit[0]) for limit in (dscm.variables.low, dscm.variables.high))
    return [*torch.linspace(low, high, 7).tolist(), high]


def test_inference(dscm: DSCM, datalist: Datalist, predicted: list[Tensor]) -> None:
    image = MetaTensor(torch.zeros(1, 1, *datalist.size))
    wanted = targets(dscm)
    given = {PARENT: wanted[0], CHILD: 0}
    engine = CounterfactualEvaluator("cpu", [{"image": image}], dscm, {PARENT: wanted}, given)
    engine.run()
    check(predicted, wanted)


class Bright(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-image, image], dim=1)


def test_after_an_action_the_regions_are_those_of_the_image_before(dscm: DSCM, monkeypatch: pytest.MonkeyPatch) -> None:
    image, grown = torch.full((2, 1, 1, 32, 8), -1.0)
    image[..., 8:24, :], grown[..., 4:24, :] = 1, 1
    monkeypatch.setattr(DSCM, "predict", lambda self, abduction, wanted: Counterfactual(grown, wanted))
    low = float(dscm.variables.low[0])
    engine = CounterfactualEvaluator("cpu", [], dscm, {PARENT: low}, {PARENT: low, CHILD: 0})
    engine.ruler = Ruler(Bright(), {PARENT: RegionArea(1, 0, 0.0, 0.5, of="structure")}, num_classes=2)
    measured = engine._counterfactuals(image, None)["measured"]
    torch.testing.assert_close(measured, torch.tensor([[[100 * 8 / 32], [100 * 12 / 32]]]))


def test_uncertainty_is_the_standard_deviation_over_sampled_latents(
    dscm: DSCM, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []

    def abduct(self: DSCM, image: Tensor, values: Tensor, temperature: float = 0.0) -> Tensor:
        drawn.append(temperature * torch.randn(()))
        return drawn[-1]

    def predict(self: DSCM, noise: Tensor, values: Tensor) -> Counterfactual:
        return Counterfactual((noise * values[:, 0]).view(1, 1, 1, 1).expand(1, 1, 4, 4), values)

    monkeypatch.setattr(DSCM, "abduct", abduct)
    monkeypatch.setattr(DSCM, "predict", predict)
    engine = CounterfactualEvaluator("cpu", [], dscm, {PARENT: [1, 2]}, particles=5)
    image, targets = torch.zeros(1, 1, 4, 4), torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])
    found = engine._uncertainty(image, targets[:, 0], targets, seed=3)
    spread = torch.stack(drawn).std()
    assert len(drawn) == 5 and spread > 0.1
    torch.testing.assert_close(found, (spread * torch.tensor([1.0, 2.0])).view(1, 2, 1, 1).expand(1, 2, 4, 4))
    torch.manual_seed(0)
    assert torch.equal(engine._uncertainty(image, targets[:, 0], targets, seed=3), found)


@pytest.mark.parametrize(("child", "told"), [(-1.5, True), (1e3, True), (0.0, False)])
def test_what_follows_from_an_intervention_is_told_where_no_case_had_it(
    dscm: DSCM,
    datalist: Datalist,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    child: float,
    told: bool,
) -> None:
    def follow(self: SCM, values: Tensor, do: dict[str, Tensor], noise: torch.Generator) -> Tensor:
        return torch.stack([do[PARENT], torch.full_like(do[PARENT], child)], dim=1)

    monkeypatch.setattr(SCM, "counterfactual", follow)
    low, high = (float(limit[0]) for limit in (dscm.variables.low, dscm.variables.high))
    image = MetaTensor(torch.zeros(1, 1, *datalist.size))
    given = {PARENT: low, CHILD: 0.5}
    CounterfactualEvaluator("cpu", [{"image": image}], dscm, {PARENT: [low, high]}, given).run()
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == told
    assert all(f"{CHILD!r}, which follows from the intervention: value {child:.4g}, but it is" in line for line in said)


def test_sweeps_of_an_evaluation(dscm: DSCM, datalist: Datalist, predicted: list[Tensor]) -> None:
    wanted = targets(dscm)
    measurements = datalist.measurements()
    judge = Ruler(Segmentor(datalist.labels, "UNet", channels=(4, 4), strides=(2,)), measurements, datalist.num_classes)
    image = torch.zeros(1, 1, *datalist.size)
    case = Cases(
        ids=["one"],
        image=image,
        label=image.long(),
        spacing=torch.ones(1, 2),
        values=torch.tensor([[wanted[0], 0.0]]),
        variables=[PARENT, CHILD],
        before=torch.zeros(1, len(measurements)),
        measured=list(measurements),
    )
    before = torch.get_rng_state()
    panels = sweep(dscm, judge, case, PARENT, wanted, "mm2")
    check(predicted, wanted)
    assert len(panels) == len(wanted) and (panels[-1].image == panels[-2].image).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_figures_of_a_training(
    dscm: DSCM, datalist: Datalist, predicted: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0)
    monkeypatch.setattr("segcft_ext.handlers.dscm_figures.LEVELS", levels)
    items = [
        {
            "image": torch.zeros(1, *datalist.size),
            "label": torch.zeros(1, *datalist.size),
            "variables": torch.tensor([targets(dscm)[0], 0.0]),
            "spacing": torch.ones(2),
        }
    ]

    def prepare(batch: dict[str, Tensor], device: torch.device, non_blocking: bool = False) -> tuple[Tensor, Tensor]:
        return batch["image"], batch["variables"]

    figures = DSCMFigures(dscm, Dataset(items), prepare, datalist, tmp_path, cases=1, reconstructions=0, samples=0)
    (drawn,) = (figure for _, figure in figures.figures(torch.device("cpu"), 1))
    said = [text.get_text() for text in drawn.axes[0].texts]
    assert any(text.endswith(" mm²") for text in said) and not any("mm2" in text for text in said)
    check(predicted[: len(levels)], torch.quantile(dscm.variables.quantiles[0], torch.tensor(levels)).tolist())
