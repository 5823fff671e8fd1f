"""Working on cases in this process, in processes of this machine, or on a Dask cluster.

One function of a case and its id is called for every case; the result does not depend on where. Only a bounded number
of cases is under way at any time and only their records come back, so memory does not grow with the number of cases. On
a cluster every worker must see the same folders under the same paths, and have the same version of this package
installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_all_start_methods, get_context, parent_process
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch

from data_prep.cases import Item

__all__ = ["IN_FLIGHT", "Work", "WorkersLost", "default_workers", "run_cases"]

Work = Callable[[Item, str], str]
Batch = list[tuple[Item, str]]
Submit = Callable[[Batch], "Future[list[str]]"]

IN_FLIGHT = 1000
"""Batches handed out at a time: more than a cluster has cores, yet so few that they take little memory."""

FEW = 50
"""Cases that one process finishes in the time in which another one starts."""

MOST_WORKERS = 4
"""Largest default number of processes: each may need a GB of memory."""

LARGEST_BATCH = 64
"""Successive cases of one patient, up to this number, go to one process, which reads what they share only once."""


class WorkersLost(RuntimeError):
    """The processes that were to do the work are gone; memory that ran out is the usual cause."""


def default_workers(cases: int) -> int:
    """Number of processes for a number of cases: one for each core, at most four, and fewer for few cases."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, cases // FEW))


def run_cases(
    work: Work, cases: Iterable[tuple[Item, str]], workers: int = 1, scheduler: str | None = None
) -> Generator[str, None, None]:
    """The records of all cases, in the order in which they are finished.

    Args:
        work: makes the record of a case; pickled once to every process.
        cases: items and their ids.
        workers: processes of this machine; with one, everything runs in this process.
        scheduler: address of a Dask scheduler, whose workers are used instead.

    Raises:
        OSError: when a case's outputs cannot be written, or the scheduler does not answer.
        ValueError: when Dask is asked for and not installed.
        WorkersLost: when the processes die, or the cluster goes away.
    """
    if scheduler is None and workers == 1:
        threads = torch.get_num_threads()
        _prepare_process()
        try:
            for item, identifier in cases:
                yield work(item, identifier)
        finally:
            torch.set_num_threads(threads)
        return
    finished: SimpleQueue[Future[list[str]]] = SimpleQueue()
    under_way = 0
    executor: AbstractContextManager[Submit] = _cluster(work, scheduler) if scheduler else _processes(work, workers)
    with executor as submit:
        for batch in _batches(cases):
            if under_way == IN_FLIGHT:
                yield from finished.get().result()
                under_way -= 1
            submit(batch).add_done_callback(finished.put)
            under_way += 1
        for _ in range(under_way):
            yield from finished.get().result()


def _batches(cases: Iterable[tuple[Item, str]]) -> Iterator[Batch]:
    batch: Batch = []
    for item, identifier in cases:
        if batch:
            last = batch[-1][0]
            same = item.patient is not None and (item.source, item.patient) == (last.source, last.patient)
            if not same or len(batch) == LARGEST_BATCH:
                yield batch
                batch = []
        batch.append((item, identifier))
    if batch:
        yield batch


@contextmanager
def _processes(work: Work, workers: int) -> Iterator[Submit]:
    # Forking a process in which torch has started threads can hang; a server that has only imported it is safe to fork.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["data_prep.collect"])
    pool = ProcessPoolExecutor(workers, context, initializer=_start_process, initargs=(work,))
    try:
        yield lambda batch: pool.submit(_work_in_process, batch)
    except BrokenProcessPool as error:
        raise WorkersLost("a process died, as when memory runs out") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _cluster(work: Work, address: str) -> Iterator[Submit]:
    try:
        from distributed import CancelledError, Client, KilledWorker
    except ImportError:
        raise ValueError('scheduler: Dask is not installed; pip install "segcft-ext[dask]"') from None
    with Client(address, set_as_default=False) as client:
        there = client.scatter(work, broadcast=True, hash=False)
        executor = client.get_executor(pure=False)
        try:
            yield lambda batch: executor.submit(_work_there, there, batch)
        except (CancelledError, KilledWorker) as error:
            raise WorkersLost(f"the cluster's workers died ({error})") from error
        finally:
            executor.shutdown(wait=False)


_work: Work | None = None


def _prepare_process() -> None:
    """Make this process fast at working on one case after another.

    A case is small: more threads would only busy-wait for each other. And Linux's C library returns freed memory to the
    system beyond twice the largest block that it has seen freed so far (up to 32 MiB). Getting it back for the next
    case costs a tenth of the time of a large radiograph, so such a block is allocated and freed here.
    """
    torch.set_num_threads(1)
    np.empty(2**25 - 2**14, np.uint8)


def _start_process(work: Work) -> None:
    global _work
    _prepare_process()
    _work = work
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed; otherwise it would wait for its next case for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_in_process(batch: Batch) -> list[str]:
    assert _work is not None
    return _work_there(_work, batch)


def _work_there(work: Work, batch: Batch) -> list[str]:
    return [work(item, identifier) for item, identifier in batch]
