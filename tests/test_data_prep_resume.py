"""Runs that are stopped: killed, out of disk space, or by --strict."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
from drawn_chest import write_case
from PIL import Image

from data_prep import executors
from data_prep.__main__ import main
from data_prep.cases import Rejected
from data_prep.collect import Run, prepare
from data_prep.folder import FolderSource
from data_prep.journal import Journal, _program_digest, open_journal
from data_prep.masks import MaskFolders
from segcft_ext.datalist import read_datalist

CASES = 40
MASKS = MaskFolders({name: f"masks/{name}" for name in ("left_lung", "right_lung", "heart")})


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    """Forty cases, two of which cannot be used."""
    root = tmp_path_factory.mktemp("chests")
    for i in range(CASES):
        write_case(root / "clinic", f"case{i}", seed=i)
    (root / "clinic" / "masks" / "heart" / "case3.png").unlink()
    (root / "clinic" / "images" / "case5.png").write_bytes(b"no picture")
    return root


def arguments(root, out, *options):
    return ["folder", str(root / "clinic"), "--out", str(out), "--size", "24", "--name", "clinic", *options]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(out):
    journal = out / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def start(*args, target=main):
    """A real process, forked by a server that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.collect"])
    process = context.Process(target=target, args=(list(args),))
    process.start()
    return process


def killed_after(records, seconds, arguments):
    """A run that is killed ``seconds`` after it has noted ``records`` cases, however busy the machine is."""
    append = Journal.append
    noted = itertools.count(1)

    def count(journal, line):
        kept = append(journal, line)
        if next(noted) == records:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        return kept

    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    Journal.append = count  # in this process alone
    main(arguments)


def wait_for(condition, process):
    until = time.monotonic() + 60
    while not condition() and process.is_alive():
        assert time.monotonic() < until
        time.sleep(0.0005)


def test_a_run_that_is_killed_again_and_again_ends_like_an_uninterrupted_one(chests, tmp_path):
    out, draw = tmp_path / "killed", random.Random(0)
    for records in (3, 10, 12, 8):
        process = start(*arguments(chests, out), target=partial(killed_after, records, draw.uniform(1e-6, 0.004)))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "datalist.json").exists()
    process = start(*arguments(chests, out))  # and perhaps once while it draws
    wait_for((out / "datalist.json").exists, process)
    process.kill()
    process.join()
    (out / "images" / "0123456789abcdef.01234567.tmp").write_bytes(b"half a pict")
    main(arguments(chests, out))

    salt = json.loads((tmp_path / "killed.mapping.json").read_text())["salt"]
    main(arguments(chests, tmp_path / "whole", "--salt", salt))
    assert contents(out) == contents(tmp_path / "whole")
    assert len(contents(out)) == 2 * (CASES - 2) + 4
    assert (tmp_path / "killed.mapping.json").read_bytes() == (tmp_path / "whole.mapping.json").read_bytes()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see processes")
def test_processes_end_with_the_one_that_started_them(chests, tmp_path, no_pictures):
    process = start(*arguments(chests, tmp_path / "out", "--workers", "2"))
    wait_for(lambda: finished(tmp_path / "out") > 2, process)
    started = descendants(process.pid)
    process.kill()
    process.join()
    assert len(started) >= 2
    until = time.monotonic() + 60  # on a busy machine; they end at once
    while any(os.path.exists(f"/proc/{pid}") for pid in started):
        assert time.monotonic() < until
        time.sleep(0.02)
    main(arguments(chests, tmp_path / "out"))
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def descendants(pid):
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue  # ended meanwhile
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


@pytest.fixture
def interrupted(chests, tmp_path, no_pictures, monkeypatch):
    """A run that found no room for the eleventh picture; gives the names of the cases loaded after it."""
    replace, room = os.replace, [10]

    def full(scratch, path):
        if str(path).endswith(".png"):
            room[0] -= 1
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        replace(scratch, path)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SystemExit, match=r"images/\S+: No space left on device; [0-9]+ of 40 cases are finished"):
        main(arguments(chests, tmp_path / "out"))
    room[0] = 10**6
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert finished(tmp_path / "out") == 5 + sum(reason != "" for reason in journalled(tmp_path / "out").values())
    loaded = []
    load = FolderSource.load
    monkeypatch.setattr(FolderSource, "load", lambda self, item: loaded.append(item.name) or load(self, item))
    return loaded


def journalled(out):
    lines = (out / "journal.jsonl").read_text().splitlines()
    return {record["id"]: record["outcome"]["reason"] for record in map(json.loads, lines)}


def test_a_full_disk_costs_nothing_that_was_done(chests, tmp_path, interrupted, capsys):
    done = finished(tmp_path / "out")
    main(arguments(chests, tmp_path / "out"))
    assert len(interrupted) == CASES - done
    assert f"{done} cases were finished before" in capsys.readouterr().out


def test_a_torn_or_damaged_journal_is_no_obstacle(chests, tmp_path, interrupted):
    journal = tmp_path / "out" / "journal.jsonl"
    done = finished(tmp_path / "out")
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([b"\0" * 40 + b"\n", b"[1]\n", *rest]) + first[:30])
    main(arguments(chests, tmp_path / "out"))
    assert len(interrupted) == CASES - done + 1


@pytest.mark.parametrize("options", [["--size", "32"], ["--unit", "percent"], ["--salt", "another"]])
def test_other_settings_take_nothing_over(chests, tmp_path, interrupted, options):
    main(arguments(chests, tmp_path / "out", *options))
    assert len(interrupted) == CASES


def test_another_program_takes_nothing_over(chests, tmp_path, interrupted, monkeypatch):
    monkeypatch.setattr("data_prep.journal._program_digest", lambda: "changed")
    main(arguments(chests, tmp_path / "out"))
    assert len(interrupted) == CASES


@pytest.mark.parametrize("module", ["measurements", "presentation"])
def test_what_decides_how_files_become_cases_is_part_of_the_program(tmp_path, monkeypatch, module):
    before = _program_digest.__wrapped__()
    (tmp_path / "changed.py").write_text("changed")
    monkeypatch.setattr(f"segcft_ext.{module}.__file__", str(tmp_path / "changed.py"))
    assert _program_digest.__wrapped__() != before


def test_what_changed_since_is_done_again(chests, tmp_path, interrupted):
    out = tmp_path / "out"
    names = {i: case["name"] for i, case in json.loads((tmp_path / "out.mapping.json").read_text())["cases"].items()}
    accepted = [names[i] for i, reason in journalled(out).items() if not reason]
    undone = CASES - finished(out)
    for case, change in zip(accepted, ("image", "mask", "output")):
        if change == "output":
            path = out / "images" / f"{next(i for i in names if names[i] == case)}.png"
            path.write_bytes(path.read_bytes()[:50])
        else:
            path = chests / "clinic" / ("images" if change == "image" else "masks/heart") / f"{case}.png"
            os.utime(path, (1, 1))
    main(arguments(chests, out))
    assert len(interrupted) == undone + 3 and set(accepted[:3]) < set(interrupted)
    for entry in read_datalist(out / "datalist.json").items("test"):
        assert np.asarray(Image.open(entry["image"])).shape == (24, 24)


def test_strict_stops_at_a_rejected_case_and_goes_on_once_it_is_repaired(chests, tmp_path, no_pictures, capsys):
    shutil.copytree(chests, tmp_path / "mine")
    command = arguments(tmp_path / "mine", tmp_path / "out", "--strict")
    for _ in range(2):
        with pytest.raises(
            SystemExit, match=r"strict: case [0-9a-f]{16} of clinic is rejected as missing_mask: .*heart"
        ):
            main(command)
    done = finished(tmp_path / "out")
    assert 0 < done < CASES and not (tmp_path / "out" / "datalist.json").exists()
    for number in (3, 5):
        write_case(tmp_path / "mine" / "clinic", f"case{number}", seed=number)
    main(command)
    assert f"{done - 1} cases were finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="strict: found 'yes', expected --strict alone"):
        main([*command, "yes"])


@pytest.mark.parametrize("reason", ["no_decoder", "unreadable"])
def test_strict_goes_on_once_the_machine_is_repaired(chests, tmp_path, no_pictures, monkeypatch, capsys, reason):
    def load(self, item):
        if item.name == "case12":
            raise Rejected(reason)
        return healthy(self, item)

    healthy = FolderSource.load
    shutil.copytree(chests, tmp_path / "mine")
    for number in (3, 5):
        write_case(tmp_path / "mine" / "clinic", f"case{number}", seed=number)
    command = arguments(tmp_path / "mine", tmp_path / "out", "--strict")
    with monkeypatch.context() as machine:
        machine.setattr(FolderSource, "load", load)
        with pytest.raises(SystemExit, match=f"is rejected as {reason}"):
            main(command)
    done = finished(tmp_path / "out")
    main(command)
    assert f"{done - 1} cases were finished before" in capsys.readouterr().out


def test_a_read_error_names_the_file_of_the_source(chests, tmp_path, monkeypatch):
    def load(self, item):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/clinic/case7.png")

    monkeypatch.setattr(FolderSource, "load", load)
    with pytest.raises(SystemExit, match=r"data_prep: /clinic/case7\.png: Input/output error; 0 of 40 cases"):
        main(arguments(chests, tmp_path / "out"))


@pytest.mark.parametrize("blocked", ["out", "out/images", "names"])
def test_where_nothing_can_be_written_no_work_is_done(chests, tmp_path, monkeypatch, blocked):
    monkeypatch.setattr(FolderSource, "load", lambda self, item: pytest.fail("a case was loaded"))
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where a folder is due")
    with pytest.raises(SystemExit, match=f"{blocked}.*: cannot be written to"):
        main(arguments(chests, tmp_path / "out", "--mapping", str(tmp_path / "names" / "mapping.json")))


def test_two_runs_do_not_write_to_one_folder(chests, tmp_path):
    with (
        open_journal(tmp_path),
        pytest.raises(ValueError, match="another run is writing there"),
    ):
        prepare(FolderSource([chests / "clinic"], "images", MASKS, (24, 24)), Run(tmp_path))


def test_processes_that_die_are_told(chests, tmp_path, monkeypatch):
    source = FolderSource([chests / "clinic"], "images", MASKS, (24, 24))
    with pytest.raises(executors.WorkersLost, match="a process died"):
        list(executors.run_cases(die, [(source.items[0], "a")], workers=2))


def die(item, identifier):
    os._exit(3)
