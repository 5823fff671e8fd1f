"""A case on its way from a source to the datalist, and the reasons for which a case is left out.

A source knows which cases there are (:attr:`Source.items`) and how to load one (:meth:`Source.load`). Loading raises
:class:`Rejected` for a case that cannot be used; the run counts that case and goes on.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NOTES", "REASONS", "Case", "Item", "Rejected", "Source", "naming", "rejecting"]

REASONS = {
    "unsupported_format": "the file is none of PNG, TIFF, DICOM, NIfTI",
    "unreadable": "the file cannot be decoded",
    "too_large": "the file or its picture is larger than any radiograph",
    "no_decoder": "no decoder for the DICOM file's compression",
    "colour": "the image has colours",
    "multi_frame": "the file holds several frames or slices",
    "not_finite": "the image has NaN or infinite pixels",
    "constant_image": "all pixels of the image are equal",
    "duplicate_image": "the picture is the same as an earlier case's",
    "missing_image": "there are masks but no image",
    "missing_mask": "the mask of a structure is missing",
    "bad_rle": "the run-length encoded mask cannot be decoded",
    "mask_not_binary": "the mask is neither binary nor a soft mask",
    "inverted_mask": "foreground and background of the mask are exchanged",
    "unknown_label": "a label map has a value that stands for no structure",
    "shape_mismatch": "image and mask differ in size",
    "spacing_mismatch": "image and mask differ in pixel spacing",
    "spacing_unknown": "areas in mm2 are asked for, the pixel spacing is unknown",
    "empty_structure": "a structure has no pixel",
    "structures_overlap": "two structures cover each other",
    "fragmented_structure": "a lung or the heart lies in pieces",
    "exchanged_masks": "the heart does not lie between the lungs",
    "shifted_masks": "the masks of both lungs do not lie on the lungs",
    "inverted_greyscale": "the lungs are brighter than the heart: white and black are exchanged",
    "swapped_sides": "left and right structures are swapped",
    "duplicate_name": "two files of the source have the same name",
    "duplicate_row": "the table's rows and the cases do not match one to one",
    "bad_value": "the table holds a value that the variable cannot take",
    "centreline_unreadable": "the centreline cannot be read",
    "centreline_missing": "there is no centreline, and no vessel in the label volume to find one in",
    "centreline_outside": "the centreline leaves the volume",
    "centreline_off_vessel": "the centreline does not run in the labelled vessel",
    "centreline_folded": "the centreline doubles back",
    "centreline_short": "the centreline is too short",
    "not_hounsfield": "the intensities are not in Hounsfield units",
    "incomplete_series": "the slices of the DICOM series do not make a volume",
    "several_series": "the folder holds several DICOM series",
    "grid_mismatch": "image and mask, or label volume, do not lie on the same grid",
    "bad_label": "the label volume holds numbers that are not whole",
}

NOTES = {
    "missing_row": "the table has no row for the case, so its variables are missing",
    "detector_spacing": "the pixel spacing is the detector's, so areas are those of the shadow",
    "burned_in_text": "the file says that text is burned into its pixels: it may identify the patient",
    "centreline_reversed": "the vessel widens towards its end: its centreline may run from the far end to the ostium",
    "burned_in_unknown": "the file does not say whether text is burned into its pixels",
}
"""Notes on a case that is accepted: what is worth knowing about it."""


class Rejected(Exception):
    """A case that is left out: a reason code of :data:`REASONS` and a text for people.

    The text must not hold a file name, a path or anything else that may identify a patient: it is written to
    ``rejected.csv``.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        self.reason = reason
        self.text = text or REASONS[reason]
        super().__init__(reason, self.text)  # both arguments, so that it survives pickling between processes


@contextmanager
def rejecting(reason: str, text: str, *besides: type[Exception]) -> Iterator[None]:
    """Reject the case, and only this one, if a reader fails in a way that no check foresaw: with any error at all.

    The text ends with the error's type and the line of the program that raised it. The error's message is left out: it
    may quote the file, and with it the patient's name.

    Args:
        reason: the reason code.
        text: what cannot be done.
        besides: errors that do not lie in the case and are passed on.
    """
    passed: tuple[type[Exception], ...] = (Rejected, *besides)
    try:
        yield
    except passed:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
        raise Rejected(reason, f"{text} ({where})") from error


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Say in a rejection's text which part of the case is at fault."""
    try:
        yield
    except Rejected as fault:
        raise Rejected(fault.reason, f"{part}: {fault.text}") from fault


@dataclass(frozen=True)
class Item:
    """A case that a source has found and not yet opened.

    Attributes:
        source: the source's name, by which the splits are stratified.
        name: the case's name, unique within the source up to faults in the data; may identify the patient.
        index: index by which the source finds what it has to load.
        patient: the patient's name in the user's data, or None where a case is a patient of its own.
    """

    source: str
    name: str
    index: int
    patient: str | None = None


@dataclass(frozen=True)
class Case:
    """A loaded case at its final size.

    Attributes:
        image: shape (H, W) or (D, H, W), float, in [0, 1].
        label: label map of the same shape, uint8.
        spacing: spacing of these arrays in mm along each axis, or None where unknown.
        arc_length: where a straightened vessel begins and ends along its centreline, in mm from the ostium.
        variables: values of the variables that are not measured; None where missing, categories by index.
        exogenous: what a renderer of true counterfactuals needs to draw this case again (phantoms only).
        notes: keys of :data:`NOTES`.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...] | None = None
    arc_length: tuple[float, float] | None = None
    variables: Mapping[str, float | int | None] = field(default_factory=dict)
    exogenous: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


class Source(ABC):
    """What :func:`data_prep.collect.prepare` takes cases from. It is pickled to worker processes.

    Attributes:
        size: (H, W) or (D, H, W) of the loaded cases.
        labels: value of each structure in the label map, the background included as 0.
        may_lack: the structures that a case need not have.
        variables: definitions of the variables that are not measured, as they stand in a datalist's header.
        window: lowest and highest intensity that [0, 1] stands for, and their unit; None if they differ between cases.
        regions: the datalist's ``regions``: each structure is then measured in every region, not as a whole.
        truth: the datalist's ``truth``.
        items: every case found, in an order that does not depend on the machine.
    """

    size: tuple[int, ...]
    labels: Mapping[str, int]
    may_lack: Sequence[str] = ()
    variables: Sequence[Mapping[str, Any]] = ()
    window: tuple[float, float, str] | None = None
    regions: Mapping[str, Any] | None = None
    truth: Mapping[str, Any] | None = None
    items: Sequence[Item]

    @property
    def metric(self) -> str:
        """Unit of the measured variables where the spacing is known: mm2, or mm3 of volumes."""
        return f"mm{len(self.size)}"

    @abstractmethod
    def fingerprint(self, item: Item) -> Any:
        """Plain values that change whenever :meth:`load` would give another case; a resumed run compares them.

        These are the :func:`~data_prep.journal.stamp` of each file, the row of a table, and every option of the source
        that is not in the datalist's header.
        """

    @abstractmethod
    def load(self, item: Item) -> Case:
        """Load one case; pure, so that it may run in any process and any order.

        Raises:
            Rejected: when the case cannot be used.
            OSError: when files of the source are gone, which ends the run.
        """
