"""Damaged files by the thousand: the run ends, every case is accepted or rejected with a reason, outputs are valid.

Run for longer by hand with ``SEGCFT_MUTANTS=20000 SEGCFT_FUZZ_SEED=1 pytest tests/test_data_prep_fuzz.py``.
"""

import csv
import io
import os
import resource

import nibabel
import numpy as np
import pytest
import tifffile
from dicom_files import LOSSLESS, write_dicom
from drawn_chest import STRUCTURES, draw
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit

from data_prep.cases import REASONS
from data_prep.collect import Run, prepare
from data_prep.folder import FolderSource
from data_prep.identity import case_id
from data_prep.masks import MaskFolders
from segcft_ext.datalist import read_datalist
from segcft_ext.datalist_format import SPLITS

pytestmark = pytest.mark.usefixtures("no_pictures")

COUNT = int(os.environ.get("SEGCFT_MUTANTS", 1000))
SEED = int(os.environ.get("SEGCFT_FUZZ_SEED", 0))
MAX_MEMORY = 2**30
"""Bytes that a run on tiny files may need beyond what the process had; allocating a huge declared size needs more."""


def encodings(pixels, scratch):
    """An 8-bit picture as files of every kind that is read."""
    wide = pixels.astype(np.uint16) * 16

    def pillow(array, **options):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, **options)
        return stream.getvalue()

    def tiff(array, **options):
        stream = io.BytesIO()
        tifffile.imwrite(stream, array, **options)
        return stream.getvalue()

    def nifti(array, suffix):
        nibabel.save(nibabel.Nifti1Image(array.T.astype(np.int16), np.diag([-1, -1, 1, 1])), scratch / f"a{suffix}")
        return (scratch / f"a{suffix}").read_bytes()

    return [
        pillow(pixels, format="PNG"),
        pillow(wide, format="PNG"),
        pillow(np.stack([pixels] * 3, -1), format="PNG"),
        pillow(pixels, format="TIFF", compression="tiff_lzw"),
        pillow(pixels, format="TIFF", compression="tiff_adobe_deflate"),
        pillow(pixels, format="TIFF", compression="packbits"),
        pillow(pixels, format="TIFF", compression="jpeg"),
        tiff(wide, photometric="miniswhite"),
        tiff(pixels.astype(np.float32), tile=(16, 16)),
        nifti(pixels, ".nii"),
        nifti(pixels, ".nii.gz"),
        *(write_dicom(scratch / "a", wide, syntax, WindowCenter="2000", WindowWidth="4000").read_bytes()
          for syntax in LOSSLESS),
        *(write_dicom(scratch / "a", pixels, syntax, PixelSpacing=["1", "1"]).read_bytes()
          for syntax in (JPEGBaseline8Bit, *LOSSLESS)),
    ]  # fmt: skip


def mutate(data, random):
    """One of several kinds of damage."""
    data = bytearray(data)
    position = int(random.integers(len(data)))
    header = int(random.integers(min(len(data), 400)))
    kind = random.integers(8)
    if kind == 0:  # single bits
        for p in random.integers(len(data), size=random.integers(1, 6)):
            data[p] ^= 1 << random.integers(8)
    elif kind == 1:
        del data[position:]
    elif kind == 2:
        data[position:position] = random.bytes(random.integers(1, 40))
    elif kind == 3:
        data[header : header + random.integers(1, 9)] = random.bytes(random.integers(1, 9))
    elif kind == 4:  # extreme numbers
        extreme = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0")[random.integers(4)]
        width = random.integers(1, 5)
        data[header : header + width] = extreme[:width]
    elif kind == 5:
        del data[position : position + random.integers(1, 30)]
    elif kind == 6:
        data[position : position + 50] = data[header : header + 50]
    else:  # as if a block of the disk were lost
        data[position : position + 64] = bytes(len(data[position : position + 64]))
    return bytes(data)


def write_mutants(root, random, count, whole=40):
    """Cases of which one file is damaged, or two are exchanged; and some whole ones, so that splits can be filled."""
    chests = [draw(seed, (48, 40)) for seed in range(whole)]
    scratch = root / "scratch"
    scratch.mkdir(parents=True)
    images = [encodings(image, scratch) for image, _ in chests[:8]]
    masks = [{name: encodings(mask, scratch) for name, mask in drawn.items()} for _, drawn in chests[:8]]
    clinic = root / "clinic"
    for folder in ("images", *(f"masks/{name}" for name in STRUCTURES)):
        (clinic / folder).mkdir(parents=True)
    for i in range(count):
        which = int(random.integers(len(images)))
        files = {"images": images[which][random.integers(len(images[which]))]}
        files |= {f"masks/{name}": masks[which][name][0] for name in STRUCTURES}
        keys = list(files)
        victim = keys[0] if random.random() < 0.7 else keys[random.integers(1, 4)]
        if victim != "images":
            name = victim.split("/")[1]
            files[victim] = masks[which][name][random.integers(len(masks[which][name]))]
        if random.random() < 0.03:
            other = keys[random.integers(4)]
            files[victim], files[other] = files[other], files[victim]
        else:
            for _ in range(random.integers(1, 4)):
                files[victim] = mutate(files[victim] or b"\0", random)
        for folder, data in files.items():
            (clinic / folder / f"mutant{i:06d}").write_bytes(data)
    for i, (image, drawn) in enumerate(chests):
        for folder, pixels in (("images", image), *((f"masks/{name}", mask) for name, mask in drawn.items())):
            Image.fromarray(pixels).save(clinic / folder / f"whole{i}", format="PNG")
    return FolderSource([clinic], "images", MaskFolders({name: f"masks/{name}" for name in STRUCTURES}), (24, 24))


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_damaged_files_are_accepted_or_rejected_with_a_reason(tmp_path):
    source = write_mutants(tmp_path, np.random.default_rng(SEED), COUNT)
    before = peak_memory()
    summary = prepare(source, Run(tmp_path / "out"))
    assert peak_memory() - before < MAX_MEMORY

    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    accepted = [entry for split in SPLITS for entry in datalist.entries[split]]
    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert len(accepted) + len(rejected) == summary.found == len(source.items) == COUNT + 40
    assert {row["reason"] for row in rejected} <= set(REASONS)
    assert len({row["reason"] for row in rejected}) >= 6  # the mutants reach many checks
    assert not {row["id"] for row in rejected} & {entry["id"] for entry in accepted}
    assert all(row["text"].isprintable() and "/" not in row["text"] for row in rejected)
    for entry in accepted:
        image, label = (np.asarray(Image.open(datalist.path.parent / entry[key])) for key in ("image", "label"))
        assert (image.dtype, image.shape) == (np.uint16, (24, 24)) and image.min() < image.max()
        assert set(np.unique(label)) == {0, 1, 2, 3}
    files = {path.stem for folder in ("images", "labels") for path in (tmp_path / "out" / folder).iterdir()}
    assert files == {entry["id"] for entry in accepted}
    # Of the first eight a harmless mutant may be accepted as the same picture.
    whole = {case_id(item, "") for item in source.items if item.name in {f"whole{i}" for i in range(8, 40)}}
    assert len(whole) == 32 and whole <= files
