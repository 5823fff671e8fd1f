"""Running the commands of a bundle's documentation, as written, on small data."""

from __future__ import annotations

import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import monai.bundle
import pytest

PYTHON = ["python", "-m", "monai.bundle"]


def documented_commands(readme: Path) -> list[str]:
    """The commands of the fenced ``bash`` blocks, one for each line (a line that ends in a backslash goes on)."""
    blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_documented_commands(
    bundle: Path,
    variables: Mapping[str, str],
    small: Mapping[str, Sequence[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Run every command of ``docs/README.md`` in the bundle's folder, in order.

    ``python -m monai.bundle`` runs in this process, through the same command line, to spare the seconds that importing
    takes; anything else in a process of its own.

    Args:
        bundle: the bundle's folder; the commands write below it.
        variables: the shell variables that the documentation names, such as ``DATALIST``.
        small: arguments that make a stage small, added to the commands that use the config file of that name.
        monkeypatch: sets the folder and the environment.

    Returns:
        The commands.
    """
    monkeypatch.chdir(bundle)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    commands = documented_commands(bundle / "docs" / "README.md")
    for command in commands:
        words = [os.path.expandvars(word) for word in shlex.split(command)]
        assert not [word for word in words if "$" in word], f"{command}: a variable has no value here"
        for config, arguments in small.items():
            if f"configs/{config}" in command:
                words += arguments
        if words[:3] == PYTHON:
            run_in_process(words[3:])
        else:
            script = Path(sys.executable).with_name(words[0])
            done = subprocess.run([str(script), *words[1:]], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return commands


def run_documented_python(bundle: Path, names: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run every fenced ``python`` block of ``docs/README.md`` in the bundle's folder, in order.

    Args:
        bundle: the bundle's folder.
        names: what the documentation calls by a name, such as ``IMAGE``.
        monkeypatch: sets the folder.

    Returns:
        The number of blocks.
    """
    monkeypatch.chdir(bundle)
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        with kept_logging():
            exec(block, dict(names))
    return len(blocks)


def run_in_process(arguments: Sequence[str]) -> None:
    """``python -m monai.bundle <arguments>``."""
    with kept_logging(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(Path(monai.bundle.__file__).with_name("__main__.py")), *arguments])
        patch.setattr(sys, "path", list(sys.path))
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)


@contextmanager
def kept_logging() -> Iterator[None]:
    """Take back what a bundle's ``logging.conf`` sets for the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
