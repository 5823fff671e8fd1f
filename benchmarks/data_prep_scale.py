"""How fast data_prep goes through large radiographs, and how much of that time is decoding.

    python benchmarks/data_prep_scale.py OUT --count 5000

Generates 16-bit PNG images with three masks each in OUT (5 MB for each case of 2048 x 2048), decodes them in one
process without doing anything else, then prepares them with each number of processes. Seconds are given by the clock
and of the processor, since a machine may have other work to do; starting up, as measured with a few cases, is taken
off. Memory is the proportional set size (PSS) of all processes together.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.phantom_chest import ChestPhantom
from data_prep.structures import CHEST

COMPRESSION = 6  # zlib's and libpng's default
FEW = 20


class NoisyChests:
    """PNG files of distinct images at the price of writing them.

    A few anatomies are encoded with a few exposures each (12 bits, noise in the lowest five or so). A new image takes
    every band of rows from one of the exposures: bands are compressed independently of each other, so that they can be
    joined without being compressed again. Filters of the rows are those that Pillow chooses.
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
            # The first row of a band must not lean on the one above: filter 0.
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
        (folder / "images" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + file)


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


def generate(chests: NoisyChests, folder: Path, count: int) -> None:
    for name in ("images", *(f"masks/{structure}" for structure in CHEST)):
        (folder / name).mkdir(parents=True)
    for index in tqdm(range(count), desc="generating"):
        chests.write(folder, index)


def decode(folder: Path) -> tuple[float, float]:
    """Seconds, by the clock and of the processor, to bring all pictures into memory and do nothing with them."""
    files = sorted(folder.rglob("*.png"))
    start, used = time.perf_counter(), time.process_time()
    for file in tqdm(files, desc="decoding"):
        with Image.open(file) as picture:
            np.asarray(picture)
    return time.perf_counter() - start, time.process_time() - used


def prepare(folder: Path, out: Path, size: int, workers: int) -> tuple[float, float, float]:
    """Seconds, by the clock and of the processor, and peak memory in MB of ``python -m data_prep folder``."""
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
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--pixels", type=int, default=2048)
    parser.add_argument("--anatomies", type=int, default=8, help="fewer are generated sooner")
    parser.add_argument("--size", type=int, default=224, help="of the prepared images")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()

    many, few = given.out / "many", given.out / "few"
    chests = NoisyChests(given.pixels, given.anatomies)
    generate(chests, many, given.count)
    generate(chests, few, FEW)
    size = sum(path.stat().st_size for path in many.rglob("*.png")) / 1e6 / given.count
    rows: list[tuple[str, float, float, str]] = []
    seconds, decoding = decode(many)
    rows.append(("decoding alone, 1 process", given.count / seconds, decoding / given.count, ""))
    for workers in given.workers:
        started = prepare(few, given.out / "prepared_few", given.size, workers)
        ended = prepare(many, given.out / "prepared", given.size, workers)
        seconds, used = ((b - a) / (given.count - FEW) for a, b in zip(started[:2], ended[:2]))
        rows.append((f"data_prep, {workers} process{'es' * (workers > 1)}", 1 / seconds, used, f"{ended[2]:.0f} MB"))
    print(f"\n{given.count} images of {given.pixels} x {given.pixels}, {size:.1f} MB each with masks, to {given.size}")
    print("| | images/s | CPU per image | decoding's share of it | peak memory |\n|---|---|---|---|---|")
    for name, rate, used, memory in rows:
        # The processor time of a pool's processes is not told to the process that has started the pool.
        figures = "| |" if "processes" in name else f"{1000 * used:.0f} ms | {decoding / given.count / used:.2f} |"
        print(f"| {name} | {rate:.1f} | {figures} {memory} |")


if __name__ == "__main__":
    main()
