"""Running the stages that are due, each after those that it depends on, a few at a time, with progress on the screen.

A stage's output goes to a log of the same name. When a stage fails, the others are stopped; they can be resumed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segcft_ext.stages import RECORD, Digests, Stage

__all__ = ["StageError", "run_stages"]

POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 60.0
PATIENCE_SECONDS = 10.0
TAIL_LINES = 25


class StageError(RuntimeError):
    """A stage that cannot start or has failed; the message names the stage, its log and the log's end."""


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    shown: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def run_stages(
    stages: Sequence[Stage],
    log_dir: Path,
    jobs: int = 2,
    environment: Mapping[str, str] | None = None,
    script: Path | None = None,
) -> None:
    """Run the stages that are not complete.

    Args:
        stages: the stages, in any order; each waits for those that make its inputs.
        log_dir: folder of the logs, ``<log_dir>/<stage>.log``.
        jobs: number of stages that may run at a time.
        environment: environment variables for the commands, on top of this process's own.
        script: file to write the commands to, with these variables.

    Raises:
        StageError: when an input is missing that no stage makes, a stage fails, stages wait for each other, or another
            process is running stages with this ``log_dir``.
        ValueError: when ``jobs`` is less than 1.
    """
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs: found {jobs!r}, expected 1 or more")
    _check_inputs(stages)
    log_dir.mkdir(parents=True, exist_ok=True)
    with _lock(log_dir / "lock") as lock:
        if script is not None:
            _write_commands(script, stages, environment or {})
        _run(stages, _Launcher(log_dir, {**os.environ, **(environment or {})}, lock), jobs)


def _run(stages: Sequence[Stage], launcher: _Launcher, jobs: int) -> None:
    digests, screen = Digests(), _Screen(max(len(stage.name) for stage in stages))
    pending, running = list(stages), list[_Running]()
    try:
        while pending or running:
            unfinished = [*pending, *(run.stage for run in running)]
            ready = [stage for stage in pending if not any(stage.follows(other) for other in unfinished)]
            if not ready and not running:
                raise StageError(f"stages that wait for each other: {[stage.name for stage in pending]}")
            for stage in ready[: jobs - len(running)]:
                pending.remove(stage)
                state = stage.state(digests)
                if state == "complete":
                    screen.line(stage.name, _skipped(stage))
                    continue
                resume = state == "interrupted"
                screen.line(stage.name, _resumed(stage) if resume else state.removeprefix("due: "))
                screen.text(f"  $ {stage.command(resume)}")
                stage.start(digests, resume)
                running.append(launcher.start(stage, resume))
            screen.show(running)
            time.sleep(POLL_SECONDS if running else 0)
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                _conclude(run, digests, screen)
    finally:
        screen.clear()
        _stop(running)


def _skipped(stage: Stage) -> str:
    if stage.by_other_code():
        return f"complete, by other code than this: skipped; delete {stage.folder / RECORD} to make it anew"
    return "complete, inputs unchanged: skipped"


def _resumed(stage: Stage) -> str:
    return "resumed; it began with other code than this" if stage.by_other_code() else "resumed"


def _check_inputs(stages: Sequence[Stage]) -> None:
    for stage in stages:
        for file in stage.files():
            if not file.is_file() and not any(other.makes(file) for other in stages):
                raise StageError(f"{stage.name}: no such file: {file}")


def _write_commands(path: Path, stages: Sequence[Stage], environment: Mapping[str, str]) -> None:
    lines = ["#!/usr/bin/env bash", "# What the chain runs; stage by stage, from the start.", "set -e"]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    path.write_text("\n".join([*lines, *(stage.command() for stage in stages)]) + "\n", encoding="utf-8")


@contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Hold a lock on a file; passed on to child processes, it is held until the last of them has ended."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"another run is at work in {path.parent.parent}") from None
        yield file.fileno()


@dataclass(frozen=True)
class _Launcher:
    log_dir: Path
    environment: Mapping[str, str]
    lock: int

    def start(self, stage: Stage, resume: bool) -> _Running:
        log = self.log_dir / f"{stage.name}.log"
        with log.open("ab" if resume else "wb") as file:
            file.write(f"$ {stage.command(resume)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                [sys.executable, *stage.arguments(resume)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=[self.lock],
                preexec_fn=_end_with_parent,
            )
        now = time.monotonic()
        return _Running(stage, process, log, now, now)


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, even by being killed, so that a new run can resume."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _conclude(run: _Running, digests: Digests, screen: _Screen) -> None:
    name, code = run.stage.name, run.process.returncode
    missing = [] if code else run.stage.finish(digests, run.seconds)
    if code or missing:
        how = f"ended without writing {', '.join(missing)}" if missing else _ending(code)
        tail = "\n".join(f"  | {line}" for line in _lines(run.log)[-TAIL_LINES:])
        raise StageError(
            f"stage {name} {how} after {_clock(run.seconds)}; the end of its log:\n{tail}\n  log: {run.log}"
        )
    screen.line(name, f"done in {_clock(run.seconds)}")


def _stop(running: Sequence[_Running]) -> None:
    # SIGINT, as from Ctrl-C, lets a training close its MLflow run. A script's background processes ignore it.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for run in running:
        run.process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
    for run in running:
        try:
            run.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()


class _Screen:
    """Prints lines about the stages, and the progress of each: redrawn in place on a terminal, else once a minute."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.live = sys.stdout.isatty()
        self.drawn = 0

    def line(self, name: str, message: str) -> None:
        self.text(f"{time.strftime('%H:%M:%S')}  {name:{self.width}}  {message}")

    def text(self, text: str) -> None:
        self.clear()
        print(text, flush=True)

    def clear(self) -> None:
        if self.drawn:
            print(f"\x1b[{self.drawn}A\x1b[J", end="", flush=True)
        self.drawn = 0

    def show(self, running: Sequence[_Running]) -> None:
        now = time.monotonic()
        if self.live:
            columns = shutil.get_terminal_size().columns - 1
            lines = [self._progress(run)[:columns] for run in running]
            self.clear()
            print("".join(f"{line}\n" for line in lines), end="", flush=True)
            self.drawn = len(lines)
            return
        for run in running:
            if now - run.shown > HEARTBEAT_SECONDS:
                run.shown = now
                print(self._progress(run), flush=True)

    def _progress(self, run: _Running) -> str:
        lines = _lines(run.log)
        bar = next((line for line in reversed(lines) if re.search(r"\d+%\|", line)), "starting")
        return f"{_clock(run.seconds):>8}  {run.stage.name:{self.width}}  {bar}"


def _lines(log: Path) -> list[str]:
    """The last lines of a log; a progress bar that is redrawn in place counts as one line, with its last state."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line.strip()]


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
