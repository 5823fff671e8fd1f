"""The command line: ``python -m data_prep folder …``, ``padchest``, ``ccta``, ``phantom``, ``regions``, ``inspect``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.commands import ccta, folder, padchest, phantom
from data_prep.executors import WorkersLost
from data_prep.inspection import write_inspection
from data_prep.label_faults import FAULTS
from data_prep.options import read_region_definition
from data_prep.pictures import draw_variables
from data_prep.regions import derive_regions
from segcft_ext.command_line import read_names, read_whole, run_command
from segcft_ext.datalist import read_datalist


def regions(
    datalist: str,
    *,
    out: str,
    names: Any = None,
    boundaries: Any = None,
    of: str = "image",
    axis: int = 0,
    structures: Any = None,
) -> None:
    """Derive a datalist with one variable for each structure and region from the DATALIST of any source.

    Areas are measured again on the stored label maps, in the same units. Everything else is kept, and the new datalist
    refers to the images where they are.

    Examples:

        python -m data_prep regions vessels/datalist.json --out vessels_thirds/datalist.json

        python -m data_prep regions chests/datalist.json --of structure --structures left_lung,right_lung
        --out chests_zones/datalist.json

    Args:
        datalist: the datalist.json to start from.
        out: the new datalist.json, in a folder of its own.
        names: names of the regions along the axis, "proximal,mid,distal" by default, "upper,middle,lower" with --of
            structure.
        boundaries: boundaries of the regions as rising fractions, "0,0.5,1"; equal parts by default.
        of: what the boundaries are fractions of: the length of the "image" along the axis (straightened vessels), or
            the extent of each factual "structure" along it (zones of a lung).
        axis: image axis that the regions follow, counted from 0; in radiographs, 0 runs downwards.
        structures: structures to divide, "left_lung,right_lung"; by default all that have an area. The others keep
            their whole areas.
    """
    definition = read_region_definition("names", names, boundaries, of, read_whole("axis", axis))
    divided = None if structures is None else read_names("structures", structures)
    derived = derive_regions(datalist, out, definition, divided)
    draw_variables(derived, derived.path.with_name("variables.png"))
    regional = [variable.name for variable in derived.variables if variable.region]
    print(f"{len(regional)} regional variables: {', '.join(regional)}")
    if derived.truth is None and read_datalist(datalist, check_files=False).truth is not None:
        print("left out: truth (its renderer does not know regions)")
    print(f"datalist: {derived.path}")


def inspect(datalist: str, *, out: str | None = None) -> None:
    """Show a DATALIST on one self-contained HTML page, with the cases that should be looked at first.

    Args:
        datalist: the datalist.json.
        out: the HTML file; inspection.html beside the datalist by default.
    """
    path = Path(datalist)
    output = Path(out) if out else path.with_name("inspection.html")
    faults = write_inspection(path, output)
    for kind, count in Counter(fault.kind for fault in faults).items():
        print(f"  {kind} ({FAULTS[kind]}): {count}")
    print(f"{len({fault.entry['id'] for fault in faults})} cases to look at first; page: {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake is reported in one line, without a traceback."""
    commands: dict[str, Callable[..., None]] = {
        "folder": folder,
        "inspect": inspect,
        "padchest": padchest,
        "ccta": ccta,
        "phantom": phantom,
        "regions": regions,
    }
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run_command("python -m data_prep", commands, given)
    except (ValueError, OSError, WorkersLost) as error:
        sys.exit(f"data_prep: {error}")
    except KeyboardInterrupt:
        sys.exit("data_prep: interrupted; the same command goes on with what is not finished")


if __name__ == "__main__":
    main()
