"""The driver: which stages run, in which order, and what happens when one does not end well."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segcft_ext import chain
from segcft_ext.chain_stages import Chain
from segcft_ext.kinds import KINDS, kind_of
from segcft_ext.scheduler import StageError, run_stages
from segcft_ext.stage_settings import read_settings
from segcft_ext.stages import Digests, Stage, code_digest

# A stage for tests: appends its options to calls.txt, then writes the text of its inputs and its setting as model.pt.
STUB = """
import json, pathlib, sys, time
options = dict(zip((a[2:] for a in sys.argv[1::2]), sys.argv[2::2]))
out = pathlib.Path(options["output_dir"])
with open(out / "calls.txt", "a") as calls:
    calls.write(json.dumps(options) + "\\n")
print("epoch 1 of 2", flush=True)
(out / "training.pt").write_text("half way")
if "wait_for" in options:
    until = time.monotonic() + 200
    while not pathlib.Path(options["wait_for"]).exists():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
if options.get("fail") == "True" and "resume" not in options:
    sys.exit("no luck today")
if options.get("forget") != "True":
    made_of = [pathlib.Path(options[key]).read_text() for key in ("upstream", "datalist") if key in options]
    (out / "model.pt").write_text(" ".join([*made_of, options.get("word", "")]))
"""


@pytest.fixture
def make(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)

    def make(name, upstream=None, **settings):
        return Stage(
            name=name,
            program=(str(tmp_path / "stub.py"),),
            folder=tmp_path / "out" / name,
            products=("model.pt",),
            inputs={} if upstream is None else {"upstream": upstream},
            settings=settings,
            progress="training.pt",
        )

    return make


@pytest.fixture
def run(tmp_path):
    return lambda *stages, **options: run_stages(stages, tmp_path / "out" / "logs", **options)


def calls(stage):
    path = stage.folder / "calls.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def product(stage):
    return stage.folder / "model.pt"


def test_a_stage_runs_after_those_that_make_its_inputs_and_only_once(make, run, capsys):
    first = make("first", word="a")
    second = make("second", product(first), word="b")
    run(second, first)
    assert product(second).read_text() == "a b"
    shown = capsys.readouterr().out
    assert first.command() in shown and second.command() in shown
    run(second, first)
    assert len(calls(first)) == len(calls(second)) == 1
    assert capsys.readouterr().out.count("skipped") == 2


def test_what_changed_runs_again_and_what_depends_on_it(make, run, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    first, other = make("first", source), make("other")
    second = make("second", product(first))
    run(first, second, other)
    source.write_text("two")
    run(first, second, other)
    assert product(second).read_text() == "two  "
    assert [len(calls(stage)) for stage in (first, second, other)] == [2, 2, 1]
    changed = replace(other, settings={"word": "b"})
    run(first, second, changed)
    assert [len(calls(stage)) for stage in (first, second, other)] == [2, 2, 2]
    assert calls(changed)[-1]["word"] == "b"


def test_a_stage_is_not_run_for_what_is_the_same_again(make, run, tmp_path):
    """Touched files, another place, and an upstream stage that gives the same result."""
    source = tmp_path / "source.txt"
    source.write_text("one")
    first = make("first", source)
    second = make("second", product(first))
    run(first, second)
    moved = tmp_path / "moved.txt"
    moved.write_text("one")
    run(replace(first, inputs={"upstream": moved}, version="2"), second)
    assert len(calls(first)) == 2 and len(calls(second)) == 1


def test_a_product_that_is_damaged_or_gone_is_made_again(make, run):
    stage = make("stage", word="a")
    run(stage)
    product(stage).write_text("cut o")
    run(stage)
    product(stage).unlink()
    run(stage)
    assert len(calls(stage)) == 3 and product(stage).read_text() == "a"


def test_a_datalist_stands_for_its_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    case = {"image": "a.png", "label": "a.png"}
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": [case], "validation": [], "test": []}))
    stage = Stage("stage", ("x",), tmp_path / "out", (), inputs={"datalist": datalist})
    stage.start(Digests(), resume=False)
    stage.finish(Digests(), 1.0)
    unchanged = stage.state(Digests())
    (tmp_path / "a.png").write_bytes(b"another image")
    assert (unchanged, stage.state(Digests())) == ("due: it was interrupted", "due: changed datalist")


def test_a_stage_depends_on_those_splits_of_a_datalist_that_it_reads(tmp_path):
    def write(**splits):
        for name in splits:
            (tmp_path / f"{name}.png").write_bytes(b"image")
        cases = {split: [{"image": f"{split}.png", "label": f"{split}.png", **more}] for split, more in splits.items()}
        (tmp_path / "datalist.json").write_text(json.dumps({"name": "data", "test": [], **cases}))

    inputs = {"datalist": tmp_path / "datalist.json"}
    everything = Stage("stage", ("x",), tmp_path / "all", (), inputs=inputs)
    training = replace(everything, folder=tmp_path / "training", splits=("training", "validation"))
    write(training={}, validation={})
    for stage in (everything, training):
        stage.start(Digests(), resume=False)
    write(training={}, validation={}, test={})
    assert everything.state(Digests()) == "due: changed datalist"
    assert training.state(Digests()) == "due: it was interrupted"  # by its datalist it could go on
    write(training={}, validation={"id": "another"}, test={})
    assert training.state(Digests()) == "due: changed datalist"
    write(training={}, validation={}, test={})
    (tmp_path / "training.png").write_bytes(b"another image")
    assert training.state(Digests()) == "due: changed datalist"


@pytest.mark.parametrize("record", ["{}", "[]", '{"inputs": ', '{"stage": "stage", "products": {}}'])
def test_a_file_that_is_no_record_is_as_good_as_none(make, record):
    stage = make("stage")
    stage.folder.mkdir(parents=True)
    (stage.folder / "stage.json").write_text(record)
    assert stage.state(Digests()) == "due: not run yet"


def test_a_stage_made_by_other_code_is_kept_but_that_is_said(make, run, capsys):
    stage = make("stage", word="a")
    run(replace(stage, code="one"))
    run(replace(stage, code="one"))
    assert "complete, inputs unchanged: skipped" in capsys.readouterr().out
    run(replace(stage, code="two"))
    said = f"complete, by other code than this: skipped; delete {stage.folder / 'stage.json'} to make it anew"
    assert len(calls(stage)) == 1 and said in capsys.readouterr().out
    with pytest.raises(StageError):
        run(replace(make("stage", fail=True), code="two"))
    run(replace(make("stage", fail=True), code="one"))
    assert "resumed; it began with other code than this" in capsys.readouterr().out
    assert len(calls(stage)) == 3


def test_the_code_is_that_of_all_modules(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    module = tmp_path / "package" / "__init__.py"
    module.write_text("a = 1")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("package")
    before = code_digest(package)
    (tmp_path / "package" / "notes.txt").touch()
    assert code_digest(package) == before
    module.write_text("a = 2")
    changed = code_digest(package)
    (tmp_path / "package" / "more.py").touch()
    assert len({before, changed, code_digest(package)}) == 3


LISTING_STUB = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
(out / "figures").mkdir(exist_ok=True)
pictures = [f"{number}.png" for number in range(int(sys.argv[sys.argv.index("--count") + 1]))]
for name in pictures:
    (out / "figures" / name).write_text(name)
(out / "figures" / "figures.json").write_text(json.dumps([{"file": name} for name in pictures]))
(out / "calls.txt").open("a").write("called\\n")
"""


def test_what_a_product_lists_is_watched_too(run, tmp_path):
    (tmp_path / "stub.py").write_text(LISTING_STUB)
    program, folder = (str(tmp_path / "stub.py"),), tmp_path / "out" / "stage"
    stage = Stage("stage", program, folder, ("figures/figures.json",), settings={"count": 2})
    after = Stage("after", ("x",), tmp_path / "after", (), reads={"figures": folder / "figures" / "figures.json"})
    picture = folder / "figures" / "0.png"
    run(stage)
    run(stage)
    assert (folder / "calls.txt").read_text().count("called") == 1
    after.start(Digests(), resume=False)
    picture.write_text("another picture")
    assert stage.state(Digests()) == "due: figures/0.png is not what it wrote"
    assert after.state(Digests()) == "due: changed figures"
    picture.unlink()
    assert stage.state(Digests()) == "due: figures/0.png is missing"
    run(stage)
    assert stage.state(Digests()) == "complete"
    run(replace(stage, settings={"count": 1}))
    assert [path.name for path in picture.parent.glob("*.png")] == ["0.png"]  # of the earlier run no picture is left


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN])
def interrupts(request):
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


def test_failure_stops_the_rest_and_shows_the_log(make, run, tmp_path, interrupts):
    waiting = make("waiting", wait_for=str(tmp_path / "never"))
    broken = make("broken", fail=True, wait_for=str(waiting.folder / "training.pt"))
    after = make("after", product(broken))
    begin = time.monotonic()
    with pytest.raises(StageError, match=r"(?s)broken failed with exit code 1.*no luck today.*logs/broken\.log"):
        run(broken, after, waiting)
    assert time.monotonic() - begin < 100  # the last stage was ended: it would have waited for 200 s
    assert not calls(after) and not product(waiting).exists()
    closed = "KeyboardInterrupt" in (tmp_path / "out" / "logs" / "waiting.log").read_text()
    assert closed == (interrupts is not signal.SIG_IGN)  # it could close what it had, if not in a script's background


def test_an_interrupted_stage_is_resumed_unless_its_inputs_changed(make, run, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    stage = make("stage", source, fail=True)
    with pytest.raises(StageError):
        run(stage)
    source.write_text("two")
    with pytest.raises(StageError):
        run(stage)
    run(stage)
    assert [call.get("resume") for call in calls(stage)] == [None, None, "True"]
    assert (tmp_path / "out" / "logs" / "stage.log").read_text().count("epoch 1 of 2") == 2
    run(stage)
    assert len(calls(stage)) == 3


def test_a_training_that_is_over_and_whose_model_is_gone_starts_anew(make, run):
    stage = make("stage", forget=True)
    for _ in range(2):
        with pytest.raises(StageError, match=r"ended without writing model\.pt"):
            run(stage)
    assert [call.get("resume") for call in calls(stage)] == [None, None]


def test_a_new_start_leaves_nothing_of_the_old_one(make, run, tmp_path):
    stage = make("stage", word="a")
    run(stage)
    with pytest.raises(StageError, match=r"ended without writing model\.pt"):
        run(make("stage", forget=True))
    assert not product(stage).exists()


def test_missing_input_is_an_error_before_anything_runs(make, run, tmp_path):
    first = make("first")
    with pytest.raises(StageError, match=r"second: no such file: .*nowhere"):
        run(first, make("second", tmp_path / "nowhere"))
    assert not calls(first)


def test_stages_that_wait_for_each_other(make, run):
    first = make("first", make("second").folder / "model.pt")
    with pytest.raises(StageError, match="wait for each other"):
        run(first, make("second", product(first)))


def test_the_script_says_what_was_run(make, run, tmp_path):
    stage, script = make("it's a stage"), tmp_path / "commands.sh"
    run(stage, environment={"NAME": "a b"}, script=script)
    assert script.read_text().splitlines()[-2:] == ["export NAME='a b'", stage.command()]


def test_jobs(make, run):
    one, two = make("one"), make("two")
    one = replace(one, settings={"wait_for": str(two.folder / "calls.txt")})
    two = replace(two, settings={"wait_for": str(one.folder / "calls.txt")})
    run(one, two, jobs=2)  # each waits for the other to be at work
    three, four = make("three"), make("four")
    four = replace(four, settings={"wait_for": str(product(three))})
    run(three, four, jobs=1)
    assert product(four).stat().st_mtime >= product(three).stat().st_mtime


@pytest.mark.parametrize("jobs", [0, -1, "two"])
def test_without_a_job_nothing_is_waited_for(make, run, jobs):
    with pytest.raises(ValueError, match=f"jobs: found {jobs!r}, expected 1 or more"):
        run(make("first"), jobs=jobs)


def test_commands_survive_the_shell(make, tmp_path):
    stage = make("it's a stage", {"Seg-CFT, a": tmp_path / "a b.pt"}, text='$HOME "x"', number=1.5, flag=False)
    assert shlex.split(stage.command()) == ["python", *stage.arguments()]
    options = dict(zip(stage.arguments()[1::2], stage.arguments()[2::2]))
    assert json.loads(options["--upstream"]) == {"Seg-CFT, a": str(tmp_path / "a b.pt")}
    assert "ü😀/a.pt" in make("stage", {"a": Path("ü😀/a.pt")}).command()  # Fire would not join what JSON takes apart
    assert (options["--flag"], options["--number"]) == ("False", "1.5")
    said = subprocess.run(["bash", "-c", stage.command().replace("python", "printf '%s\\n'", 1)], capture_output=True)
    assert said.stdout.decode().splitlines() == stage.arguments()


DRIVER = """
import pathlib, sys
from segcft_ext.scheduler import run_stages
from segcft_ext.stages import Stage
stub, out, never = map(pathlib.Path, sys.argv[1:])
stage = Stage("stage", (str(stub),), out / "stage", ("model.pt",), settings={"wait_for": str(never)})
run_stages([stage], out / "logs")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the processes of one that was killed")
def test_a_killed_driver_takes_its_stages_along_and_one_works_at_a_time(make, run, tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "stub.py"), str(tmp_path / "out"), str(tmp_path / "never")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        until = time.monotonic() + 200
        while not (tmp_path / "out" / "stage" / "training.pt").exists():
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(StageError, match="another run is at work"):
            run(make("stage"), script=tmp_path / "commands.sh")
        assert not (tmp_path / "commands.sh").exists()  # one of the run at work stays as it is
        os.kill(driver.pid, signal.SIGKILL)
    while True:  # the lock is free once the stage's process is gone
        try:
            run(make("stage"))
            break
        except StageError:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert product(make("stage")).exists()


class TestChain:
    @pytest.fixture
    def chain(self, tmp_path):
        return Chain(
            tmp_path / "datalist.json",
            tmp_path / "out",
            3,
            None,
            {},
            Path("bundles"),
            kind=KINDS["chest"],
            positional=False,
            size=(64, 64),
        )

    def test_stages_fit_together(self, chain):
        stages = {stage.name: stage for stage in chain.stages(["No-CFT", "Reg-CFT", "Seg-CFT"], ["deformation"])}
        after = {name: [other for other in stages if stage.follows(stages[other])] for name, stage in stages.items()}
        assert after["seg_cft_deformation"] == ["lung_heart_segmentor", "dscm_pretraining"]
        assert after["reg_cft_deformation"] == ["dscm_pretraining", "regressor"]
        assert after["judge"] == after["dscm_pretraining"] == []
        assert list(stages["evaluation"].inputs["methods"]) == ["No-CFT", "Reg-CFT", "Seg-CFT"]
        assert after["report"] == ["evaluation"]
        assert {"figures", "evaluation", "datalist"} == set(stages["report"].reads)
        assert {"pairs.csv", "figures/figures.json"} < set(stages["evaluation"].products)
        reads_test = {name for name, stage in stages.items() if not stage.splits}
        assert reads_test == {"evaluation", "report"}
        assert stages["judge"].settings["seed"] != stages["lung_heart_segmentor"].settings["seed"] == 3

    def test_both_mechanisms_side_by_side(self, chain):
        stages = {stage.name: stage for stage in chain.stages(["No-CFT", "Seg-CFT"], ["deformation", "hvae"])}
        assert "regressor" not in stages
        assert list(stages["evaluation"].inputs["methods"]) == ["No-CFT", "Seg-CFT, deformation", "Seg-CFT, hvae"]
        assert stages["seg_cft_hvae"].settings["deformation"] is False

    def test_variables_of_regions_make_it_positional(self, chain):
        chain = replace(chain, kind=KINDS["coronary"], positional=True)
        stages = {stage.name: stage for stage in chain.stages(["Reg-CFT", "Seg-CFT"], ["deformation"])}
        assert list(stages["evaluation"].inputs["methods"]) == ["Reg-CFT", "Pos-Seg-CFT"]
        assert stages["seg_cft_deformation"].follows(stages["plaque_lumen_segmentor"])
        overlaid = [name for name, stage in stages.items() if isinstance(stage.inputs.get("config_file"), list)]
        assert overlaid == ["dscm_pretraining", "seg_cft_deformation", "regressor", "reg_cft_deformation", "judge"]
        typed = stages["judge"].arguments()
        assert [Path(path).name for path in json.loads(typed[typed.index("--config_file") + 1])] == [
            "train.json",
            "coronary.json",
        ]

    def test_the_labels_choose_the_segmentor(self, tmp_path):
        from discs import disc_datalist  # here, because the driver of another test imports this module as a script

        bundles = Path(__file__).parents[1] / "bundles"
        discs = disc_datalist(tmp_path, training=4, test=1)
        for bundle, structures in {
            "lung_heart_segmentor": ["left_lung", "right_lung", "heart"],
            "plaque_lumen_segmentor": ["lumen", "calcified_plaque", "noncalcified_plaque"],
        }.items():
            labels = {name: value for value, name in enumerate(["background", *structures])}
            assert kind_of(replace(discs, labels=labels), bundles).segmentor == bundle
        with pytest.raises(ValueError, match=r"labels: found .*liver.*, expected those of a segmentor: .*left_lung"):
            kind_of(replace(discs, labels={"background": 0, "liver": 1}), bundles)

    def test_settings_reach_a_stage_or_its_family(self, chain):
        chain = replace(chain, settings={"seg_cft": {"max_epochs": 2}, "seg_cft_hvae": {"batch_size": 4}})
        stages = {stage.name: stage.settings for stage in chain.stages(["Seg-CFT"], ["deformation", "hvae"])}
        assert stages["seg_cft_deformation"]["max_epochs"] == stages["seg_cft_hvae"]["max_epochs"] == 2
        assert "batch_size" not in stages["seg_cft_deformation"] and stages["seg_cft_hvae"]["batch_size"] == 4
        with pytest.raises(ValueError, match=r"\['segmentr'\], expected some of"):
            replace(chain, settings={"segmentr": {"max_epochs": 2}}).stages(["Seg-CFT"], ["hvae"])

    @pytest.mark.parametrize(
        ("stage", "key", "message"),
        [
            ("judge", "max_epoch", "judge.max_epoch: found no 'max_epoch' in segmentor_evaluation/configs/train.json, "
             "expected perhaps 'max_epochs'"),
            ("seg_cft", "learning_rat", "set: seg_cft.learning_rat: .* expected perhaps 'learning_rate'"),
            ("seg_cft_hvae", "objectiv#others", "seg_cft_hvae.objectiv#others: .* expected perhaps 'objective'"),
            ("evaluation", "max_epochs", "'max_epochs' in segmentor_evaluation/configs/evaluate.json"),
            ("dscm_pretraining", "qqq::a", r"expected one of \[.*'batch_size'"),
        ],
    )  # fmt: skip
    def test_a_misspelt_setting_is_refused(self, chain, stage, key, message):
        with pytest.raises(ValueError, match=message):
            replace(chain, settings={stage: {key: 2}}).stages(["Seg-CFT"], ["hvae"])

    @pytest.mark.parametrize(
        ("stage", "key", "value", "message"),
        [
            ("evaluation", "interventions_per_case", 0, "interventions_per_case: found 0, expected a whole number"),
            ("reg_cft", "max_epochs", "", "reg_cft.max_epochs: found '', expected a whole number from 1 on"),
            ("judge", "device", "cuda:99", "judge.device: found 'cuda:99', expected a device that PyTorch has here: "),
            ("judge", "datalist", "b.json", r"judge: found \['datalist'\], expected settings that do not"),
            ("seg_cft", "output_dir", "elsewhere", r"seg_cft: found \['output_dir'\], expected settings that do not"),
        ],
    )  # fmt: skip
    def test_a_setting_that_would_end_a_later_stage_is_refused_at_the_start(self, chain, stage, key, value, message):
        with pytest.raises(ValueError, match=f"^set: .*{message}"):
            replace(chain, settings={stage: {key: value}}).stages(["Reg-CFT", "Seg-CFT"], ["hvae"])

    @pytest.mark.parametrize("key", ["network_def#hvae#beta", "network_def::hvae::beta", "train#trainer#amp"])
    def test_a_setting_below_the_top_of_a_config_is_taken(self, chain, key):
        made = replace(chain, settings={"dscm_pretraining": {key: 2}}).stages(["No-CFT"], ["hvae"])
        assert made[1].settings[key] == 2

    def test_a_setting_may_hold_commas(self):
        values = {"a": [2, [3, 4]], "b": {"heart_area": ["age", "sex"], "text": "x], y"}, "c": "plain"}
        typed = ",".join(f"dscm.net#{key}={json.dumps(value)}" for key, value in values.items())
        assert read_settings(f"judge.max_epochs=2,{typed}") == {
            "judge": {"max_epochs": 2},
            "dscm": {f"net#{key}": value for key, value in values.items()},
        }

    def test_the_hvae_suits_the_size_of_the_images(self, chain):
        def dscm(size):
            stages = {stage.name: stage for stage in replace(chain, size=size).stages(["No-CFT"], ["deformation"])}
            return stages["dscm_pretraining"]

        assert dscm((48, 64)).settings == dscm((64, 64)).settings == dscm((224, 224)).settings
        assert "network_def#hvae#strides" not in dscm((64, 64)).settings
        assert dscm((96, 64)).settings["network_def#hvae#strides"] == [2, 2, 2, 2, 2, [3, 2]]
        assert [path.name for path in dscm((224, 224)).inputs["config_file"]] == ["train.json", "image_size_224.json"]
        given = {"dscm_pretraining": {"network_def#hvae#strides": [4]}}
        assert replace(chain, settings=given, size=(96, 64)).stages(["No-CFT"], ["hvae"])[1].settings[
            "network_def#hvae#strides"
        ] == [4]

    def test_command_line_mistakes_are_one_line(self, tmp_path, capsys):
        for arguments, message in [
            (["run", "--datalist", "nowhere.json", "--output_dir", str(tmp_path)], "nowhere.json: no such datalist"),
            (["demo", str(tmp_path), "--set", "judge.max_epochs"], "expected STAGE.KEY=VALUE"),
            (["demo", str(tmp_path), "--mechanisms", "warp"], "mechanisms: found"),
            (["demo", str(tmp_path), "--kind", "knee"], "kind: found 'knee', expected one of"),
            (["demo", str(tmp_path), "--bundles", str(tmp_path)], "give --bundles"),
            (["demo", str(tmp_path), "--size", "big"], "size: found 'big', expected whole numbers, as 64"),
            (["demo", str(tmp_path), "--size", "64x64x"], "size: found '64x64x', expected whole numbers"),
            (["demo", str(tmp_path), "--size", "60,80"], "size: found '60,80', expected .*: a chest is square"),
            (["demo", str(tmp_path), "--size", "16"], "size is 16, expected 32 or more"),
            (["demo", str(tmp_path), "--kind", "coronary", "--size", "64"], "size: found '64', expected samples along"),
            (
                ["demo", str(tmp_path), "--kind", "coronary", "--size", "64x64"],
                "expected more samples along the vessel",
            ),
            (
                ["demo", str(tmp_path), "--kind", "coronary", "--size", "64x20"],
                "expected 64 or more along and 24 or more",
            ),
            (["demo", str(tmp_path), "--kind", "coronary", "--size", "128x32x32"], "size: found '128x32x32', expected"),
            (["demo", str(tmp_path), "--cout", "40"], "no option --cout; see python -m segcft_ext.chain demo --help"),
            (["run", "--datalist", "nowhere.json", "--mechanism=hvae"], "no option --mechanism;"),
            (["run", "--datalist", "d.json", "--output_dir", str(tmp_path), "runs"], "found 'runs', which belongs to"),
            (["demo", str(tmp_path), "--seed", "abc"], "seed: found 'abc', expected a whole number from 0 on"),
            (["demo", str(tmp_path), "--seed", "-1"], "seed: found -1, expected a whole number from 0 on"),
            (["demo", str(tmp_path / "run#2")], "output_dir: found .*run#2, expected a path without #"),
            (["demo", str(tmp_path / "100%")], r"100%/mlflow\.db: found % in the path of an MLflow store"),
        ]:
            with pytest.raises(SystemExit, match=message):
                chain.main(arguments)
            assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["2024", "1e3", "2_0", "a,b", "my runs", "True"])
def test_a_folder_is_named_as_it_is_typed(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    folders = []
    monkeypatch.setattr(chain, "_execute", lambda made, *_: folders.append(made.output))
    chain.main(["demo", folder])
    chain.main(["demo", "--output_dir", folder])
    assert folders == [tmp_path / folder] * 2


def test_settings_in_two_options_are_refused_since_fire_would_forget_the_first(tmp_path):
    given = ["demo", str(tmp_path), "--set", "judge.max_epochs=2", "--set=reg_cft.max_epochs=3"]
    with pytest.raises(SystemExit, match=r"^chain: set: found twice, expected once, as STAGE\.KEY=VALUE,STAGE"):
        chain.main(given)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("split", "use", "message"),
    [
        ("training", "guide", "training: found no cases of use 'guide', expected at least one"),
        ("training", "judge", "training: found no cases of use 'judge', expected at least one"),
        ("validation", None, "validation: found no cases, expected at least one"),
        ("test", None, "test: found no cases, expected at least one"),
    ],
)
def test_a_split_without_cases_is_refused_at_the_start(monkeypatch, tmp_path, split, use, message):
    from discs import disc_datalist

    path = disc_datalist(tmp_path / "data", training=4, test=1).path
    content = json.loads(path.read_text())
    content[split] = [case for case in content[split] if use and case["use"] != use]
    path.write_text(json.dumps(content))
    monkeypatch.setattr(chain, "kind_of", lambda *_: KINDS["chest"])  # which discs are none of
    with pytest.raises(SystemExit, match=rf"datalist\.json: {message}"):
        chain.main(["run", "--datalist", str(path), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("constant", "settings", "message"),
    [
        ("left_area", {}, r"datalist\.json: variable 'left_area': constant at 5 in all 8 training cases .*--set"),
        ("left_area", {"dscm_pretraining.variables": ["right_area"]}, "found .'right_area'., expected all of eval"),
        (
            "left_area",
            {"dscm_pretraining.variables": ["right_area"], "evaluation.interventions": ["right_area"]},
            "variable 'left_area': constant",  # by default the regressor's, too
        ),
        ("", {"dscm_pretraining.variables": ["left_aera"]}, "no variable 'left_aera'"),
        ("", {"evaluation.interventions": ["age"]}, "variables to intervene on: found .'age'."),
    ],
)
def test_variables_that_only_a_later_stage_would_refuse_are_refused_at_the_start(
    monkeypatch, tmp_path, constant, settings, message
):
    from discs import disc_datalist

    path = disc_datalist(tmp_path / "data", training=8, test=1).path
    content = json.loads(path.read_text())
    if constant:
        for case in content["training"]:
            case["variables"][constant] = 5.0
    path.write_text(json.dumps(content))
    monkeypatch.setattr(chain, "kind_of", lambda *_: KINDS["chest"])  # which discs are none of
    given = ["--set", ",".join(f"{key}={json.dumps(value)}" for key, value in settings.items())] if settings else []
    with pytest.raises(SystemExit, match=message):
        chain.main(["run", "--datalist", str(path), "--output_dir", str(tmp_path / "out"), *given])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["", "https://me:secret@tracking.example"])
def test_only_a_store_of_its_own_is_written_down(monkeypatch, tmp_path, given):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    monkeypatch.setattr(chain, "_headline", lambda path: "")
    seen = []
    monkeypatch.setattr(chain, "run_stages", lambda stages, log_dir, jobs, environment, script: seen.append(
        (environment.get("MLFLOW_TRACKING_URI"), " ".join(stage.command() for stage in stages))
    ))  # fmt: skip
    chain.main(["demo", str(tmp_path)])
    [(uri, commands)] = seen
    assert uri == (None if given else f"sqlite:///{tmp_path}/mlflow.db")
    assert "secret" not in commands and "tracking_uri" not in commands


def test_the_demos_of_two_kinds_do_not_share_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folders = []
    sizes = []
    monkeypatch.setattr(chain, "_execute", lambda made, *_: (folders.append(made.output), sizes.append(made.size)))
    chain.demo(size=96)
    chain.demo(kind="coronary")
    chain.demo("elsewhere", kind="coronary", size=(64, 32))
    chain.demo("elsewhere", size="96x96")
    assert sizes == [(96, 96), (128, 32), (64, 32), (96, 96)]
    assert folders == [tmp_path / "runs/demo", tmp_path / "runs/demo_coronary", *[tmp_path / "elsewhere"] * 2]
