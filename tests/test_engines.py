"""Pretraining and fine-tuning on a problem of a second: what they learn, what they leave alone, how they resume."""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import discs
import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.handlers import ValidationHandler, from_engine
from small_chests import small_chests
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segcft_ext.augmentation import BatchAugmentation
from segcft_ext.batches import PrepareVariables
from segcft_ext.checkpoints import CheckpointError, load_model, save_model
from segcft_ext.compatibility import check_compatible
from segcft_ext.constraint import Lagrangian
from segcft_ext.dscm import DSCM, Abduction, Counterfactual, pretrained
from segcft_ext.engines import CFTEvaluator, CFTTrainer, DSCMEvaluator, DSCMTrainer
from segcft_ext.engines.case_evaluator import CaseEvaluator
from segcft_ext.guides import Guide, GuidePrediction, SegmentorGuide, load_guide, prepare_fine_tuning
from segcft_ext.handlers import EpochSeed, ModelSaver, TrainingCheckpoint, WeightAverage, warmed_up_average
from segcft_ext.measurements import Area
from segcft_ext.networks.deformation import DeformationHead
from segcft_ext.networks.regressor import Regressor
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.objective import CFTObjective, CFTTerms

NAMES = ["left", "right"]
VARIABLES = [{"name": name, "kind": "continuous"} for name in NAMES]
HVAE = {"channels": (8, 8, 8), "strides": (4, 4), "blocks": (0, 1, 1), "latent_channels": 2}
HEAD = {"channels": (8, 8), "hidden_channels": 8, "grid_stage": 1}


class Killed(BaseException):
    """Stands for the process being killed: nothing of the training may catch it."""


def cases(count: int = 8) -> list[dict[str, Tensor]]:
    """Two bright blocks, whose areas in percent are the variables."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        left, right = (int(torch.randint(3, 9, (), generator=generator)) for _ in NAMES)
        image = torch.full((1, 16, 16), -0.6) + 0.05 * torch.randn(1, 16, 16, generator=generator)
        image[:, 4 : 4 + left, 9:14] = 0.6
        image[:, 4 : 4 + right, 2:7] = 0.4
        found.append({"image": image.clamp(-1, 1), "variables": 100 * torch.tensor([left * 5.0, right * 5.0]) / 256})
    return found


def prepare(batch: dict[str, Tensor], device: Any, non_blocking: bool = False) -> tuple[Tensor, Tensor, None, None]:
    return batch["image"], batch["variables"], None, None


def untrained(deformation: bool = False) -> DSCM:
    torch.manual_seed(0)
    dscm = DSCM(VARIABLES, hvae=HVAE, deformation=HEAD if deformation else None)
    dscm.variables.fit(torch.stack([case["variables"] for case in cases()]), ["percent", "percent"])
    return dscm


def at_the_posterior_mean(dscm: DSCM) -> None:
    """Leave nothing to chance: all latents are those of temperature zero."""
    posterior = dscm.hvae.posterior
    dscm.hvae.posterior = lambda image, parents, *_, **__: posterior(image, parents, 0.0)  # type: ignore[method-assign]


def guide() -> SegmentorGuide:
    """A segmentor with batch norm that sees the blocks by their brightness, softly enough to have a gradient."""
    torch.manual_seed(0)
    segmentor = nn.Sequential(nn.BatchNorm2d(1), _Brightness())
    return SegmentorGuide(segmentor, {"left": Area(1), "right": Area(2)})


class _Brightness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(8.0))

    def forward(self, image: Tensor) -> Tensor:
        bright = self.gain * image
        half = torch.arange(image.shape[3]) >= image.shape[3] // 2
        return torch.cat([torch.zeros_like(image), bright - 20.0 * ~half, bright - 20.0 * half], dim=1)


class Training:
    """A training with the handlers that the bundles give it."""

    def __init__(
        self,
        folder: Path,
        dscm: DSCM,
        guide: Guide | None = None,
        fine_tuning: bool = True,
        epochs: int = 3,
        resume: bool = False,
        handlers: Sequence[Any] = (),
        **arguments: Any,
    ) -> None:
        self.folder = folder
        self.dscm = dscm
        self.average = AveragedModel(dscm, multi_avg_fn=warmed_up_average())
        self.lagrangian = Lagrangian()
        groups: Any = dscm.parameter_groups(head=1e-2, hvae=5e-3) if fine_tuning else dscm.parameters()
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2)
        evaluation = {
            "device": "cpu",
            "val_data_loader": DataLoader(cases(4), batch_size=3),
            "network": self.average,
            "prepare_batch": prepare,
        }
        self.validator: Any = CFTEvaluator(guide, **evaluation) if fine_tuning else DSCMEvaluator(**evaluation)
        objects = {
            "network": dscm,
            "average": self.average,
            "optimizer": self.optimizer,
            "lagrangian": self.lagrangian,
            "validator": self.validator,
        }
        common = {
            "device": "cpu",
            "max_epochs": epochs,
            "train_data_loader": DataLoader(cases(), batch_size=4, shuffle=True),
            "network": dscm,
            "optimizer": self.optimizer,
            "prepare_batch": prepare,
            "train_handlers": [
                EpochSeed(0),
                WeightAverage(dscm, self.average),
                ValidationHandler(interval=2, validator=self.validator),
                ModelSaver(self.average.module, folder / "model.pt"),
                TrainingCheckpoint(folder / "training.pt", objects, resume),
                *handlers,
            ],
            **arguments,
        }
        self.trainer: Any
        if fine_tuning:
            self.trainer = CFTTrainer(guide=guide, objective=CFTObjective(), lagrangian=self.lagrangian, **common)
        else:
            self.trainer = DSCMTrainer(**common)
        self.outputs: list[dict[str, float]] = []
        self.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: self.outputs.append(engine.state.output[0])
        )

    def run(self) -> Training:
        self.trainer.run()
        return self

    def kill_at(self, iteration: int) -> None:
        def kill() -> None:
            raise Killed

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), kill)
        with pytest.raises(Killed):
            self.trainer.run()

    def mean(self, name: str, outputs: slice) -> float:
        return sum(output[name] for output in self.outputs[outputs]) / len(self.outputs[outputs])


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers, without the descriptions."""
    state = module.state_dict()
    return {name: value.clone() for name, value in state.items() if not name.endswith("_extra_state")}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_pretraining_lowers_both_parts_of_the_loss(tmp_path: Path) -> None:
    training = Training(tmp_path, untrained(), fine_tuning=False, epochs=20).run()
    first, last = slice(0, 4), slice(-4, None)
    assert training.mean("negative_elbo", last) < training.mean("negative_elbo", first) - 0.3
    assert training.mean("mechanisms", last) < training.mean("mechanisms", first)
    assert from_engine(["loss"], first=True)(training.trainer.state.output) == training.outputs[-1]["loss"]
    metrics = training.validator.state.metrics
    assert metrics.keys() == {"negative_elbo", "kl", "mechanisms"}
    assert training.validator.state.best_metric <= metrics["negative_elbo"]


def test_the_mechanisms_learn_of_the_population_and_not_of_the_augmentation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    areas = discs.NAMES[:2]
    values = torch.tensor([7.0, 7.0]) * (1 + 0.1 * torch.randn(400, 2))  # in percent, independent
    image, label = discs.render(values)
    items = [
        {"image": i, "label": m.float(), "variables": v, "spacing": torch.full((2,), torch.nan)}
        for i, m, v in zip(image, label, values)
    ]
    augmentation = BatchAugmentation(rotation=0, scaling=0.3, elastic=0, probability=1)
    preparation = PrepareVariables(discs.disc_datalist(tmp_path), areas, augmentation)
    augmented = preparation(next(iter(DataLoader(items, batch_size=400))))[1]
    assert torch.corrcoef(augmented.T)[0, 1] > 0.7 and torch.corrcoef(values.T)[0, 1].abs() < 0.1

    small = {**HVAE, "channels": (1, 1, 1), "latent_channels": 1}
    dscm = DSCM([{"name": name, "kind": "continuous"} for name in areas], {areas[1]: areas[:1]}, hvae=small)
    dscm.hvae.requires_grad_(False)
    dscm.variables.fit(values, ["percent", "percent"])
    DSCMTrainer(
        device="cpu",
        max_epochs=20,
        train_data_loader=DataLoader(items, batch_size=80, shuffle=True),
        network=dscm,
        optimizer=torch.optim.Adam(dscm.scm.parameters(), lr=2e-2),
        prepare_batch=preparation,
    ).run()
    sampled = dscm.scm.sample(4000, torch.Generator().manual_seed(0))
    assert torch.corrcoef(sampled.T)[0, 1].abs() < 0.2
    torch.testing.assert_close(sampled.std(0), values.std(0), rtol=0.15, atol=0)


@pytest.mark.parametrize("deformation", [False, True])
def test_fine_tuning_lowers_the_distance_to_the_target(tmp_path: Path, deformation: bool) -> None:
    dscm = untrained(deformation).select_trained(hvae=not deformation)
    training = Training(tmp_path, dscm, guide(), epochs=25)
    reached: list[float] = []  # on the same interventions each time
    training.validator.add_event_handler(
        Events.COMPLETED, lambda engine: reached.append(engine.state.metrics["effectiveness"])
    )
    training.run()
    assert reached[-1] < 0.8 * reached[0]
    assert ("lambda" in training.outputs[0]) == (not deformation)
    assert ("bound" in training.outputs[0]) == (not deformation)


def test_the_guide_stays_as_it_is_and_out_of_the_step(tmp_path: Path) -> None:
    frozen, dscm = guide(), untrained(deformation=True).select_trained(hvae=True)
    before, mechanisms = tensors(frozen), tensors(dscm.scm)
    training = Training(tmp_path, dscm, frozen, clip_gradient_norm=1e9).run()
    assert_equal(tensors(frozen), before)  # batch norm's running statistics too
    assert_equal(tensors(dscm.scm), mechanisms)
    stepped = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert not stepped & {id(p) for p in itertools.chain(frozen.parameters(), dscm.scm.parameters())}
    assert all(p.grad is None for p in itertools.chain(frozen.parameters(), dscm.scm.parameters()))
    trained = [p.grad.norm() for p in itertools.chain(dscm.hvae.parameters(), dscm.deformation.parameters())]  # type: ignore[union-attr]
    assert training.outputs[-1]["gradient_norm"] == pytest.approx(float(torch.stack(trained).norm()), rel=1e-4)


def test_a_fixed_hvae_keeps_its_weights_and_has_no_place_in_the_optimizer(tmp_path: Path) -> None:
    dscm = untrained(deformation=True).select_trained(hvae=False)
    before = tensors(dscm.hvae)
    training = Training(tmp_path, dscm, guide()).run()
    assert_equal(tensors(dscm.hvae), before)
    assert_equal(tensors(load_model(tmp_path / "model.pt", DSCM).hvae), before)  # averaging equal weights is exact
    assert [len(group["params"]) for group in training.optimizer.param_groups] == [
        len(list(dscm.deformation.parameters()))  # type: ignore[union-attr]
    ]
    assert "negative_elbo" not in training.outputs[0]


def test_head_and_hvae_have_learning_rates_of_their_own_and_the_mechanisms_none() -> None:
    dscm = untrained(deformation=True).select_trained(hvae=True)
    assert dscm.deformation is not None
    rates = {p: group["lr"] for group in dscm.parameter_groups(head=1e-2, hvae=5e-3) for p in group["params"]}
    assert {rates[p] for p in dscm.deformation.parameters()} == {1e-2}
    assert {rates[p] for p in dscm.hvae.parameters()} == {5e-3}
    assert not any(p.requires_grad or p in rates for p in dscm.scm.parameters())


def test_the_negative_elbo_is_that_of_sampled_latents(tmp_path: Path) -> None:
    def bound(seed: int) -> float:
        training = Training(tmp_path, untrained(), guide(), epochs=1)
        torch.manual_seed(seed)  # what is drawn before the first epoch, which seeds itself, are the bound's latents
        return training.run().outputs[0]["bound"]

    assert bound(1) == bound(1) and abs(bound(1) - bound(2)) > 1e-2

    dscm = untrained()
    evaluator = CFTEvaluator(
        guide(), device="cpu", val_data_loader=DataLoader(cases(4)), network=dscm, prepare_batch=prepare
    )
    evaluator.run()
    found = dict(evaluator.state.metrics)
    torch.manual_seed(9)  # all epochs are compared on the same draws
    evaluator.run()
    assert evaluator.state.metrics == found
    image, values = (torch.stack([case[key] for case in cases(4)]) for key in ("image", "variables"))
    with torch.no_grad():
        at_mean = dscm.hvae.negative_elbo(image, dscm.hvae.posterior(image, dscm.variables.encode(values), 0)).mean()
    assert abs(evaluator.state.metrics["negative_elbo"] - at_mean) > 0.1


@pytest.mark.parametrize("trained", [False, True])
def test_counterfactuals_have_sampled_latents_only_where_the_hvae_is_trained(tmp_path: Path, trained: bool) -> None:
    dscm = untrained(deformation=True).select_trained(hvae=trained)
    training, abduct, seen = Training(tmp_path, dscm, guide(), epochs=1), dscm.abduct, []

    def noted(image: Tensor, values: Tensor, temperature: float = 0.0) -> Abduction:
        seen.append(temperature)
        return abduct(image, values, temperature)

    dscm.abduct = noted  # type: ignore[method-assign]
    training.run()
    assert seen == [float(trained)] * len(training.outputs)


def test_the_objective_is_told_how_far_the_training_is_and_where_structures_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    total = CFTObjective.total

    def noted(self: CFTObjective, terms: CFTTerms, progress: float = 1.0) -> Tensor:
        told.append(progress)
        return total(self, terms, progress)

    monkeypatch.setattr(CFTObjective, "total", noted)
    dscm, growth = untrained(deformation=True).select_trained(hvae=False), torch.rand(2, 16, 16)
    training = Training(tmp_path, dscm, guide(), epochs=1, growth=growth).run()
    assert told == [0, 0.5] and training.outputs[0]["growth"] > 0
    assert Training(tmp_path, dscm, guide(), epochs=1).run().outputs[0]["growth"] == 0


def test_a_step_is_made_in_train_mode_and_is_no_longer_than_allowed() -> None:
    dscm = untrained().eval()
    at_the_posterior_mean(dscm)
    before = [p.detach().clone() for p in dscm.parameters()]
    trainer = DSCMTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader(cases(), batch_size=8),
        network=dscm,
        optimizer=torch.optim.SGD(dscm.parameters(), lr=0.1),
        prepare_batch=prepare,
        clip_gradient_norm=0.5,
    )
    trainer.run()
    moved = torch.stack([(p - old).norm() for p, old in zip(dscm.parameters(), before)]).norm()
    assert dscm.training and trainer.state.output[0]["gradient_norm"] > 0.5
    assert moved.item() == pytest.approx(0.1 * 0.5, rel=1e-3)


def test_the_bound_is_the_mean_over_cases_however_they_are_batched(tmp_path: Path) -> None:
    batch = cases(5)
    batch[4]["image"] = -batch[4]["image"]  # far more surprising than the others
    dscm = untrained()
    at_the_posterior_mean(dscm)
    image, values = (torch.stack([case[key] for case in batch]) for key in ("image", "variables"))
    with torch.no_grad():
        each = dscm.negative_elbo(image, values)
    assert (each[4] - each[:4].mean()).abs() > 0.1
    training = Training(tmp_path, dscm, guide(), epochs=1, train_data_loader=DataLoader(batch, batch_size=4)).run()
    assert training.outputs[0]["bound"] == pytest.approx(float(each.mean()) + training.lagrangian.slack, rel=1e-5)


class Scripted(CaseEvaluator):
    """Finds what it is told."""

    def __init__(self, found: list[list[float]], saver: ModelSaver) -> None:
        super().__init__(
            "cpu",
            [{}],
            untrained(),
            prepare_batch=lambda batch, device, non_blocking: (torch.zeros(1),) * 4,
            names=["negative_elbo", "drift"],
            val_handlers=[saver],
        )
        self.found = iter(found)

    def figures(self, *batch: Any) -> dict[str, torch.Tensor]:
        found = torch.tensor(next(self.found))
        return {"negative_elbo": found, "drift": found}


@pytest.mark.parametrize(
    ("found", "saved"),
    [
        ([[2.0, 2.0], [math.nan, 1.0], [1.0, 1.0]], [1, 3]),
        ([[math.nan, math.nan], [3.0, 3.0], [4.0, 4.0], [2.0, 2.0]], [1, 2, 4]),
        ([[math.nan, 1.0], [math.nan, math.nan], [9.0, 9.0], [math.nan, 1.0]], [1, 2, 3]),
    ],
)
def test_a_model_that_fails_on_a_case_is_worse_than_any_that_does_not(
    found: list[list[float]], saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    monkeypatch.setattr(
        "segcft_ext.handlers.model_saver.save_model", lambda model, path: epochs.append(validator.state.epoch)
    )
    validator = Scripted(found, ModelSaver(torch.nn.Identity(), tmp_path / "model.pt"))
    for epoch, figures in enumerate(found, 1):
        validator.run(epoch)
        drift = [figure for figure in figures if not math.isnan(figure)]
        if drift:
            assert validator.state.metrics["drift"] == pytest.approx(sum(drift) / len(drift))
    assert epochs == saved


@pytest.mark.parametrize("fine_tuning", [False, True])
def test_what_is_logged_is_read_after_the_step_and_is_what_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fine_tuning: bool
) -> None:
    training = Training(tmp_path, untrained(), guide() if fine_tuning else None, fine_tuning, epochs=1)
    trainer, used, early = training.trainer, [], []
    before_the_step = False

    def start() -> None:
        nonlocal before_the_step
        before_the_step = True

    def step(loss: Tensor, step: Any = trainer.guarded_step) -> float:
        nonlocal before_the_step
        before_the_step = False
        used.append({"loss": float(loss.detach()), "lambda": float(training.lagrangian.multiplier)})
        return step(loss)

    def reading(name: str) -> Any:
        read = getattr(Tensor, name)

        def noted(tensor: Tensor) -> Any:
            if before_the_step:
                early.append(name)
            return read(tensor)

        return noted

    trainer.add_event_handler(Events.ITERATION_STARTED, start)
    trainer.guarded_step = step
    for name in ("item", "tolist", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, reading(name))
    training.run()
    assert early == []
    assert [output["loss"] for output in training.outputs] == [step["loss"] for step in used]
    if fine_tuning:
        assert [output["lambda"] for output in training.outputs] == [step["lambda"] for step in used]
        assert used[0]["lambda"] != used[1]["lambda"]


def test_the_multiplier_lives_where_the_network_does() -> None:
    trainer = CFTTrainer(
        guide=None,
        objective=CFTObjective(),
        lagrangian=(lagrangian := Lagrangian()),
        device=torch.device("meta"),
        max_epochs=1,
        train_data_loader=DataLoader(cases()),
        network=(dscm := untrained().to("meta")),
        optimizer=torch.optim.AdamW(dscm.parameters()),
        prepare_batch=prepare,
    )
    assert trainer.lagrangian is lagrangian and lagrangian.multiplier.is_meta and lagrangian.bound.is_meta


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        untrained().select_trained(hvae=False).parameter_groups(head=1e-3, hvae=1e-4)


@pytest.mark.parametrize(("fine_tuning", "deformation"), [(False, False), (True, False), (True, True)])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, fine_tuning: bool, deformation: bool) -> None:
    dscm = untrained(deformation)
    if fine_tuning:
        dscm.select_trained(hvae=True)
    calls = itertools.count()

    def spoiled(batch: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Tensor, None, None]:
        image, values, *_ = prepare(batch, *arguments)
        return (image * torch.nan if next(calls) == bad else image), values, None, None

    bad = 3 if fine_tuning else 1  # the bound takes the first two batches
    training = Training(tmp_path, dscm, guide() if fine_tuning else None, fine_tuning, epochs=1, prepare_batch=spoiled)
    weights: list[dict[str, Tensor]] = []
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: weights.append(tensors(dscm)))
    training.run()
    assert training.trainer.state.metrics["skipped_steps"] == 1
    assert_equal(weights[1], weights[0])
    assert training.lagrangian.multiplier.isfinite()


@pytest.mark.parametrize("stage", ["pretraining", "hvae", "head"])
@pytest.mark.parametrize("iteration", [3, 4, 5])
def test_killed_and_resumed_ends_like_uninterrupted(tmp_path: Path, stage: str, iteration: int) -> None:
    def make(folder: Path, resume: bool = False) -> Training:
        dscm = untrained(stage == "head")
        if stage == "pretraining":
            return Training(folder, dscm, fine_tuning=False, resume=resume)
        return Training(folder, dscm.select_trained(hvae=stage == "hvae"), guide(), resume=resume)

    straight = make(tmp_path / "straight").run()
    make(tmp_path / "killed").kill_at(iteration)
    resumed = make(tmp_path / "killed", resume=True).run()
    assert_equal(tensors(resumed.average.module), tensors(straight.average.module))
    assert_equal(tensors(resumed.dscm), tensors(straight.dscm))
    for name, value in straight.lagrangian.state_dict().items():
        assert torch.equal(resumed.lagrangian.state_dict()[name], value) or value.isnan()
    assert resumed.lagrangian.bounded == (stage == "hvae")
    assert resumed.trainer.state.metrics == straight.trainer.state.metrics
    assert resumed.validator.state.metrics == straight.validator.state.metrics


def test_no_cft_is_the_pretrained_model_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dscm = untrained().select_trained(hvae=True)
    before = tensors(dscm)
    training = Training(tmp_path, dscm, guide=None).run()
    assert training.outputs == []
    assert_equal(tensors(load_model(tmp_path / "model.pt", DSCM)), before)
    assert "no guide: No-CFT, nothing is trained" in caplog.text


class Witness(SegmentorGuide):
    """A guide that remembers which label map its regions were those of."""

    references: Any = ()

    def forward(self, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None) -> Any:
        self.references = [*self.references, reference]
        return super().forward(image, spacing, reference)


def test_regions_are_those_of_the_factual_label_map(tmp_path: Path) -> None:
    plain = guide()
    witness = Witness(plain.network, plain.measurements)
    factual = torch.rand(1, 3, 16, 16)

    def labelled(batch: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, Tensor, None, Tensor]:
        return batch["image"], batch["variables"], None, factual.expand(len(batch["image"]), -1, -1, -1)

    dscm = untrained(deformation=True).select_trained(hvae=False)
    training = Training(tmp_path, dscm, witness, epochs=1, prepare_batch=labelled)
    training.run()
    assert sum(r is not None and torch.equal(r[:1], factual) for r in witness.references) >= 2 * len(training.outputs)
    evaluator = CFTEvaluator(
        guide=witness, device="cpu", val_data_loader=DataLoader(cases(4)), network=dscm, prepare_batch=labelled
    )
    witness.references = []
    evaluator.run()
    assert len(witness.references) == 4 * (1 + 3 * len(NAMES))
    assert all(torch.equal(reference, factual) for reference in witness.references)


def test_an_evaluation_without_a_guide_says_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    data = {"device": "cpu", "val_data_loader": DataLoader(cases(4)), "network": untrained(), "prepare_batch": prepare}
    CFTEvaluator(guide(), **data)
    assert "no guide" not in caplog.text
    CFTEvaluator(None, **data)
    assert "no guide: only the negative ELBO is evaluated; effectiveness, drift" in caplog.text


def test_validation_of_a_fresh_head_is_that_of_doing_nothing() -> None:
    dscm, seer, batch = untrained(deformation=True), guide(), cases(4)
    evaluator = CFTEvaluator(
        guide=seer, device="cpu", val_data_loader=DataLoader(batch, batch_size=3), network=dscm, prepare_batch=prepare
    )
    dscm.select_trained(hvae=False)
    for parameter in dscm.hvae.parameters():
        nn.init.zeros_(parameter)  # an HVAE that does not listen to the variables
    evaluator.run()
    metrics = evaluator.state.metrics
    seen = seer(torch.stack([case["image"] for case in batch])).values
    for j, name in enumerate(NAMES):
        targets = dscm.variables.quantiles[j, [10, 50, 90]]
        wanted = (100 * (seen[:, j, None] - targets).abs() / targets).mean()
        assert metrics[f"effectiveness_{name}"] == pytest.approx(float(wanted), rel=1e-4)
        assert metrics[f"drift_{name}"] == pytest.approx(0, abs=1e-3)
    assert metrics["folding"] == 0
    assert evaluator.state.best_metric == metrics["effectiveness"]


@torch.no_grad()
def test_validation_of_the_pretraining_is_in_nats_by_dimension_and_by_case(tmp_path: Path) -> None:
    dscm = untrained()
    for parameter in dscm.hvae.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    at_the_posterior_mean(dscm)
    data = {"device": "cpu", "val_data_loader": DataLoader(cases(4)), "prepare_batch": prepare}
    image, values = (torch.stack([case[key] for case in cases(4)]) for key in ("image", "variables"))
    found = DSCMEvaluator(network=dscm, **data).figures(image, values, None, None)
    kl = dscm.hvae.posterior(image, dscm.variables.encode(values)).kl
    assert (kl > 0.1).all()
    torch.testing.assert_close(found["kl"], kl / 16**2)
    torch.testing.assert_close(found["mechanisms"], -dscm.scm.log_prob(values).sum(1))
    training = Training(tmp_path, dscm, fine_tuning=False, train_data_loader=DataLoader(cases(4), batch_size=4))
    assert float(training.trainer._terms(image, values, values)["kl"]) == pytest.approx(float(kl.mean()) / 16**2)


class Reader(Guide):
    """Reads variables from the first pixels, in tens."""

    def __init__(self, names: Sequence[str] = ("left", "plaque")) -> None:
        super().__init__()
        self.names = list(names)

    def forward(self, image: Tensor, spacing: Tensor | None = None, reference: Tensor | None = None) -> GuidePrediction:
        return GuidePrediction(10 * image[:, 0, 0, : len(self.names)], image)


def test_validation_is_in_percent_of_the_target_or_of_the_mean_of_what_may_be_zero() -> None:
    dscm = DSCM(
        [{"name": "left", "kind": "continuous"}, {"name": "plaque", "kind": "continuous", "zero_inflated": True}],
        hvae=HVAE,
    )
    training = torch.stack([torch.linspace(10, 20, 101), torch.linspace(-10, 10, 101).clamp(min=0)], 1)
    dscm.variables.fit(training, ["mm2", "mm2"])
    values = torch.tensor([[12.0, 0.0], [16.0, 4.0]])
    image = torch.zeros(2, 1, 16, 16)
    image[:, 0, 0, :2] = (values + torch.tensor([0.5, 0.0])) / 10  # it sees half too much of left

    def predict(abduction: Abduction, wanted: Tensor) -> Counterfactual:
        """Left always becomes one too large, and drags a tenth of its change along; plaque is missed by 0.2."""
        change = wanted - values
        made = image.clone()
        made[:, 0, 0, 0] = (wanted[:, 0] + 1) / 10
        made[:, 0, 0, 1] = (wanted[:, 1] + 0.1 * change[:, 0] + 0.2 * (change[:, 1] != 0)) / 10
        return Counterfactual(made, wanted)

    dscm.predict = predict  # type: ignore[method-assign]
    evaluator = CFTEvaluator(
        Reader(), device="cpu", val_data_loader=DataLoader([{}]), network=dscm, prepare_batch=prepare
    )
    found = evaluator.figures(image, values, None, None)
    mean = training[:, 1].mean()
    lefts = torch.tensor([11.0, 15.0, 19.0])
    torch.testing.assert_close(found["effectiveness_left"], (100 / lefts).mean().expand(2))
    torch.testing.assert_close(found["drift_left"], (10 * (lefts - values[:, :1]).abs() / mean).mean(1))
    # Plaque is set to nothing, which is no change for the first case, and to two quantiles of what is positive.
    torch.testing.assert_close(found["effectiveness_plaque"], torch.tensor([2 / 3, 1]) * 100 * 0.2 / mean)
    torch.testing.assert_close(found["drift_plaque"], 100 * 0.5 / torch.tensor([12.5, 16.5]))
    torch.testing.assert_close(
        found["effectiveness"], (found["effectiveness_left"] + found["effectiveness_plaque"]) / 2
    )


def test_drift_is_the_mean_over_the_other_variables_and_folding_a_percentage() -> None:
    names = ["a", "b", "c"]
    dscm = DSCM([{"name": name, "kind": "continuous"} for name in names], hvae=HVAE)
    dscm.variables.fit(torch.tensor([[10.0] * 3, [20.0] * 3]), ["mm2"] * 3)
    values, image, displacement = (
        torch.tensor([[10.0, 10.0, 20.0]]),
        torch.zeros(1, 1, 16, 16),
        torch.zeros(1, 2, 16, 16),
    )
    image[:, 0, 0, :3] = values / 10
    displacement[:, 1, :, 8:] = -2 * torch.arange(8.0)  # mirrored in 7 of 15 cells

    def predict(abduction: Abduction, wanted: Tensor) -> Counterfactual:
        """What is to stay as it is drifts by 1, 2 or 4."""
        made = image.clone()
        made[:, 0, 0, :3] = (wanted + torch.tensor([1.0, 2.0, 4.0]) * (wanted == values)) / 10
        return Counterfactual(made, wanted, displacement)

    dscm.predict = predict  # type: ignore[method-assign]
    evaluator = CFTEvaluator(
        Reader(names), device="cpu", val_data_loader=DataLoader([{}]), network=dscm, prepare_batch=prepare
    )
    found = {name: float(value.detach()) for name, value in evaluator.figures(image, values, None, None).items()}
    assert [found[f"drift_{name}"] for name in names] == pytest.approx([20, 15, 15], rel=1e-4)
    assert found["effectiveness"] == pytest.approx(0, abs=1e-3) and found["folding"] == pytest.approx(100 * 7 / 15)


def test_guided_variables_must_be_the_models(tmp_path: Path) -> None:
    stranger = SegmentorGuide(nn.Identity(), {"spleen": Area(1)})
    with pytest.raises(ValueError, match=r"no variable 'spleen'.*left"):
        Training(tmp_path, untrained(), stranger)


@pytest.mark.parametrize("fine_tuning", [False, True])
def test_distributed_training_of_one_process_is_the_plain_one(tmp_path: Path, fine_tuning: bool) -> None:
    def train(folder: Path, distributed: bool) -> dict[str, Tensor]:
        dscm = untrained()
        if fine_tuning:
            dscm.select_trained(hvae=True)
        network = nn.parallel.DistributedDataParallel(dscm) if distributed else dscm
        torch.manual_seed(0)
        Training(folder, dscm, guide() if fine_tuning else None, fine_tuning, network=network).run()
        assert "forward" not in vars(dscm)
        return tensors(dscm)

    plain = train(tmp_path / "plain", distributed=False)
    with process_group(tmp_path, 0, 1):
        assert_equal(train(tmp_path / "distributed", distributed=True), plain)


@contextmanager
def process_group(folder: Path, rank: int, processes: int) -> Iterator[None]:
    store, patience = f"file://{folder}/store", timedelta(seconds=120)
    idist.initialize("gloo", init_method=store, rank=rank, world_size=processes, timeout=patience)
    try:
        yield
    finally:
        # Collected after the group, DistributedDataParallel would wait for gloo's threads while it holds Python's lock,
        # for which they may wait.
        gc.collect()
        idist.finalize()


def one_step(folder: Path, rank: int, processes: int, started: Any = None) -> None:
    """One step of pretraining on this process's share of a batch.

    It leaves in a file the weights, and what a head that paints learns of the tissues.
    """
    if started is not None:
        started.set()
    dscm = untrained()
    at_the_posterior_mean(dscm)
    head = DeformationHead(2, painted=[0], classes=3, **HEAD).train()
    with process_group(folder, rank, processes) if processes > 1 else nullcontext():
        share = cases()[rank::processes]
        DSCMTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=DataLoader(share, batch_size=len(share)),
            network=nn.parallel.DistributedDataParallel(dscm) if processes > 1 else dscm,
            optimizer=torch.optim.SGD(dscm.parameters(), lr=0.1),
            prepare_batch=prepare,
            clip_gradient_norm=1e9,
        ).run()
        head.features(torch.stack([case["image"] for case in share]))
    tissues = {"intensities": head.intensities, "pixels": head.pixels}
    torch.save(tensors(dscm) | tissues, folder / f"{rank}_of_{processes}.pt")


def test_two_processes_make_the_step_of_one_on_both_their_batches(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    started = context.Event()
    other = context.Process(target=one_step, args=(tmp_path, 1, 2, started))
    other.start()
    try:
        while not started.wait(1):  # for its imports, however busy the machine
            assert other.is_alive()
        one_step(tmp_path, 0, 2)
        other.join(120)
        assert other.exitcode == 0
    finally:
        other.kill()
    one_step(tmp_path, 0, 1)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0_of_2", "1_of_2", "0_of_1"))
    assert_equal(first, second)
    start = tensors(untrained())
    assert max(float((alone[name] - start[name]).abs().max()) for name in start) > 1e-2
    for name, weight in alone.items():
        torch.testing.assert_close(first[name], weight, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


AREAS = ["left_lung_area", "right_lung_area", "heart_area"]


def test_each_stages_checkpoint_is_the_next_ones_start(tmp_path: Path) -> None:
    datalist = small_chests(tmp_path / "data")
    definitions = [{"name": name, "kind": "continuous"} for name in AREAS]
    segmentor = Segmentor(datalist.labels, "UNet", channels=(4, 4), strides=(2,))
    segmentor.describe(datalist, use="guide")
    save_model(segmentor, tmp_path / "segmentor.pt")
    regressor = Regressor(definitions, channels=(4, 4))
    regressor.fit(datalist, use="guide")
    save_model(regressor, tmp_path / "regressor.pt")
    dscm = DSCM(definitions, hvae=HVAE)
    dscm.fit(datalist)
    assert dscm.variables.units == ["percent"] * 3
    save_model(dscm, tmp_path / "dscm.pt")

    for name in ("segmentor", "regressor", None):
        tuned = pretrained(tmp_path / "dscm.pt", deformation={**HEAD, "classes": 4, "areas": datalist.area_labels})
        assert_equal({k: v for k, v in tensors(tuned).items() if not k.startswith("deformation")}, tensors(dscm))
        path = None if name is None else tmp_path / f"{name}.pt"
        found = load_guide(path, datalist, "cpu", tuned.variables.names)
        assert (found is None) == (name is None)
        prepare_fine_tuning(tuned, found, datalist)
        save_model(tuned, tmp_path / "tuned.pt")
        again = load_model(tmp_path / "tuned.pt", DSCM)
        check_compatible(again, datalist)
        assert again.deformation is not None and len(again.deformation.areas) == (3 if name == "segmentor" else 0)
        noted = again.data["guide"]
        assert again.data["cases"] == sorted(datalist.fingerprints("training"))
        assert noted is None if found is None else noted["class"].lower() == name
        if name is not None:
            with pytest.raises(CheckpointError, match=r"tuned\.pt: data\.guide.*already"):
                prepare_fine_tuning(again, found, datalist)


def test_fine_tuning_refuses_what_is_no_pretrained_model(tmp_path: Path) -> None:
    datalist = small_chests(tmp_path / "data", size=16)
    with pytest.raises(CheckpointError, match=r"dscm: found no pretrained model"):
        prepare_fine_tuning(pretrained(default={"variables": VARIABLES, "hvae": HVAE}), None, datalist)
    with pytest.raises(CheckpointError, match=r"missing\.pt: no such checkpoint"):
        pretrained(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match=r"--guide: .*missing\.pt: no such checkpoint, expected the model.pt"):
        load_guide(tmp_path / "missing.pt", datalist, "cpu")
    judge = Segmentor(datalist.labels, "UNet", channels=(4, 4), strides=(2,))
    judge.describe(datalist, use="judge")
    save_model(judge, tmp_path / "judge.pt")
    with pytest.raises(CheckpointError, match=r"judge\.pt: data\.use: found 'judge', expected 'guide'"):
        load_guide(tmp_path / "judge.pt", datalist, "cpu")
    other = DSCM([{"name": AREAS[0], "kind": "continuous"}], hvae=HVAE)
    other.fit(small_chests(tmp_path / "larger", size=32))
    with pytest.raises(CheckpointError, match=r"data\.image_size: the checkpoint holds \[32, 32\].*\[16, 16\]"):
        prepare_fine_tuning(other, None, datalist)


def test_variables_of_another_kind_are_refused(tmp_path: Path) -> None:
    datalist = small_chests(tmp_path / "data", size=16)
    with pytest.raises(ValueError, match=r"variables\.sex\.kind: found 'binary', the model has 'continuous'"):
        DSCM([{"name": "sex", "kind": "continuous"}], hvae=HVAE).fit(datalist)
