"""The handlers on a small training of MONAI's own trainer: resuming, seeding, averaging, saving, MLflow."""

import contextlib
import itertools
import json
import logging
import math
import multiprocessing
import random
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from discs import disc_datalist
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer, Trainer
from monai.handlers import LrScheduleHandler, MeanDice, from_engine
from monai.transforms import Activationsd, AsDiscreted, Compose
from small_chests import small_chests
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segcft_ext.batches import PrepareSegmentation
from segcft_ext.checkpoints import DATA, CheckpointError, load_checkpoint, load_model
from segcft_ext.datalist_format import Variable
from segcft_ext.handlers import (
    EpochSeed,
    FinalValidationHandler,
    MetricsFile,
    MLflowRun,
    ModelSaver,
    Progress,
    ScheduleInRounds,
    SegmentationReport,
    TrainingCheckpoint,
    WeightAverage,
    warmed_up_average,
)
from segcft_ext.handlers.epoch_seed import seed_epoch
from segcft_ext.measurements import Measurement
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.schedules import OneCycleLR
from segcft_ext.tracking import artifact_location, default_tracking_uri, opening, stage_of, unique_run_name

LABELS = {"background": 0, "disc": 1}


class Killed(BaseException):
    """Stands for the process being killed: nothing of the training may catch it."""


def cases():
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(6, 1, 8, 8, generator=generator) > 0.5).float()
    return [{"image": 2 * case - 1 + 0.1, "label": case} for case in label]


class Training:
    """A training of a few steps with all handlers, as the bundles put it together."""

    def __init__(self, folder, epochs=4, width=4, resume=False, kill_at=None, handlers=(), interval=1, describe=None):
        torch.manual_seed(0)
        self.network = Segmentor(LABELS, "UNet", channels=(width, width), strides=(2,), dropout=0.2)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        self.validator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(cases(), batch_size=3),
            network=self.average,
            prepare_batch=PrepareSegmentation(),
            postprocessing=Compose(
                [Activationsd("pred", softmax=True), AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2)]
            ),
            key_val_metric={"val_dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
            val_handlers=[ModelSaver(self.average.module, folder / "model.pt")],
        )
        state = {
            "validator": self.validator,
            "network": self.network,
            "average": self.average,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(cases(), batch_size=3, shuffle=True),
            network=self.network,
            optimizer=optimizer,
            loss_function=lambda logits, label: torch.nn.functional.cross_entropy(logits, label[:, 0].long()),
            prepare_batch=PrepareSegmentation(self.noise),
            decollate=False,
            train_handlers=[
                EpochSeed(7),
                WeightAverage(self.network, self.average, describe),
                LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
                FinalValidationHandler(interval, self.validator),
                TrainingCheckpoint(folder / "training.pt", state, resume),
                *handlers,
            ],
        )
        if kill_at is not None:
            self.trainer.add_event_handler(kill_at, self.kill)

    @staticmethod
    def noise(image, label):
        return image + 0.1 * torch.randn_like(image), label

    @staticmethod
    def kill():
        raise Killed

    def run(self):
        self.trainer.run()
        return self


def equal(first, second):
    mine, yours = first.state_dict(), second.state_dict()
    assert list(mine) == list(yours)
    tensors = [key for key, value in mine.items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(mine[key], yours[key]) for key in tensors)


@pytest.mark.parametrize("moment", ["iteration_completed", "epoch_completed"])
def test_a_killed_and_resumed_training_ends_like_an_uninterrupted_one(tmp_path, moment):
    whole = Training(tmp_path / "whole").run()
    event = Events[moment.upper()](once=5 if moment == "iteration_completed" else 2)
    killed = Training(tmp_path / "parts", kill_at=event)
    with pytest.raises(Killed):
        killed.run()
    assert killed.trainer.state.epoch < 4
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # a new process has other randomness
    resumed = Training(tmp_path / "parts", resume=True).run()
    assert equal(resumed.network, whole.network) and equal(resumed.average, whole.average)
    assert resumed.validator.state.best_metric == whole.validator.state.best_metric
    models = [load_model(tmp_path / part / "model.pt", Segmentor) for part in ("whole", "parts")]
    assert equal(*models)


def test_resuming_a_finished_training_changes_nothing(tmp_path):
    done = Training(tmp_path, epochs=2).run()
    before = (tmp_path / "model.pt").read_bytes()
    again = Training(tmp_path, epochs=2, resume=True).run()
    assert equal(again.network, done.network) and again.trainer.state.iteration == 4
    assert (tmp_path / "model.pt").read_bytes() == before


def test_without_resume_the_training_starts_again(tmp_path):
    first = Training(tmp_path, epochs=1).run()
    assert equal(Training(tmp_path, epochs=1).run().network, first.network)
    assert not equal(Training(tmp_path, epochs=2).run().network, first.network)


def test_a_new_training_leaves_nothing_of_an_earlier_one_to_be_resumed(tmp_path):
    Training(tmp_path, epochs=2).run()
    with pytest.raises(Killed):
        Training(tmp_path, epochs=2, kill_at=Events.ITERATION_COMPLETED(once=1)).run()
    assert not (tmp_path / "training.pt").exists()
    resumed = Training(tmp_path, epochs=2, resume=True)
    epochs = []
    resumed.trainer.add_event_handler("EPOCH_COMPLETED", lambda engine: epochs.append(engine.state.epoch))
    resumed.run()
    assert epochs == [1, 2]


def test_resume_without_a_file_starts_from_the_beginning(tmp_path):
    assert Training(tmp_path, epochs=1, resume=True).run().trainer.state.epoch == 1


def test_checkpoint_of_another_definition_is_refused(tmp_path):
    Training(tmp_path, epochs=1).run()
    with pytest.raises(CheckpointError, match=r"training\.pt: network: .*definition\.channels"):
        Training(tmp_path, epochs=1, width=8, resume=True).run()


def test_checkpoint_of_other_data_is_refused(tmp_path):
    Training(tmp_path, epochs=1).run()
    training = Training(tmp_path, epochs=1, resume=True)
    training.network.data = {**dict.fromkeys(DATA), "name": "others"}
    with pytest.raises(CheckpointError, match=r"training\.pt: network: data\.cases: the checkpoint holds 'nothing'"):
        training.run()


def test_a_network_is_described_in_its_average(tmp_path):
    def train(**data):
        def describe(network):
            network.data = {**dict.fromkeys(DATA), **data}

        return Training(tmp_path, epochs=1, resume=True, describe=describe).run()

    assert train(use="guide").network.data == {}
    assert load_model(tmp_path / "model.pt").data["use"] == "guide"
    with pytest.raises(CheckpointError, match=r"training\.pt: average: data\.use: .* holds 'guide', asked for 'judge'"):
        train(use="judge")


def test_metrics_replace_those_of_an_earlier_evaluation_as_a_whole(tmp_path):
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics, engine.state.rank = {"dice": 0.5}, 0
    (tmp_path / "metrics.json").write_text("earlier")
    (tmp_path / "link.json").hardlink_to(tmp_path / "metrics.json")
    MetricsFile(tmp_path / "metrics.json", {"split": "test"}).write(engine)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"split": "test", "metrics": {"dice": 0.5}}
    assert (tmp_path / "link.json").read_text() == "earlier"


@pytest.mark.parametrize("epochs", [1, 3])
def test_checkpoint_of_a_training_of_another_length_is_refused(tmp_path, epochs):
    Training(tmp_path, epochs=2).run()
    before = (tmp_path / "training.pt").read_bytes()
    with pytest.raises(CheckpointError, match=rf"training\.pt: max_epochs: the checkpoint holds 2, asked for {epochs}"):
        Training(tmp_path, epochs=epochs, resume=True).run()
    assert (tmp_path / "training.pt").read_bytes() == before


def test_checkpoint_of_a_training_with_other_epochs_is_refused(tmp_path):
    Training(tmp_path, epochs=2).run()
    training = Training(tmp_path, epochs=2, resume=True)
    with pytest.raises(CheckpointError, match=r"training\.pt: epoch_length: the checkpoint holds 2, asked for 6"):
        training.trainer.data_loader = DataLoader(cases(), batch_size=1)
        training.trainer.state.epoch_length = 6
        training.run()


def test_checkpoint_of_another_training_is_refused(tmp_path):
    torch.save({"network": {}}, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match=r"training\.pt: the checkpoint holds \['network'\], asked for"):
        Training(tmp_path, resume=True).run()


def test_checkpoint_holds_plain_values_and_tensors_only(tmp_path):
    Training(tmp_path, epochs=1).run()
    assert load_checkpoint(tmp_path / "training.pt")["trainer"]["epoch"] == 1


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_no_obstacle(tmp_path, caplog, content):
    done = Training(tmp_path, epochs=1).run()
    whole = (tmp_path / "training.pt").read_bytes()
    (tmp_path / "training.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    again = Training(tmp_path, epochs=1, resume=True).run()
    assert equal(again.network, done.network)
    assert "training.pt: cannot be read as a checkpoint" in caplog.text
    assert "; the training starts from the beginning" in caplog.text
    assert load_checkpoint(tmp_path / "training.pt")["trainer"]["epoch"] == 1


def test_a_checkpoint_that_cannot_be_opened_is_left_as_it_is(tmp_path):
    (tmp_path / "training.pt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"training\.pt"):
        Training(tmp_path, epochs=1, resume=True).run()
    assert (tmp_path / "training.pt").is_dir()


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    training = Training(tmp_path / "file")
    with pytest.raises(OSError, match="file: cannot be written to"):
        training.run()
    assert training.trainer.state.iteration == 0


def test_what_resuming_does_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    Training(tmp_path, epochs=2, resume=True).run()
    assert "training.pt does not exist: the training starts from the beginning" in caplog.text
    Training(tmp_path, epochs=2, resume=True).run()
    assert "resumed after epoch 2 of 2 from" in caplog.text and "training.pt: the training is over" in caplog.text


def test_a_checkpoint_without_the_id_of_a_run_is_refused(tmp_path):
    Training(tmp_path, epochs=2).run()
    checkpoint = load_checkpoint(tmp_path / "training.pt")
    del checkpoint["trainer"]["run_id"]
    torch.save(checkpoint, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match=r"training\.pt: trainer: the checkpoint holds .*, asked for .*'run_id'"):
        Training(tmp_path, epochs=2, resume=True).run()


@pytest.mark.parametrize(("epochs", "expected"), [(1, [1]), (4, [2, 4]), (5, [2, 4, 5])])
def test_the_last_epoch_is_validated_and_once_only(tmp_path, epochs, expected):
    training, validated = Training(tmp_path, epochs=epochs, interval=2), []
    training.validator.add_event_handler("COMPLETED", lambda engine: validated.append(engine.state.epoch))
    training.run()
    assert validated == expected


def test_best_model_is_kept(tmp_path):
    training = Training(tmp_path, epochs=6)
    dice = []
    training.validator.add_event_handler("COMPLETED", lambda engine: dice.append(engine.state.metrics["val_dice"]))
    saved = []
    training.trainer.add_event_handler("EPOCH_COMPLETED", lambda: saved.append((tmp_path / "model.pt").read_bytes()))
    training.run()
    for epoch, (before, after) in enumerate(itertools.pairwise(saved), start=1):
        assert (after != before) == (dice[epoch] > max(dice[:epoch]))


def test_epochs_are_seeded_alike_and_apart():
    def draw(*key):
        seed_epoch(*key)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(0, 1) == draw(0, 1)
    drawn = [draw(*key) for key in ((0, 1), (1, 0), (0, 2), (1, 1), (0, 1, 1))]
    assert all(len({values[k] for values in drawn}) == 5 for k in range(3))


def test_average_starts_as_the_network_and_follows_it():
    network = torch.nn.BatchNorm1d(1)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    handler = WeightAverage(network, average)
    network.running_mean.fill_(3.0)
    handler.start()
    assert average.module.running_mean == 3
    for value in (1.0, 0.0):
        torch.nn.init.constant_(network.weight, value)
        handler.update()
    assert average.module.weight.item() == 0.5


def test_warmed_up_average_forgets_a_short_trainings_start():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 100.0)
    average = AveragedModel(network, multi_avg_fn=warmed_up_average(0.999))
    for _ in range(50):
        average.update_parameters(network)
        torch.nn.init.constant_(network.weight, 1.0)
    assert average.module.weight.item() == pytest.approx(1.0, abs=0.1)


class Count(int):
    """A number of updates that counts how often its value is read, for which a device would have to be waited for."""

    asked = 0

    def __int__(self):
        self.asked += 1
        return super().__int__()


def test_warmed_up_average_moves_each_weight_by_the_same_share_and_asks_for_the_count_once():
    generator = torch.Generator().manual_seed(0)
    kinds = [((3, 2), torch.float32), ((), torch.float64), ((4,), torch.bfloat16), ((0,), torch.float32)]
    averaged, current = ([torch.randn(shape, generator=generator).to(kind) for shape, kind in kinds] for _ in range(2))
    averaged.append(torch.zeros(2, 3).T)
    current.append(torch.ones(3, 2))
    expected = [a.lerp(c, 1 - 6 / 15) for a, c in zip(averaged, current)]
    warmed_up_average(0.999)(averaged, current, count := Count(5))
    torch.testing.assert_close(averaged, expected)
    assert count.asked == 1
    warmed_up_average(0.4)(averaged, current, 5)
    torch.testing.assert_close(averaged, [a.lerp(c, 0.6) for a, c in zip(expected, current)])


def test_every_run_of_a_trainer_goes_through_the_schedule_anew():
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    rates = []

    def step(engine, batch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    trainer = Trainer(torch.device("cpu"), 2, range(3), iteration_update=step)
    schedule = OneCycleLR(optimizer, 1.0, total_steps=6, pct_start=0.3, cycle_momentum=False)
    ScheduleInRounds(schedule).attach(trainer)
    trainer.run()
    for _ in range(2):
        trainer.state.max_epochs = trainer.state.epoch + 2  # as MonaiAlgo does in every round
        trainer.run()
    assert rates[:6] == rates[6:12] == rates[12:] and max(rates) > 0.9
    with pytest.raises(ValueError, match="Tried to step 7 times"):
        schedule.step()  # a run must not be longer


# MLflow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def runs(store):
    client = mlflow.MlflowClient(store)
    return client, client.search_runs(
        [client.get_experiment_by_name("tests").experiment_id], order_by=["start_time DESC"]
    )


def test_run_has_parameters_metrics_and_artifacts_and_is_finished(store, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "grid.txt").write_text("a figure")
    training = Training(tmp_path, epochs=2)
    run = MLflowRun(
        store,
        "tests",
        "whole",
        {"seed": 7, "nothing": None},
        [tmp_path / "model.pt", tmp_path / "figures", tmp_path / "absent"],
        training.validator,
    )
    run.attach(training.trainer)
    training.run()
    client, (found, *_) = runs(store)
    assert found.info.run_name == "whole" and found.info.status == "FINISHED"
    assert found.data.params["seed"] == "7" and found.data.params["torch"] == torch.__version__
    assert found.data.params["output_dir"] == str(tmp_path)
    assert {"train_loss", "learning_rate", "val_dice"} <= set(found.data.metrics)
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "val_dice")] == [1, 2]
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"model.pt", "figures"}
    assert found.info.artifact_uri.startswith(artifact_location(store))


def test_a_run_names_its_data_by_the_digest_of_the_datalist(store, tmp_path):
    datalists = [small_chests(tmp_path / name, training=4, test=count) for name, count in (("a", 1), ("b", 2))]
    workflows = [
        (Trainer(torch.device("cpu"), 1, range(1), iteration_update=lambda engine, batch: [{}]), datalists[0]),
        (Engine(lambda engine, batch: None), datalists[0]),
        (Engine(lambda engine, batch: None), datalists[1]),
    ]
    found = []
    for engine, datalist in workflows:
        MLflowRun(store, "tests", "data", datalist=datalist).attach(engine)
        engine.run([0]) if type(engine) is Engine else engine.run()
        client, (run, *_) = runs(store)
        found += client.get_run(run.info.run_id).inputs.dataset_inputs
    assert [(used.dataset.name, used.tags[0].value) for used in found] == [
        (datalists[0].name, "training"),
        (datalists[0].name, "evaluation"),
        (datalists[1].name, "evaluation"),
    ]
    first, same, other = (used.dataset.digest for used in found)
    assert first == same != other
    assert json.loads(found[2].dataset.source) == {"uri": str(datalists[1].path)}
    assert json.loads(found[2].dataset.profile) == {"training": 4, "validation": 3, "test": 2}


def test_a_step_that_is_not_finite_does_not_take_the_epochs_mean_with_it(store):
    losses = iter([1.0, float("nan"), 3.0, *[float("inf")] * 3])
    trainer = Trainer(
        torch.device("cpu"),
        2,
        range(3),
        iteration_update=lambda engine, batch: [{"loss": next(losses), "gradient_norm": 5.0}],
    )
    MLflowRun(store, "tests", "skipped").attach(trainer)
    trainer.run()
    client, (found, *_) = runs(store)
    logged = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, f"train_{name}")]
        for name in ("loss", "gradient_norm")
    }
    assert logged == {"loss": [(1, 2.0)], "gradient_norm": [(1, 5.0), (2, 5.0)]}


def test_the_prediction_of_a_single_number_is_no_metric(store):
    case = {
        "loss": torch.tensor(0.5),
        "image": torch.zeros(1),
        "pred": torch.tensor([0.1]),
        "label": torch.tensor([0.2]),
    }
    trainer = Trainer(torch.device("cpu"), 1, range(1), iteration_update=lambda engine, batch: [case])
    MLflowRun(store, "tests", "regression").attach(trainer)
    trainer.run()
    _, (found, *_) = runs(store)
    assert [name for name in found.data.metrics if name.startswith("train_")] == ["train_loss"]


def test_labels_with_a_gap_have_their_own_scores(tmp_path):
    datalist = disc_datalist(tmp_path / "discs", training=2, test=1)
    datalist = replace(datalist, labels={"background": 0, "left": 1, "right": 3})
    report = SegmentationReport(datalist, tmp_path, ["dice"])
    label = torch.nn.functional.one_hot(torch.tensor([[0, 1], [3, 3]]), 4).movedim(-1, 0).float()
    case = {"id": "a", "source": "discs", "spacing": [math.nan, math.nan], "image": torch.zeros(1, 2, 2)}
    output = {"label": label, "pred": label, "probabilities": label}
    details = {"dice": torch.tensor([[0.9, math.nan, 0.4]])}  # a column for each value, also for 2, which is no label
    report.measure(SimpleNamespace(state=SimpleNamespace(batch=[case], output=[output])))
    report.write(SimpleNamespace(state=SimpleNamespace(metric_details=details, metrics={})))
    found = json.loads((tmp_path / "segmentation.json").read_text())
    assert [found["structures"][name]["dice"]["mean"] for name in ("left", "right")] == pytest.approx([0.9, 0.4])


class Brightness(Measurement):
    """Mean intensity of the first structure."""

    unit = "grey"

    def __call__(self, probabilities, image=None, spacing=None, reference=None):
        weight = self.support(probabilities)
        return (weight * image).flatten(1).sum(1) / weight.flatten(1).sum(1)

    def support(self, probabilities, reference=None):
        return probabilities[:, 1:2]


def test_errors_of_a_measurement_that_needs_the_image_and_may_be_negative(tmp_path):
    datalist = disc_datalist(tmp_path / "discs", training=2, test=1)
    brightness = Variable("brightness", unit="grey", measurement={"_target_": f"{__name__}.Brightness"})
    report = SegmentationReport(replace(datalist, variables=(brightness,)), tmp_path, ["dice"])
    image = torch.tensor([[[-0.6, -0.2], [0.0, 0.0]]])
    label, pred = (
        torch.nn.functional.one_hot(torch.tensor(values), datalist.num_classes).movedim(-1, 0).float()
        for values in ([[1, 1], [0, 0]], [[1, 0], [0, 0]])
    )
    case = {"id": "a", "source": "discs", "spacing": [math.nan, math.nan], "image": image}
    output = {"label": label, "pred": pred, "probabilities": label}
    report.measure(SimpleNamespace(state=SimpleNamespace(batch=[case], output=[output])))
    details = {"dice": torch.ones(1, datalist.num_classes - 1)}
    report.write(SimpleNamespace(state=SimpleNamespace(metric_details=details, metrics={})))
    errors = json.loads((tmp_path / "segmentation.json").read_text())["variables"]["brightness"]
    assert errors["soft"] == {"mae": 0, "mape": 0, "bias": 0}
    assert errors["hard"] == pytest.approx({"mae": 0.2, "mape": 50, "bias": -50})


def test_a_variable_of_any_name_can_be_recorded(store):
    trainer = Trainer(torch.device("cpu"), 1, range(1), iteration_update=lambda engine, batch: [{"heart (H), %": 0.5}])
    MLflowRun(store, "tests", "names").attach(trainer)
    trainer.run()
    _, (found, *_) = runs(store)
    assert found.data.metrics["train_heart _H__ _"] == 0.5


def test_runs_never_share_a_name_and_never_adopt_one(store, tmp_path):
    for _ in range(2):
        training = Training(tmp_path, epochs=1)
        MLflowRun(store, "tests", "twice").attach(training.trainer)
        training.run()
    names = [run.info.run_name for run in runs(store)[1] if run.info.run_name.startswith("twice")]
    assert len(names) == 2 == len(set(names))
    assert unique_run_name("stage") != unique_run_name("stage")
    assert stage_of(unique_run_name("a-stage")) == stage_of("a-stage") == "a-stage"


def open_run(store, name, barrier):
    barrier.wait()
    MLflowRun(store, "tests", name).start(Engine(lambda engine, batch: None))


def test_runs_that_start_at_once_share_a_new_store(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(2)
    names = ["first", "second"]
    processes = [context.Process(target=open_run, args=(store, name, barrier)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("tests").experiment_id
    assert sorted(run.info.run_name for run in client.search_runs([experiment])) == names


def test_experiment_that_another_client_has_just_created_is_taken(store, monkeypatch):
    with opening(store, "tests") as client:
        there = client.get_experiment_by_name("tests")
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "get_experiment_by_name", lambda client, name: None)
        with opening(store, "tests") as client:
            pass
        with pytest.raises(mlflow.MlflowException, match="Invalid experiment name"), opening(store, ""):
            pass
    assert client.get_experiment_by_name("tests").experiment_id == there.experiment_id


def test_failed_run_is_closed_as_failed_and_the_error_goes_on(store, tmp_path):
    training = Training(tmp_path, kill_at="ITERATION_COMPLETED")
    MLflowRun(store, "tests", "failing").attach(training.trainer)
    with pytest.raises(Killed):
        training.run()
    found = runs(store)[1][0]
    assert found.info.status == "FAILED" and found.data.tags["error"].startswith("Killed")


def test_an_error_is_not_hidden_by_a_store_that_refuses_to_note_it(store, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise mlflow.MlflowException("database or disk is full")

    training = Training(tmp_path, kill_at="ITERATION_COMPLETED")
    MLflowRun(store, "tests", "failing").attach(training.trainer)
    monkeypatch.setattr(mlflow.MlflowClient, "set_tag", refuse)
    with pytest.raises(Killed):
        training.run()
    assert "the MLflow run cannot be closed: database or disk is full" in caplog.text


def test_a_store_that_cannot_be_used_is_named(store, tmp_path):
    (tmp_path / "text.db").write_text("no database\n" * 100)
    with pytest.raises(OSError, match=r"text\.db: cannot be opened as an MLflow store: file is not a database"):
        MLflowRun(f"sqlite:///{tmp_path}/text.db").start(Engine(lambda engine, batch: None))
    with opening(store, "deleted") as client:
        client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with pytest.raises(ValueError, match=r"mlflow\.db: experiment 'deleted' is deleted: give another"):
        MLflowRun(store, "deleted").start(Engine(lambda engine, batch: None))


def test_a_store_whose_making_was_interrupted_is_made_anew(tmp_path, monkeypatch):
    def interrupted(tracking_uri):
        with contextlib.closing(sqlite3.connect(tracking_uri.removeprefix("sqlite:///"))) as database:
            database.execute("CREATE TABLE registered_model_tags (name TEXT)")
        raise KeyboardInterrupt

    store = f"sqlite:///{tmp_path}/new.db"
    with monkeypatch.context() as patched:
        patched.setattr("segcft_ext.tracking.MlflowClient", interrupted)
        with pytest.raises(KeyboardInterrupt), opening(store, "tests"):
            pass
    with opening(store, "tests") as client:
        assert client.get_experiment_by_name("tests").artifact_location == artifact_location(store)
    assert sorted(path.name for path in tmp_path.glob("new.db*")) == ["new.db", "new.db.lock"]


def test_a_resumed_training_goes_on_with_its_run(store, tmp_path):
    def train(name, **options):
        training = Training(tmp_path, epochs=4, **options)
        MLflowRun(store, "tests", name, {"name": name}, (), training.validator).attach(training.trainer)
        training.run()

    with pytest.raises(Killed):
        train("begun", kill_at=Events.ITERATION_COMPLETED(once=5))
    client, (begun, *others) = runs(store)
    client.update_run(begun.info.run_id, "RUNNING")  # as one that was killed leaves it
    train("resumed", resume=True)
    client, found = runs(store)
    assert [run.info.run_id for run in found] == [run.info.run_id for run in (begun, *others)]
    assert found[0].info.status == "FINISHED" and found[0].data.params["name"] == "begun"
    for metric in ("train_loss", "val_dice"):
        assert [point.step for point in client.get_metric_history(begun.info.run_id, metric)] == [1, 2, 3, 4]
    client.delete_run(begun.info.run_id)
    train("again", resume=True)
    train("anew")
    assert [run.info.run_name for run in runs(store)[1]][:2] == ["anew", "again"]


def test_a_run_killed_between_validation_and_checkpoint_has_no_metric_twice(store, tmp_path):
    for resume in (False, True):
        training = Training(tmp_path, epochs=3, resume=resume)
        MLflowRun(store, "tests", "between", validator=training.validator).attach(training.trainer)
        if not resume:
            second = Events.COMPLETED(event_filter=lambda engine, _: engine.state.epoch == 2)
            training.validator.add_event_handler(second, training.kill)
        with contextlib.suppress(Killed):
            training.run()
    client, (found, *_) = runs(store)
    assert found.info.run_name == "between" and found.info.status == "FINISHED"
    for metric in ("train_loss", "val_dice"):
        assert [point.step for point in client.get_metric_history(found.info.run_id, metric)] == [1, 2, 3]


def test_a_run_is_open_while_the_training_goes_on_and_killed_when_it_is_interrupted(store, tmp_path):
    statuses = []

    def interrupt():
        statuses.append(runs(store)[1][0].info.status)
        raise KeyboardInterrupt

    for options in ({}, {"resume": True}):
        training = Training(tmp_path, epochs=4, **options)
        MLflowRun(store, "tests", "interrupted").attach(training.trainer)
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, interrupt)
        with pytest.raises(KeyboardInterrupt):
            training.run()
        statuses.append(runs(store)[1][0].info.status)
    assert statuses == ["RUNNING", "KILLED"] * 2


def test_a_second_run_of_a_trainer_is_a_run_of_its_own(store):
    trainer = Trainer(torch.device("cpu"), 1, range(3), iteration_update=lambda engine, batch: {"loss": 1.0})
    MLflowRun(store, "tests", "it's mine").attach(trainer)
    trainer.run()
    trainer.run()
    assert len({run.info.run_id for run in runs(store)[1] if run.info.run_name.startswith("it's mine")}) == 2


@pytest.mark.parametrize("other", ["https://tracking.example", "sqlite:///{}/environment.db", "file://{}/mlruns"])
def test_no_store_but_the_given_one_is_touched(store, tmp_path, monkeypatch, other):
    other = other.format(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri() == other
    training = Training(tmp_path / "run", epochs=1)
    MLflowRun(store, "tests", "given").attach(training.trainer)
    training.run()
    assert runs(store)[1][0].info.run_name.startswith("given")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_store_is_not_touched_before_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    MLflowRun().attach(Training(tmp_path, epochs=1).trainer)
    assert not list(tmp_path.glob("*.db"))
    assert default_tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_artifacts_lie_beside_the_database():
    assert artifact_location("sqlite:////data/store/mlflow.db") == "file:///data/store/mlruns"
    assert artifact_location("https://tracking.example") is None


def test_progress_shows_epochs_loss_and_metrics(tmp_path, capsys):
    training = Training(tmp_path, epochs=2)
    Progress("segmentor", training.validator, ["val_dice"]).attach(training.trainer)
    training.run()
    shown = capsys.readouterr().err
    assert "segmentor" in shown and "[2/2]" in shown and "loss=" in shown and "val_dice=" in shown
    assert training.trainer.logger.level == logging.WARNING
