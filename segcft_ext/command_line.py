"""What the command lines of this project have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

__all__ = ["check_options"]


def check_options(program: str, command: Callable[..., Any], given: Sequence[str]) -> None:
    """Refuse a misspelt option at once: Fire would do all the work first and complain afterwards.

    Args:
        program: what is typed before the options, for the message.
        command: the function whose parameters are the options.
        given: what was typed after the program.

    Raises:
        ValueError: names the option.
    """
    known = [*signature(command).parameters, "help"]
    for argument in given:
        option = argument.partition("=")[0]
        if option == "--":  # what follows are Fire's own flags
            return
        if option.startswith("--") and option[2:].replace("-", "_") not in known:
            raise ValueError(f"no option {option}; see {program} --help")
