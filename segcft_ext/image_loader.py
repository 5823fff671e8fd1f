"""Loading the images of a folder for inference, where one that is damaged must not keep the others from being used."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from monai.data import DataLoader, Dataset, list_data_collate

__all__ = ["ImageLoader"]

LOGGER = logging.getLogger(__name__)


class ImageLoader(DataLoader):
    """Batches of one image each; those that cannot be loaded are left out and reported, each with its reason.

    When the others have been used, the next batch is an error, with which the inference ends.

    Args:
        dataset: the images; its ``data`` are items with the path ``image``.
        options: see MONAI's ``DataLoader``.

    Raises:
        ValueError: at the end of an iteration, when images were left out; lists them with their reasons.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(_Guarded(dataset), batch_size=1, collate_fn=_collate, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        faults = []
        for batch in super().__iter__():
            if not isinstance(batch, _Fault):
                yield batch
                continue
            LOGGER.warning("%s is left out: %s", batch.image, batch.reason)
            faults.append(f"{batch.image}: {batch.reason}")
        if faults:
            raise ValueError("\n".join([f"{len(faults)} of {len(self)} images could not be used:", *faults]))


@dataclass(frozen=True)
class _Fault:
    image: str
    reason: str


class _Guarded(Dataset):
    """A dataset that returns the fault of an item that it cannot load."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.data)
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:  # whatever damaged files make transforms raise
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            image = self.data[index]["image"]
            return _Fault(image, str(cause).removeprefix(f"{image}: ") or type(cause).__name__)


def _collate(items: Sequence[Any]) -> Any:
    return items[0] if isinstance(items[0], _Fault) else list_data_collate(items)
