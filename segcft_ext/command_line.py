"""What the command lines of this project have in common."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

__all__ = ["OPTION", "check_booleans", "check_options", "read_names", "read_sizes", "read_whole", "run_command"]

Command = Callable[..., None]

OPTION = re.compile("--|-[A-Za-z]")
WHOLE = re.compile(r"-?\d+", re.ASCII)
SIZES = re.compile(r"\[?(\d+(?:[x,]\d+)*)\]?", re.ASCII | re.IGNORECASE)


def run_command(program: str, commands: Command | Mapping[str, Command], given: Sequence[str]) -> None:
    """Call the command that was typed; every value is passed as text, so that a folder named 1.10 stays a name.

    Args:
        program: what is typed before the arguments, ``python -m data_prep``.
        commands: the only command, or commands by name.
        given: what was typed after the program.

    Raises:
        ValueError: as :func:`check_options`, and what the command raises.
    """
    import fire  # which the bundles, with their own command line, do not need

    typed = 0 if callable(commands) else 1  # words before the command's own arguments
    command = commands if callable(commands) else commands.get(given[0]) if given else None
    if command is not None:
        check_options(" ".join([program, *given[:typed]]), command, given[typed:])
    quoted = [*given[:typed], *map(_quoted, given[typed:])]
    fire.Fire(commands, command=quoted, name=program.removeprefix("python -m "))


def _quoted(argument: str) -> str:
    """The argument with its value in quotes, so that Fire passes it on as text."""
    if not argument.startswith("-"):
        return repr(argument)
    flag, equals, value = argument.partition("=")
    return f"{flag}={value!r}" if equals else argument


def check_options(program: str, command: Callable[..., Any], given: Sequence[str]) -> None:
    """Refuse at once what Fire would refuse only after all the work is done: a misspelt option, a word too many.

    As in Fire, one letter stands for the only option that begins with it, and one hyphen is as good as two. An option
    without a value is also refused, unless it is boolean.

    Args:
        program: what is typed before the options, for the message.
        command: the function whose parameters are the options.
        given: what was typed after the program.

    Raises:
        ValueError: names the option or the word.
    """
    known, hint = signature(command).parameters, f"see {program} --help"
    rest = list(itertools.takewhile(lambda argument: argument != "--", given))  # what follows are Fire's own flags
    words, named = [], set()
    while rest:
        option, equals, _ = (argument := rest.pop(0)).partition("=")
        if not OPTION.match(option):
            words.append(argument)
            continue
        name = option.lstrip("-").replace("-", "_")
        if name in ("help", "h"):
            continue
        if name not in known:
            meant = [parameter for parameter in known if len(name) == 1 and parameter.startswith(name)]
            if len(meant) != 1:
                found = f"option {option} may be any of {meant}" if meant else f"no option {option}"
                raise ValueError(f"{found}; {hint}")
            name = meant[0]
        named.add(name)
        if not equals and rest and not OPTION.match(rest[0]):
            rest.pop(0)
        elif not equals and not isinstance(known[name].default, bool):
            raise ValueError(f"option {option}: found no value; {hint}")
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in known.values()):
        return
    places = [p for p in known.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in named]
    if stray := words[len(places) :]:
        raise ValueError(f"found {stray[0]!r}, which belongs to no option (are there quotes missing?); {hint}")


def check_booleans(**options: Any) -> None:
    """Refuse boolean options of a bundle that are neither True nor False: to MONAI, "false" is text and hence true.

    Raises:
        ValueError: names the option.
    """
    for option, found in options.items():
        if found not in (True, False):  # or 1, or 0
            raise ValueError(f"{option}: found {found!r}, expected True or False")


def read_names(option: str, given: Any) -> list[str]:
    """Read names from "a,b", a JSON list or a sequence.

    Raises:
        ValueError: names the option and quotes what is none of these.
    """
    names = given
    if isinstance(given, str):
        try:
            names = json.loads(given) if given.lstrip().startswith("[") else given.split(",")
        except json.JSONDecodeError:
            names = None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f'{option}: found {given!r}, expected names, as a,b or ["a", "b"]')
    return [name.strip() for name in names]


def read_sizes(given: Any) -> list[int]:
    """Read whole numbers from 64, "96x64", "96,64" or a sequence of them.

    Raises:
        ValueError: quotes what is none of these.
    """
    text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    found = SIZES.fullmatch(re.sub(r"\s", "", text))
    if found is None:
        raise ValueError(f"size: found {given!r}, expected whole numbers, as 64, 96x64 or 96,64")
    return [int(number) for number in re.split("[x,]", found[1].lower())]


def read_whole(option: str, given: Any, lowest: int | None = None) -> int:
    """Read a whole number, also from text.

    Raises:
        ValueError: when it is not a whole number, or less than ``lowest``; names the option and quotes what was found.
    """
    number = int(str(given)) if WHOLE.fullmatch(str(given)) else None
    if number is None or (lowest is not None and number < lowest):
        found, limit = repr(given) if number is None else number, "" if lowest is None else f" from {lowest} on"
        raise ValueError(f"{option}: found {found}, expected a whole number{limit}")
    return number
