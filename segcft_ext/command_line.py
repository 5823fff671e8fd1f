"""What the command lines of this project have in common."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

__all__ = ["check_booleans", "check_options", "read_names", "read_sizes"]

OPTION = re.compile("--|-[A-Za-z]")
SIZES = re.compile(r"\[?(\d+(?:[x,]\d+)*)\]?", re.ASCII | re.IGNORECASE)


def check_options(program: str, command: Callable[..., Any], given: Sequence[str]) -> None:
    """Refuse at once what Fire would refuse when all the work is done: a misspelt option, a word too many.

    As for Fire, one letter stands for the only option that begins with it, and one hyphen is as good as two. An option
    without a value is refused too, unless it is True or False.

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
    """Refuse options of a bundle that are to be True or False and are not: MONAI takes "false" for a text, hence true.

    Raises:
        ValueError: names the option.
    """
    for option, found in options.items():
        if found not in (True, False):  # or 1, or 0
            raise ValueError(f"{option}: found {found!r}, expected True or False")


def read_names(option: str, given: Any) -> list[str]:
    """Names from "a,b" or a sequence of them.

    Raises:
        ValueError: names the option and quotes what is none of these.
    """
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f'{option}: found {given!r}, expected names, as a,b or ["a", "b"]')
    return [name.strip() for name in names]


def read_sizes(given: Any) -> list[int]:
    """Whole numbers from 64, "96x64", "96,64" or a sequence of them.

    Raises:
        ValueError: quotes what is none of these.
    """
    text = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    found = SIZES.fullmatch(re.sub(r"\s", "", text))
    if found is None:
        raise ValueError(f"size: found {given!r}, expected whole numbers, as 64, 96x64 or 96,64")
    return [int(number) for number in re.split("[x,]", found[1].lower())]
