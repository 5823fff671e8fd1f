"""How reliably masks that lie beside the lungs are found, and how often correct masks are taken for such.

    python benchmarks/shifted_masks.py runs/cxr64/datalist.json

The masks of every radiograph of a datalist are moved in eight directions. Then lungs are made white in the pictures, as
by a disease, with the masks left in place. A "certain" finding rejects a case, a "likely" one lists it in ``inspect``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_prep.displacement import find_displacement
from segcft_ext.datalist import Datalist, read_datalist

SHIFTS = (0.03, 0.05, 0.08, 0.1, 0.15)
DIRECTIONS = [(np.sin(angle), np.cos(angle)) for angle in np.arange(8) * np.pi / 4]
SEVERITY = 0.9  # of the way to the brightness around the lungs


def whiten(image: np.ndarray, lungs: np.ndarray, where: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture, made about as bright ``where`` the lungs are ill as around them, with soft borders and a texture."""
    around = image[ndimage.binary_dilation(lungs, iterations=3) & ~lungs]
    texture = 0.25 * around.std() * random.normal(size=image.shape)
    amount = SEVERITY * ndimage.gaussian_filter(where.astype(float), 0.7)
    return (1 - amount) * image + amount * (np.quantile(around, 0.6) + texture)


def lower_part(mask: np.ndarray, share: float) -> np.ndarray:
    rows = np.flatnonzero(mask.any(1))
    kept = mask.copy()
    kept[: round(rows[-1] + 1 - share * (rows[-1] + 1 - rows[0]))] = False
    return kept


def situations(
    image: np.ndarray, label: np.ndarray, labels: Mapping[str, int]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, picture and label map of everything that is tried on a case."""
    yield "as it is", image, label
    for shift in SHIFTS:
        for direction in DIRECTIONS:
            moved = ndimage.shift(label, [shift * max(label.shape) * step for step in direction], order=0)
            yield f"masks moved by {100 * shift:.0f} %", image, moved
    random = np.random.default_rng(0)
    left, right = (label == labels[name] for name in ("left_lung", "right_lung"))
    ill = {"left lung white": left, "right lung white": right}
    for share in (1 / 3, 1 / 2, 1):
        ill[f"lower {100 * share:.0f} % of both lungs white"] = lower_part(left, share) | lower_part(right, share)
    for name, where in ill.items():
        yield name, whiten(image, left | right, where, random), label


def measure(datalist: Datalist) -> dict[str, list[tuple[bool, bool]]]:
    """For each situation and case, whether shifted masks are likely, and whether they are certain."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    reader = datalist.reader()
    for entry in tqdm([entry for entries in datalist.entries.values() for entry in entries]):
        image, label = (reader.get_data(datalist.path.parent / entry[key])[0] for key in ("image", "label"))
        for name, picture, masks in situations(image.astype(float), label, datalist.labels):
            displacement = find_displacement(picture, masks, datalist.labels)
            likely, certain = (displacement.is_likely, displacement.is_certain) if displacement else (False, False)
            found.setdefault(name, []).append((likely, certain))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datalist", type=Path)
    print("| | tried | likely | certain |\n|---|---|---|---|")
    for name, found in measure(read_datalist(parser.parse_args().datalist)).items():
        likely, certain = 100 * np.mean(found, axis=0)
        print(f"| {name} | {len(found)} | {likely:.1f} % | {certain:.1f} % |")


if __name__ == "__main__":
    main()
