"""The commands that prepare data: ``folder``, ``padchest``, ``ccta``, ``phantom``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.cases import NOTES, Source
from data_prep.ccta import CctaSource, Straightening
from data_prep.collect import Run, check_unit, prepare
from data_prep.folder import FolderSource
from data_prep.masks import MaskTable
from data_prep.names import real_path
from data_prep.options import (
    read_chest_size,
    read_flag,
    read_image_size,
    read_label_values,
    read_mapping,
    read_masks,
    read_numbers,
    read_run,
    read_variables,
    read_vessel_regions,
    read_vessel_size,
)
from data_prep.padchest import PadChestSource, write_filters
from data_prep.phantom import CoronarySource, PhantomSource
from data_prep.phantom_chest import ChestPhantom
from data_prep.phantom_coronary import CoronaryPhantom
from data_prep.phantom_volumes import HeartPhantom, write_heart
from data_prep.scans import find_scans, list_scans
from data_prep.structures import CHEST
from data_prep.table import Table
from segcft_ext.command_line import read_whole
from segcft_ext.datalist_format import SPLITS

__all__ = ["ccta", "folder", "padchest", "phantom"]

DEFAULT_STRUCTURES = ",".join(CHEST)


def folder(
    *folders: str,
    out: str,
    images: str = "images",
    masks: Any = "masks",
    structures: Any = DEFAULT_STRUCTURES,
    labels: Any = None,
    mask_table: str | None = None,
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
    workers: int | None = None,
    scheduler: str | None = None,
    strict: Any = False,
    name: str | None = None,
    salt: str | None = None,
    mapping: str | None = None,
) -> None:
    """Prepare folders of images (PNG, TIFF, DICOM, NIfTI) with masks.

    Each FOLDER is a source, named after the folder. The image FOLDER/images/a.png belongs to FOLDER/masks/heart/a.png
    and so on; the suffixes may differ. Cases that cannot be used are listed with the reason in OUT/rejected.csv.

    Example:

        python -m data_prep folder jsrt wingspan --images png --masks mask --table cases.csv
        --variables '{"age": "continuous", "sex": ["F", "M"]}' --missing '{"age": 0}' --size 64 --out prepared

    Args:
        folders: one or several folders.
        out: folder to write to; what an earlier run left there is replaced.
        images: folder of the images, relative to each FOLDER; sub-folders are searched too.
        masks: folder that holds one folder of masks for each structure, relative to each FOLDER. Or, as JSON, a mapping
            from structure to folder, which then replaces --structures. With --labels, the folder of the label maps;
            with --mask_table, a mapping from structure to column, needed if their names differ.
        structures: names in the order of the label values 1, 2, ...; where masks overlap, the later one wins.
        labels: the values of each structure in label maps, "left_lung=50,heart=7" or "lumen=1-14"; as JSON, a mapping
            from structure to its value or list of values. One file for each case holds all structures. Replaces
            --structures; values to be ignored are listed as "background".
        mask_table: table of run-length encoded masks (CSV, TSV, Excel, Parquet), one row for each case, one column for
            each structure.
        table: CSV, TSV, Excel or Parquet with one row for each case.
        variables: columns of the table to take. Names ("age,sex", the kind is then inferred), or a JSON mapping from
            name to "continuous" or to the list of categories.
        units: JSON mapping from continuous variable to its unit, '{"age": "years"}'.
        missing: JSON mapping from variable to the value(s) that mean missing, '{"age": 0}'. Empty cells are always
            missing; NA, NaN, none and null are, too, unless they are listed as categories.
        id_column: column with the image's file name, with or without suffix.
        source_column: column that names the source; without it the source is the FOLDER.
        patient_column: column that names the patient; a patient's cases stay in one split. A case without a patient
            counts as a patient of its own.
        size: size of the prepared images in pixels, 64 or, as height and width, 96x64.
        unit: unit of the areas, "percent" (of the image), "mm2", or "auto" (mm2 if the pixel spacing of every accepted
            case is known, else percent).
        seed: seed of the splits.
        fractions: share of each split, as JSON; '{"training": 0.7, "validation": 0.1, "test": 0.2}' by default.
        workers: number of processes; the result does not depend on it. By default one for each core, at most four, and
            fewer for few cases.
        scheduler: address of a Dask scheduler, such as tcp://localhost:8786, whose workers are used instead.
        strict: stop at the first rejected case, with its reason.
        name: what the data are called in reports; by default the name of the folder OUT.
        salt: text mixed into the ids; by default the one in the file --mapping, or a new random one.
        mapping: file for the salt and the file names behind the ids, by default OUT.mapping.json beside the folder OUT.
            Keep it to yourself, since no other output names a case.
    """
    if not folders:
        raise ValueError("no folder given; see python -m data_prep folder --help")
    run = read_run(
        out,
        mapping=mapping,
        salt=salt,
        name=name,
        unit=unit,
        strict=strict,
        seed=seed,
        fractions=fractions,
        workers=workers,
        scheduler=scheduler,
    )
    check_unit(unit, "mm2")
    pixels = read_image_size(size)
    masks_from = read_masks(masks, structures, labels, mask_table, id_column)
    columns, units, missing = read_variables(variables), read_mapping("units", units), read_mapping("missing", missing)
    for place in (Path(root, read) for root in folders for read in (images, *masks_from.folders.values())):
        for written in (Path(out, "images"), Path(out, "labels")):
            if real_path(written).is_relative_to(real_path(place)):
                raise ValueError(
                    f"out: {written} lies in the folder {place}, which is read: the next run would take it for cases"
                )
    rows = None
    if table is not None:
        rows = Table(Path(table), columns, units, missing, id_column, source_column, patient_column)
        for note in rows.notes:
            print(note)
    elif variables or units or missing or source_column or patient_column:
        raise ValueError("variables, units, missing, source_column and patient_column need a --table")
    _prepare(FolderSource([Path(f) for f in folders], images, masks_from, pixels, rows), run)
    if rows is not None and rows.unused:
        print(f"{rows.unused} rows of the table belong to no file")
    if isinstance(masks_from, MaskTable) and masks_from.unused:
        print(f"{masks_from.unused} rows of the mask table belong to no file")


def padchest(
    *images: str,
    table: str,
    chexmask: str,
    out: str,
    size: Any = 64,
    seed: int = 0,
    fractions: Any = None,
    workers: int | None = None,
    scheduler: str | None = None,
    strict: Any = False,
    name: str | None = None,
    salt: str | None = None,
    mapping: str | None = None,
) -> None:
    """Prepare PadChest with the masks of CheXmask: adults, postero-anterior, of sufficient quality.

    A row of PadChest's table is filtered out, and counted in OUT/filters.csv, if none of its folder's images is given,
    the age is unknown or below 18 years, the projection is not PA, the row is marked pediatric or labelled "suboptimal
    study" or "exclude", or CheXmask's Dice RCA (Mean) is unknown or below 0.7. Every other row is a case: accepted, or
    listed with the reason in OUT/rejected.csv. Areas are in percent of the image, since PadChest gives no pixel
    spacing.

    Example:

        python -m data_prep padchest padchest/images --table PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz
        --chexmask OriginalResolution/Padchest.csv --size 224 --workers 2 --out padchest224

    Args:
        images: folders or zip archives with the images, or folders of these; archives need not be unpacked.
        table: PadChest's table, CSV or .csv.gz.
        chexmask: CheXmask's table for PadChest, of the original resolution or pre-processed; unpacked CSV.
        out: folder to write to; what an earlier run left there is replaced.
        size: size of the prepared images in pixels, 64 or, as height and width, 96x64.
        seed: seed of the splits; a patient's images stay in one split.
        fractions: share of each split, as JSON; '{"training": 0.7, "validation": 0.1, "test": 0.2}' by default.
        workers: number of processes; the result does not depend on it. By default one for each core, at most four, and
            fewer for few cases.
        scheduler: address of a Dask scheduler, such as tcp://localhost:8786, whose workers are used instead.
        strict: stop at the first rejected case, with its reason.
        name: what the data are called in reports; by default the name of the folder OUT.
        salt: text mixed into the ids; by default the one in the file --mapping, or a new random one.
        mapping: file for the salt and the ImageIDs behind the ids, by default OUT.mapping.json beside the folder OUT.
            Keep it to yourself, since no other output names a case.
    """
    if not images:
        raise ValueError("no folder of images given; see python -m data_prep padchest --help")
    run = read_run(
        out,
        mapping=mapping,
        salt=salt,
        name=name,
        strict=strict,
        seed=seed,
        fractions=fractions,
        workers=workers,
        scheduler=scheduler,
    )
    pixels = read_image_size(size)
    source = PadChestSource(Path(table), Path(chexmask), [Path(place) for place in images], pixels)
    for what, count in source.counts.items():
        print(f"{what}: {count}")
    for archive in source.broken:
        print(f"  {archive}")
    if source.broken and run.strict:
        raise ValueError(f"strict: {source.broken[0]}: this archive cannot be opened")
    _prepare(source, run)
    write_filters(source.counts, Path(out) / "filters.csv")


def ccta(
    *places: str,
    out: str,
    labels: Any = None,
    dims: int = 2,
    size: Any = None,
    angles: Any = "0",
    across: float = 0.25,
    window: Any = "-150,750",
    order: int = 1,
    smoothing: float = 1.0,
    shortest: float = 20.0,
    coordinates: str = "LPS",
    regions: Any = None,
    boundaries: Any = None,
    seed: int = 0,
    fractions: Any = None,
    workers: int | None = None,
    scheduler: str | None = None,
    strict: Any = False,
    name: str | None = None,
    salt: str | None = None,
    mapping: str | None = None,
) -> None:
    """Straighten the vessels of coronary CT angiographies along their centrelines.

    Each PLACE is a folder laid out like the public ImageCAS-X (volumes/, segmentations/, centerlines/), or a CSV list
    with the columns volume, label and, if known, centreline, vessel, patient. Volumes are NIfTI files or folders with a
    DICOM series; label volumes NIfTI files on the same grid; centrelines VTK polydata (.vtk, .vtp) or CSV with the
    columns x, y, z. If a volume has no centreline, its centrelines are extracted from its label volume.

    Examples:

        python -m data_prep ccta imagecas-x --labels lumen=1-14 --out vessels

        python -m data_prep ccta list.csv --dims 3 --coordinates RAS --out vessels

    Args:
        places: one or several folders or lists.
        out: folder to write to; what an earlier run left there is replaced.
        labels: the values of each structure in the label volumes, "lumen=1,calcified_plaque=2,noncalcified_plaque=3" by
            default; as JSON, a mapping from structure to its value or list of values. Values to be ignored are listed
            as "background" ("background=20-23,lumen=1"); a value that is not listed rejects the volume.
        dims: 2 for longitudinal cuts, 3 for straightened volumes.
        size: number of samples along the vessel and across it; 256x64 by default.
        angles: angles of the longitudinal cuts in degrees, "0,90"; each cut of each vessel is a case. 0 is the
            direction that points most to superior at the ostium.
        across: spacing of the samples across the vessel, mm.
        window: lowest and highest HU of the stored intensities.
        order: order of the interpolation, 1 (linear) or 3 (cubic).
        smoothing: standard deviation of the Gaussian that smooths the centrelines, mm.
        shortest: length below which a vessel is rejected, mm.
        coordinates: convention of the centrelines' coordinates, LPS (VTK, ITK, DICOM, 3D Slicer) or RAS (NIfTI).
        regions: names of the regions in which structures are measured, "proximal,mid,distal" by default; "none"
            measures whole vessels.
        boundaries: boundaries of the regions as rising fractions of the length, "0,0.5,1"; equal parts by default.
        seed: seed of the splits.
        fractions: share of each split, as JSON; '{"training": 0.7, "validation": 0.1, "test": 0.2}' by default.
        workers: number of processes; the result does not depend on it. By default one for each core, at most four, and
            fewer for few cases.
        scheduler: address of a Dask scheduler, such as tcp://localhost:8786, whose workers are used instead.
        strict: stop at the first rejected case, with its reason.
        name: what the data are called in reports; by default the name of the folder OUT.
        salt: text mixed into the ids; by default the one in the file --mapping, or a new random one.
        mapping: file for the salt and the names behind the ids, by default OUT.mapping.json beside the folder OUT.
    """
    if not places:
        raise ValueError("no folder or list given; see python -m data_prep ccta --help")
    axes = read_whole("dims", dims)
    run = read_run(
        out,
        mapping=mapping,
        salt=salt,
        name=name,
        strict=strict,
        seed=seed,
        fractions=fractions,
        workers=workers,
        scheduler=scheduler,
    )
    low, high = read_numbers("window", window, 2)
    options = Straightening(
        read_label_values("lumen=1,calcified_plaque=2,noncalcified_plaque=3" if labels is None else labels),
        size=read_vessel_size(size, axes),
        spacing=read_numbers("across", across, 1)[0],
        angles=tuple(read_numbers("angles", angles)),
        window=(low, high),
        regions=read_vessel_regions(regions, boundaries),
        order=read_whole("order", order),
        sigma=read_numbers("smoothing", smoothing, 1)[0],
        shortest=read_numbers("shortest", shortest, 1)[0],
        convention=str(coordinates).upper(),
    )
    scans = [find_scans(path) if path.is_dir() else list_scans(path) for path in map(Path, places)]
    sources = [found[0].source for found in scans]
    if len(set(sources)) != len(sources):
        raise ValueError(f"places: {sources} are to be the sources' names, so they must differ")
    _prepare(CctaSource([scan for found in scans for scan in found], options, run.workers or 1), run)


def phantom(
    *,
    out: str,
    kind: str = "chest",
    count: int = 600,
    size: Any = None,
    dims: int = 2,
    regions: Any = None,
    boundaries: Any = None,
    descendants: Any = False,
    seed: int = 0,
    fractions: Any = None,
    workers: int | None = None,
    scheduler: str | None = None,
    name: str | None = None,
) -> None:
    """Render phantoms with a known causal model, whose true counterfactuals can be rendered too.

    Examples:

        python -m data_prep phantom --kind chest --count 600 --size 64 --out phantoms

        python -m data_prep phantom --kind coronary --count 600 --out vessels

    Args:
        out: folder to write to; what an earlier run left there is replaced.
        kind: what to draw, "chest", "coronary" (straightened arteries), or "coronary_volumes" (whole CT volumes with
            label volumes and centrelines, as input of data_prep ccta; only the options count, seed and out are used).
        count: number of cases.
        size: size in pixels; by default 64 for a chest, which is square, and 256x64 (along and across) for a vessel.
        dims: dimensions of a vessel's image; 2 is a longitudinal cut, 3 a volume.
        regions: names of the regions in which a vessel's structures are measured, "proximal,mid,distal" by default;
            "none" measures whole vessels.
        boundaries: boundaries of the regions as rising fractions of the length, "0,0.5,1"; equal parts by default.
        descendants: in the true counterfactuals of vessels the lumen follows its plaques, as in the causal model. By
            default an action changes nothing else, which is the truth for independent variables.
        seed: seed of the cases and of the splits.
        fractions: share of each split, as JSON; '{"training": 0.7, "validation": 0.1, "test": 0.2}' by default.
        workers: number of processes; the result does not depend on it. By default one for each core, at most four, and
            fewer for few cases.
        scheduler: address of a Dask scheduler, such as tcp://localhost:8786, whose workers are used instead.
        name: what the data are called in reports; by default the name of the folder OUT.
    """
    count, axes, follow = read_whole("count", count, 1), read_whole("dims", dims), read_flag("descendants", descendants)
    run = read_run(out, names=False, name=name, seed=seed, fractions=fractions, workers=workers, scheduler=scheduler)
    if kind == "chest":
        if (axes, regions, boundaries, follow) != (2, None, None, False):
            raise ValueError("dims, regions, boundaries and descendants are options of --kind coronary")
        pixels = read_chest_size(64 if size is None else size)
        truth = {"_target_": "data_prep.phantom_chest.ChestPhantom", "size": pixels}
        source = PhantomSource(ChestPhantom(size=pixels), count, (pixels, pixels), run.seed, truth)
    elif kind == "coronary":
        parts = read_vessel_regions(regions, boundaries)
        vessels = CoronaryPhantom(read_vessel_size(size, axes), parts, follow)
        source = CoronarySource(vessels, count, run.seed)
    elif kind == "coronary_volumes":
        for i in tqdm(range(count), desc="rendering", unit="volume"):
            write_heart(HeartPhantom(), run.seed * 100_000 + i, f"heart-{i:04d}", Path(out))
        print(f"{count} volumes in {out}: python -m data_prep ccta {out} --out …")
        return
    else:
        raise ValueError(f"kind: found {kind!r}, expected 'chest', 'coronary' or 'coronary_volumes'")
    _prepare(source, run)


def _prepare(source: Source, run: Run) -> None:
    """Prepare a source and report."""
    summary = prepare(source, run)
    datalist, rejected = summary.datalist, summary.rejected
    if summary.resumed:
        print(f"{summary.resumed} cases were finished before the interruption and are as they were")
    print(f"{summary.found} cases found, {summary.found - rejected.total()} accepted, {rejected.total()} rejected")
    for reason, count in rejected.most_common():
        print(f"  rejected as {reason}: {count}")
    for note, count in summary.notes.most_common():
        print(f"  {note} ({NOTES[note]}): {count}")
    for split in SPLITS:
        sources = [entry["source"] for entry in datalist.entries[split]]
        print(f"  {split}: {len(sources)} (" + ", ".join(f"{s} {sources.count(s)}" for s in sorted(set(sources))) + ")")
    entries = [entry for split in SPLITS for entry in datalist.entries[split]]
    unknown = sum("spacing" not in entry for entry in entries)
    print(f"areas in {datalist.variables[0].unit} (pixel spacing unknown for {unknown} of {len(entries)} cases)")
    print(f"datalist: {datalist.path}")
    if run.mapping:
        print(f"names behind the ids (keep to yourself): {run.mapping}")
