"""The source ``folder``: image folders with masks and an optional table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.archives import files_below
from data_prep.cases import Case, Item, Rejected, Source
from data_prep.geometry import fit_image, fit_label, fit_spacing
from data_prep.intensity import to_unit_range
from data_prep.journal import stamp
from data_prep.masks import Masks
from data_prep.names import real_path, source_name, strip_suffix
from data_prep.readers import quiet, read_picture
from data_prep.rows import Match
from data_prep.structures import combine_masks, label_values
from data_prep.table import Table

__all__ = ["FolderSource"]


class FolderSource(Source):
    """Cases of one or several folders; each folder is a source, named after the folder unless the table says otherwise.

    A case is a file anywhere below a folder of images; its masks have the same name (the suffix may differ) below the
    folders of masks, or a row in their table. Every file is a case, except hidden ones: what is not an image is
    rejected with that reason. A mask without an image is a case too, and rejected.

    Args:
        roots: the folders.
        images: where the images lie, relative to each root.
        masks: where the masks come from; where they overlap, the later structure wins.
        size: (H, W) of the prepared arrays.
        table: further variables, sources and patients.

    Raises:
        ValueError: when a folder does not exist, no case is found, or a table of masks cannot be read.
    """

    size: tuple[int, int]

    def __init__(
        self, roots: Sequence[Path], images: str, masks: Masks, size: tuple[int, int], table: Table | None = None
    ) -> None:
        self.size = size
        self.labels = label_values(masks.structures)
        self.variables: list[dict[str, Any]] = table.definitions if table else []
        self._table, self._masks = table, masks
        sources = [source_name(real_path(root).name) for root in roots]
        if len(set(sources)) != len(sources):
            raise ValueError(f"folders: {sources} are to be the sources' names, so they must differ")
        found: dict[tuple[str, str], dict[str, list[Path]]] = {}  # (source, name) -> files of "image" and structures
        for source, root in sorted(zip(sources, roots)):
            folders = {"image": images, **masks.folders}
            files = _find_files({key: root / folder for key, folder in folders.items()})
            found |= {(source, name): files[name] for name in sorted(files)}
        if not found:
            raise ValueError(f"no file in {', '.join(str(root / images) for root in roots)}")
        self._files = list(found.values())
        masks.match(list(found))
        self._matches = table.match(list(found)) if table else [Match()] * len(found)
        self.items = [
            Item(match.source or source, name, index, match.patient)
            for index, ((source, name), match) in enumerate(zip(found, self._matches))
        ]

    def fingerprint(self, item: Item) -> list[Any]:
        """The files of the case and the values in the table."""
        match = self._matches[item.index]
        try:
            values: Any = self._table.values(match.row) if self._table else None
        except Rejected as fault:
            values = fault.text
        files = {key: [stamp(path) for path in paths] for key, paths in self._files[item.index].items()}
        return [files, match.fault, match.row is None, values, self._masks.fingerprint(item.index)]

    def load(self, item: Item) -> Case:
        """Read image and masks, bring them to the common geometry and intensity."""
        files, match = self._files[item.index], self._matches[item.index]
        if match.fault:
            raise Rejected("duplicate_row", match.fault)
        if "image" not in files:
            raise Rejected("missing_image")
        twice = [name for name, paths in files.items() if len(paths) > 1]
        if twice:
            raise Rejected("duplicate_name", f"several files of the same name for {', '.join(twice)}")
        variables = self._table.values(match.row) if self._table else {}

        with quiet():  # once for all files, since silencing the logs takes time
            image = read_picture(files["image"][0])
            masks = self._masks.read(item.index, {key: paths[0] for key, paths in files.items()}, image)
        return Case(
            image=fit_image(to_unit_range(image.pixels), self.size),
            label=fit_label(combine_masks(masks), self.size),
            spacing=fit_spacing(image.spacing, image.pixels.shape, self.size),
            variables=variables,
            notes=(*image.notes, *(("missing_row",) if self._table and match.row is None else ())),
        )


def _find_files(folders: Mapping[str, Path]) -> dict[str, dict[str, list[Path]]]:
    """Name of a case -> key of ``folders`` -> files of this name there."""
    found: dict[str, dict[str, list[Path]]] = {}
    for key, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder (expected there: {key})")
        for path in files_below(folder):
            if not path.name.startswith("."):
                name = strip_suffix(path.relative_to(folder).as_posix())
                found.setdefault(name, {}).setdefault(key, []).append(path)
    return found
