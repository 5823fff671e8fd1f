"""How fast data_prep prepares large radiographs, and how much of that time is decoding.

    python benchmarks/data_prep_scale.py OUT --count 5000

Generates 16-bit PNG images with three masks each in OUT (5 MB for each case of 2048 x 2048), decodes some of them in
one process without doing anything else, then prepares all with each number of processes. Both wall-clock and CPU time
are given, since a machine may have other work to do; the time of starting up, measured with a few cases, is subtracted.
Memory is the proportional set size (PSS) of all processes together.

5 000 cases need 26 GB of disk and 19 minutes on two idle cores. After an interruption the same command goes on: files
that are generated stay, and finished measurements (``OUT/measured.json``) are not repeated.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.phantom_chest import ChestPhantom
from data_prep.structures import CHEST

COMPRESSION = 6  # zlib's and libpng's default
FEW = 40  # as many as the contact sheet shows, whose drawing is thus part of starting up
DECODED = 500


class NoisyChests:
    """PNG files of distinct images, at no more than the cost of writing them.

    A few anatomies are encoded with a few exposures each (12 bits, noise in the lowest five or so). A new image takes
    each band of rows from one of the exposures: bands are compressed independently, so that they can be joined without
    being compressed again. The rows have the filters that Pillow chooses.
    """

    def __init__(self, pixels: int, anatomies: int, exposures: int = 3, bands: int = 16) -> None:
        self.pixels, self.exposures, self.rows = pixels, exposures, -(-pixels // bands)
        self.encoded: list[list[list[tuple[bytes, bytes]]]] = []  # anatomy, band, exposure: raw and compressed
        self.masks: list[list[bytes]] = []  # anatomy, structure
        phantom = ChestPhantom(size=256)
        for seed in tqdm(range(anatomies), desc="anatomies"):
            image, label = phantom.render(*phantom.sample(seed))
            size = (pixels, pixels)
            large = np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
            labels = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
            self.masks.append([_png(np.where(labels == i + 1, 255, 0).astype(np.uint8)) for i in range(len(CHEST))])
            random = np.random.default_rng(seed)
            shots = [self._bands(300 + 3000 * large + random.normal(0, 30, size)) for _ in range(exposures)]
            self.encoded.append([list(shots_of_band) for shots_of_band in zip(*shots)])

    def _bands(self, image: np.ndarray) -> list[tuple[bytes, bytes]]:
        pixels = 16 * image.clip(0, 4095).astype(np.uint16)
        filtered = bytearray(zlib.decompress(_chunk(_png(pixels), b"IDAT")))
        width, found = 1 + 2 * self.pixels, []
        for start in range(0, self.pixels, self.rows):
            # The first row of a band must not be predicted from the one above: filter 0.
            filtered[start * width : (start + 1) * width] = b"\0" + pixels[start].astype(">u2").tobytes()
            raw = bytes(filtered[start * width : (start + self.rows) * width])
            packer = zlib.compressobj(COMPRESSION, zlib.DEFLATED, -15)
            found.append((raw, packer.compress(raw) + packer.flush(zlib.Z_FULL_FLUSH)))
        return found

    def write(self, folder: Path, index: int) -> None:
        """Write case ``index``: ``images/`` and ``masks/``."""
        anatomy, random = index % len(self.encoded), np.random.default_rng(index)
        for structure, mask in zip(CHEST, self.masks[anatomy]):
            (folder / "masks" / structure / f"{index}.png").write_bytes(mask)
        chosen = [band[random.integers(self.exposures)] for band in self.encoded[anatomy]]
        check = 1
        for raw, _ in chosen:
            check = zlib.adler32(raw, check)
        data = b"\x78\x9c" + b"".join(packed for _, packed in chosen) + b"\x03\x00" + struct.pack(">I", check)
        header = struct.pack(">IIBBBBB", self.pixels, self.pixels, 16, 0, 0, 0, 0)
        parts = [
            (b"IHDR", header),
            *((b"IDAT", data[i : i + 65536]) for i in range(0, len(data), 65536)),
            (b"IEND", b""),
        ]
        file = b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in parts
        )
        scratch = folder / f"{index}.tmp"
        scratch.write_bytes(b"\x89PNG\r\n\x1a\n" + file)
        scratch.replace(folder / "images" / f"{index}.png")  # last: the case is complete


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=COMPRESSION)
    return file.getvalue()


def _chunk(png: bytes, wanted: bytes) -> bytes:
    """The joined bodies of all chunks of one kind."""
    found, position = b"", 8
    while position < len(png):
        (length,), kind = struct.unpack(">I", png[position : position + 4]), png[position + 4 : position + 8]
        found += png[position + 8 : position + 8 + length] if kind == wanted else b""
        position += 12 + length
    return found


def generate(folders: dict[Path, int], pixels: int, anatomies: int) -> None:
    """Write the given number of cases to each folder, except those that are there already."""
    todo = [
        (folder, index)
        for folder, count in folders.items()
        for index in range(count)
        if not (folder / "images" / f"{index}.png").exists()
    ]
    if not todo:
        return
    needed, free = len(todo) * pixels**2 * 1.25, shutil.disk_usage(next(iter(folders)).parent).free
    if needed > free:
        sys.exit(f"{needed / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} GB are free")
    for folder in folders:
        for name in ("images", *(f"masks/{structure}" for structure in CHEST)):
            (folder / name).mkdir(parents=True, exist_ok=True)
    chests = NoisyChests(pixels, anatomies)
    for folder, index in tqdm(todo, desc="generating"):
        chests.write(folder, index)


def decode(folder: Path, count: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds, the mean of ``count`` cases, to decode all pictures of a case and do nothing else."""
    start, used = time.perf_counter(), time.process_time()
    for index in tqdm(range(count), desc="decoding"):
        for kind in ("images", *(f"masks/{structure}" for structure in CHEST)):
            with Image.open(folder / kind / f"{index}.png") as picture:
                np.asarray(picture)
    return (time.perf_counter() - start) / count, (time.process_time() - used) / count


def prepare(folder: Path, out: Path, size: int, workers: int) -> tuple[float, float, float]:
    """Wall-clock seconds, CPU seconds and peak memory in MB of ``python -m data_prep folder``."""
    shutil.rmtree(out, ignore_errors=True)
    before, start = os.times(), time.perf_counter()
    command = ["folder", str(folder), "--size", str(size), "--workers", str(workers), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "data_prep", *command], start_new_session=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"data_prep ended with {process.returncode}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used, peak


def _memory(session: int) -> float:
    """MB of all processes of a session."""
    total = 0.0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.getsid(int(process.name)) == session:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += next(float(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue  # ended meanwhile
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder of its own, new or of an interrupted run")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--pixels", type=int, default=2048)
    parser.add_argument("--anatomies", type=int, default=3, help="fewer are generated sooner")
    parser.add_argument("--size", type=int, default=224, help="of the prepared images")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()

    if given.count <= FEW:
        parser.error(f"--count: found {given.count}, expected more than {FEW}")
    many, few = given.out / "many", given.out / "few"
    given.out.mkdir(parents=True, exist_ok=True)
    generate({many: given.count, few: FEW}, given.pixels, given.anatomies)
    size = sum(path.stat().st_size for path in few.rglob("*.png")) / 1e6 / FEW
    measured = _Measured(given.out / "measured.json", [given.count, given.pixels, given.anatomies, given.size])
    seconds, decoding = measured("decoding", partial(decode, many, min(given.count, DECODED)))
    rows = [("decoding alone, 1 process", 1 / seconds, f"{1000 * decoding:.0f} ms", "1.00", "")]
    for workers in given.workers:
        name = f"data_prep, {workers} process{'es' * (workers > 1)}"
        started = measured(f"{name}, few", partial(prepare, few, given.out / "prepared_few", given.size, workers))
        ended = measured(name, partial(prepare, many, given.out / "prepared", given.size, workers))
        seconds, used = ((b - a) / (given.count - FEW) for a, b in zip(started[:2], ended[:2]))
        # The CPU time of a pool's processes is not reported to the process that has started the pool.
        cpu, share = ("", "") if workers > 1 else (f"{1000 * used:.0f} ms", f"{decoding / used:.2f}")
        rows.append((name, 1 / seconds, cpu, share, f"{ended[2]:.0f} MB"))
    print(f"\n{given.count} images of {given.pixels} x {given.pixels}, {size:.1f} MB each with masks, to {given.size}")
    print("| | images/s | CPU per image | decoding's share of it | peak memory |\n|---|---|---|---|---|")
    for name, rate, cpu, share, memory in rows:
        print(f"| {name} | {rate:.1f} | {cpu} | {share} | {memory} |")


class _Measured:
    """Measurements that are kept in a file, under the settings that they belong to."""

    def __init__(self, path: Path, settings: list[int]) -> None:
        self._path, self._settings = path, settings

    def __call__(self, name: str, measure: Callable[[], Sequence[float]]) -> Sequence[float]:
        """The measurement of this name: from the file if it is there, else made now."""
        kept: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        if kept.get("settings") != self._settings:
            kept = {"settings": self._settings}
        if name not in kept:
            kept[name] = measure()
            scratch = self._path.with_suffix(".tmp")
            scratch.write_text(json.dumps(kept))
            scratch.replace(self._path)
        return kept[name]


if __name__ == "__main__":
    main()
