"""The accuracy of straightening, against the analytic phantom, and its speed: the first of the coronary results.

    python benchmarks/straightening.py [hearts] [seed]

Renders CT volumes of hearts (three arteries each, oblique voxels of 0.4 x 0.4 x 0.5 mm), writes them as NIfTI and VTK
files, and straightens every artery at 256 x 64 x 64 and in longitudinal cuts of 256 x 64 at 0 and 90 degrees. Each
structure's volume or area in each third is compared with that of the phantom's own functions of vessel coordinates,
which involve no voxels. Time is that of one core, reading the files included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_prep.ccta import CctaSource, Straightening
from data_prep.coronary_vessel import LABELS, STRUCTURES, Grid
from data_prep.phantom_volumes import Artery, HeartPhantom, write_heart
from data_prep.scans import find_scans

THIRDS = ("proximal", "mid", "distal")
WIDTH = 16.0


def measure(label: np.ndarray, pixel: float) -> np.ndarray:
    """Area or volume of each structure (columns) in each third (rows)."""
    edges = np.arange(len(label) + 1) / len(label) * 3
    found = np.zeros((3, 3))
    for third in range(3):
        share = np.clip(np.minimum(edges[1:], third + 1) - np.maximum(edges[:-1], third), 0, None)
        share = share / (edges[1] - edges[0])
        for column, structure in enumerate(STRUCTURES):
            count = (label == LABELS[structure]).reshape(len(label), -1).sum(1)
            found[third, column] = pixel * float(share @ count)
    return found


def truth(artery: Artery, dims: int, angle: float) -> np.ndarray:
    """What :func:`measure` should give, from the phantom's functions; cuts are sampled four times as finely."""
    size = (256, 64, 64) if dims == 3 else (1024, 256)
    grid = Grid.of(size, artery.vessel.length, WIDTH)
    u, v = grid.u, grid.v
    if dims == 2:
        u, v = np.cos(np.deg2rad(angle)) * grid.u, np.sin(np.deg2rad(angle)) * grid.u
    return measure(artery.vessel.label(grid.s, u, v), float(np.prod(grid.spacing)))


def report(title: str, found: np.ndarray, expected: np.ndarray, unit: str) -> None:
    print(f"\n{title}: sum over {len(found)} pictures, error of the sum, mean absolute error of one picture\n")
    print(f"| structure | third | {unit} | error | mean abs. error |\n|---|---|---|---|---|")
    for column, structure in enumerate(STRUCTURES):
        for third, name in enumerate((*THIRDS, "whole")):
            part = slice(None) if name == "whole" else slice(third, third + 1)
            a, b = found[:, part, column].sum(1), expected[:, part, column].sum(1)
            error = f"{100 * (a.sum() / b.sum() - 1):+.1f} %" if b.sum() else "–"
            mean = (
                f"{np.abs(a - b).mean():.2f} {unit} ({100 * np.abs(a - b).sum() / b.sum():.1f} %)" if b.sum() else "–"
            )
            print(f"| {structure} | {name} | {b.sum():.1f} | {error} | {mean} |")


def main(hearts: int = 6, seed: int = 1) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "hearts"
        arteries: list[Artery] = []
        for i in range(hearts):
            arteries += write_heart(HeartPhantom(), seed * 100_000 + i, f"heart-{i:04d}", root).arteries
        labels = {structure: (LABELS[structure],) for structure in STRUCTURES}
        for size, angles, unit in (((256, 64, 64), (0.0,), "mm³"), ((256, 64), (0.0, 90.0), "mm²")):
            begin, begin_wall = time.process_time(), time.perf_counter()
            source = CctaSource(find_scans(root), Straightening(labels, size=size, angles=angles))
            cases = [source.load(item) for item in source.items]
            seconds, wall = time.process_time() - begin, time.perf_counter() - begin_wall
            found = np.stack([measure(case.label, float(np.prod(case.spacing or ()))) for case in cases])
            pairs = [(artery, angle) for artery in arteries for angle in angles]
            expected = np.stack([truth(artery, len(size), angle) for artery, angle in pairs])
            shape = " x ".join(map(str, size))
            report(f"{shape}", found, expected, unit)
            print(f"\n{len(cases)} pictures of {shape}: {60 * len(cases) / seconds:.0f} a minute of one core's time")
            print(f"({seconds:.1f} s of processor time, {wall:.1f} s on the clock)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
