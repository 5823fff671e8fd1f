"""The outcome is the same wherever cases are worked on; a Dask cluster within this process stands for a real one."""

import errno
import os
import sys

import pytest
from drawn_chest import write_case

from data_prep.__main__ import main
from data_prep.executors import default_workers

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    root = tmp_path_factory.mktemp("chests")
    for i in range(12):
        write_case(root / "clinic", f"case{i}", seed=i)
    (root / "clinic" / "masks" / "heart" / "case3.png").unlink()
    return root / "clinic"


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    options = {"processes": False, "protocol": "tcp://", "dashboard_address": None, "silence_logs": "ERROR"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        yield cluster


def run(chests, out, *options):
    main(["folder", str(chests), "--out", str(out), "--size", "24", "--salt", "s", "--name", "clinic", *options])
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_cluster_gives_the_same_bytes(chests, tmp_path, cluster):
    here, there = run(chests, tmp_path / "a"), run(chests, tmp_path / "b", "--scheduler", cluster.scheduler_address)
    assert here == there and len(here) == 2 * 11 + 2


def test_many_cases_have_a_process_for_each_core_and_few_have_none(chests, tmp_path, monkeypatch):
    for cores, cases, expected in [(2, 0, 1), (2, 99, 1), (2, 100, 2), (64, 149, 2), (64, 160_000, 4), (1, 500, 1)]:
        with monkeypatch.context() as machine:
            machine.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
            assert default_workers(cases) == expected
    asked = []
    monkeypatch.setattr("data_prep.collect.default_workers", lambda cases: asked.append(cases) or 1)
    run(chests, tmp_path / "a")
    run(chests, tmp_path / "b", "--workers", "1")
    assert asked == [12]


def test_few_cases_under_way_are_enough(chests, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("data_prep.executors.IN_FLIGHT", 2)
    assert run(chests, tmp_path / "a") == run(chests, tmp_path / "b", "--scheduler", cluster.scheduler_address)


def test_a_full_disk_of_a_cluster_is_told_and_costs_nothing(chests, tmp_path, cluster, monkeypatch):
    def full(path, array, spacing):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.outcomes.write_array", full)
        with pytest.raises(SystemExit, match=r"b: No space left on device; [01] of 12 cases are finished and kept"):
            run(chests, tmp_path / "b", "--scheduler", cluster.scheduler_address)
    assert run(chests, tmp_path / "a") == run(chests, tmp_path / "b", "--scheduler", cluster.scheduler_address)


def test_without_dask_the_error_says_what_to_install(chests, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit, match=r"scheduler: Dask is not installed; pip install .segcft-ext\[dask\]"):
        run(chests, tmp_path / "b", "--scheduler", "tcp://localhost:1")
