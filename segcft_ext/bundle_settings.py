"""Refusing settings of a bundle before anything is run.

Those whose names are in no config MONAI would silently ignore; counts below 1 and devices that are not there would end
in an error that does not name the setting.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from segcft_ext.command_line import OPTION, read_whole

__all__ = ["check_names", "check_settings", "check_values"]

PROGRAM = ("monai", "bundle", "__main__.py")
COUNTS = ("max_epochs", "batch_size", "val_interval", "figure_interval", "interventions_per_case")


def check_settings() -> None:
    """Refuse options of ``python -m monai.bundle run`` whose first part is a name that no config has.

    Also refused are counts (:data:`COUNTS`) that are no whole numbers from 1 on, and devices that PyTorch does not have
    here. The configs themselves call this function. In any other program it does nothing.

    Raises:
        SystemExit: names the setting, and the configs with the name that may have been meant, or the value.
    """
    if Path(sys.argv[0]).parts[-3:] != PROGRAM:
        return
    options = _options(sys.argv[1:])
    if "args_file" in options:
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    configs = options.get("config_file", [])
    known = {"_meta_", *signature(run).parameters, *(_tracking() if "tracking" in options else ())}
    given = " ".join(map(str, options.values()))
    known |= {name for name in map(_first, options) if f"@{name}" in given}
    try:
        check_names(options, configs.split(",") if isinstance(configs, str) else configs, known)
        check_values(options)
    except ValueError as error:
        sys.exit(f"monai.bundle: {error}")


def check_names(settings: Iterable[str], configs: Sequence[Any], known: Iterable[str] = (), said: str = "--") -> None:
    """Refuse settings whose first part is neither known nor at the top of any config.

    Args:
        settings: as they are typed, such as ``objective#paint``.
        configs: paths of the configs.
        known: further names that are accepted.
        said: prefix of a setting in the message.

    Raises:
        ValueError: names the setting, the configs, and the name that may have been meant.
    """
    top = sorted({_first(key) for path in configs for key in ConfigParser.load_config_file(str(path).strip())})
    for key in settings:
        if (first := _first(key)) not in {*top, *known}:
            near = difflib.get_close_matches(first, top, n=1)
            expected = f"perhaps {near[0]!r}" if near else f"one of {top}"
            files = " or ".join("/".join(Path(str(path)).parts[-3:]) for path in configs)
            raise ValueError(f"{said}{key}: found no {first!r} in {files}, expected {expected}")


def check_values(settings: Mapping[str, Any], said: str = "--") -> None:
    """Refuse counts (:data:`COUNTS`) that are no whole numbers from 1 on, and devices that PyTorch does not have here.

    Args:
        settings: values by setting.
        said: prefix of a setting in the message.

    Raises:
        ValueError: names the setting and the value.
    """
    for key, value in settings.items():
        name = re.split("#|::", key)[-1]
        if str(value).startswith(("$", "@")):
            continue  # an expression, which MONAI evaluates later
        if name in COUNTS:
            read_whole(f"{said}{key}", value, 1)
        if name == "device":
            try:
                torch.empty(0, device=value)
            except (RuntimeError, AssertionError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"{said}{key}: found {value!r}, expected a device that PyTorch has here: {reason}"
                ) from error


def _first(key: str) -> str:
    return re.split("#|::", key)[0]


def _tracking() -> set[str]:
    """The settings that MONAI's own experiment tracking reads."""
    programs: Mapping[str, Any] = DEFAULT_EXP_MGMT_SETTINGS
    return {name for settings in programs.values() for name in settings["configs"]}


def _options(given: Sequence[str]) -> Mapping[str, Any]:
    """Options and their values, parsed as Fire, which MONAI uses, parses them."""
    from fire.parser import DefaultParseValue

    options: dict[str, Any] = {}
    rest = list(given)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if OPTION.match(option):
            if not equals and rest and not OPTION.match(rest[0]):
                value = rest.pop(0)
            options[option.lstrip("-").replace("-", "_")] = DefaultParseValue(value)
    return options
