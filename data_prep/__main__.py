"""The command line: ``python -m data_prep folder …`` and ``python -m data_prep phantom …``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
from fire.decorators import SetParseFns

from data_prep.collect import Summary, prepare
from data_prep.folder import FolderSource
from data_prep.phantom import PhantomSource
from data_prep.structures import CHEST
from data_prep.table import Table
from segcft_ext.datalist import SPLITS


def _typed(text: Any) -> Any:
    """JSON where it is JSON, a list where there are commas, else the text as it is."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [part.strip() for part in text.split(",")] if "," in text and text.lstrip()[:1] not in "{[" else text


# Fire would turn a folder named 1.10 into the number 1.1.
@SetParseFns(
    *[str] * 64, out=str, images=str, masks=_typed, structures=_typed, table=str, variables=_typed, units=_typed,
    missing=_typed, id_column=str, source_column=str, patient_column=str, size=_typed, unit=str, fractions=_typed,
    name=str, salt=str, mapping=str,
)  # fmt: skip
def folder(
    *folders: str,
    out: str,
    images: str = "images",
    masks: Any = "masks",
    structures: Any = CHEST,
    table: str | None = None,
    variables: Any = (),
    units: Any = None,
    missing: Any = None,
    id_column: str = "id",
    source_column: str | None = None,
    patient_column: str | None = None,
    size: Any = 64,
    unit: str = "auto",
    seed: int = 0,
    fractions: Any = None,
    workers: int = 1,
    name: str | None = None,
    salt: str | None = None,
    mapping: str | None = None,
) -> None:
    """Prepare folders of images (PNG of 8 or 16 bit, DICOM, NIfTI) with one mask folder for each structure.

    Each FOLDER is a source, named after it: FOLDER/images/a.png with FOLDER/masks/heart/a.png and so on. Example:

        python -m data_prep folder jsrt wingspan --images png --masks mask --table cases.csv
        --variables '{"age": "continuous", "sex": ["F", "M"]}' --missing '{"age": 0}' --size 64 --out prepared

    Args:
        folders: one or several folders.
        out: folder to write to; what an earlier run left there is replaced.
        images: folder of the images, relative to each FOLDER; sub-folders are searched too.
        masks: folder with one folder of masks for each structure, relative to each FOLDER; or a JSON mapping from
            structure to folder, '{"heart": "masks/h", ...}', which then replaces --structures.
        structures: names, in the order of the label values 1, 2, ...; where masks overlap, the later one wins.
        table: CSV or TSV with one row for each case.
        variables: columns of the table to take: names ("age,sex"; the kind is inferred), or a JSON mapping from name to
            "continuous" or to the list of categories.
        units: JSON mapping from continuous variable to its unit, '{"age": "years"}'.
        missing: JSON mapping from variable to the value(s) that mean missing, '{"age": 0}'; empty cells always do.
        id_column: column with the image's file name, with or without suffix.
        source_column: column that names the source; without it the source is the FOLDER.
        patient_column: column that names the patient; a patient's cases stay in one split.
        size: of the prepared images in pixels: 64, or height and width as 96,64.
        unit: of the areas: "percent" of the image, "mm2", or "auto" (mm2 when every pixel spacing is known).
        seed: of the splits.
        fractions: of the splits, as JSON; by default training 0.7, validation 0.1, test 0.2.
        workers: processes; the result is the same for any number.
        name: what the data are called in reports; by default the name of the folder OUT.
        salt: text mixed into the ids; by default the one in the file --mapping, or a new random one.
        mapping: file for the salt and the file names behind the ids, by default OUT.mapping.json beside the folder OUT.
            It stays with you: it is the only output that names a case.
    """
    if not folders:
        raise ValueError("no folder given; see python -m data_prep folder --help")
    masks_of = masks if isinstance(masks, dict) else {name: f"{masks}/{name}" for name in _names(structures)}
    rows = None
    if table is not None:
        chosen = variables if isinstance(variables, dict) else _names(variables)
        rows = Table(Path(table), chosen, units, missing, id_column, source_column, patient_column)
    elif variables or units or missing or source_column or patient_column:
        raise ValueError("variables, units, missing, source_column and patient_column need a --table")
    source = FolderSource([Path(f) for f in folders], images, masks_of, _image_size(size), rows)
    target = Path(out)
    names = Path(mapping) if mapping else target.with_name(f"{target.resolve().name}.mapping.json")
    summary = prepare(
        source, target, name=name, seed=seed, fractions=fractions, unit=unit, workers=workers, salt=salt, mapping=names
    )
    _report(summary)
    if source.rows_without_case:
        print(f"{source.rows_without_case} rows of the table belong to no file")
    print(f"names behind the ids (keep to yourself): {names}")


@SetParseFns(kind=str, out=str, fractions=_typed, name=str)
def phantom(
    *,
    out: str,
    kind: str = "chest",
    count: int = 600,
    size: int = 64,
    seed: int = 0,
    fractions: Any = None,
    workers: int = 1,
    name: str | None = None,
) -> None:
    """Render phantoms with a known causal model, whose true counterfactuals can be rendered too.

    Example: python -m data_prep phantom --kind chest --count 600 --size 64 --out phantoms

    Args:
        out: folder to write to; what an earlier run left there is replaced.
        kind: what to draw: "chest".
        count: number of cases.
        size: of the square images in pixels.
        seed: of the cases and of the splits.
        fractions: of the splits, as JSON; by default training 0.7, validation 0.1, test 0.2.
        workers: processes; the result is the same for any number.
        name: what the data are called in reports; by default the name of the folder OUT.
    """
    if kind != "chest":
        raise ValueError(f"kind: found {kind!r}, expected 'chest'")
    from data_prep.phantom_chest import ChestPhantom

    truth = {"_target_": "data_prep.phantom_chest.ChestPhantom", "size": size}
    source = PhantomSource(ChestPhantom(size=size), count, (size, size), seed, truth)
    _report(prepare(source, Path(out), name=name, seed=seed, fractions=fractions, workers=workers))


def _names(given: Any) -> list[str]:
    return [given] if isinstance(given, str) and given else [str(name) for name in given]


def _image_size(given: Any) -> tuple[int, int]:
    numbers = given if isinstance(given, list) else [given, given]
    if len(numbers) != 2 or not all(isinstance(n, int) and n >= 8 for n in numbers):
        raise ValueError(f"size: found {given!r}, expected a whole number of pixels from 8 on, or two of them (96,64)")
    return numbers[0], numbers[1]


def _report(summary: Summary) -> None:
    datalist, rejected = summary.datalist, summary.rejected
    print(f"{summary.found} cases found, {summary.found - rejected.total()} accepted, {rejected.total()} rejected")
    for reason, count in rejected.most_common():
        print(f"  {reason}: {count}")
    for split in SPLITS:
        sources = [entry["source"] for entry in datalist.entries[split]]
        print(f"  {split}: {len(sources)} (" + ", ".join(f"{s} {sources.count(s)}" for s in sorted(set(sources))) + ")")
    print(f"datalist: {datalist.path}")


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the user's ends with one line, not with a traceback."""
    commands: dict[str, Callable[..., None]] = {"folder": folder, "phantom": phantom}
    try:
        fire.Fire(commands, command=arguments, name="python -m data_prep")
    except (ValueError, OSError) as error:
        sys.exit(f"data_prep: {error}")


if __name__ == "__main__":
    main()
