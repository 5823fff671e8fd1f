"""The cost of loading in an epoch of training, for each of MONAI's ways of loading and a memory map.

    python benchmarks/loading.py OUT --size 64
    python benchmarks/loading.py OUT --size 224

Prepares phantoms in OUT, loads them with the transforms of the bundle dscm_pretraining, and compares the CPU time of an
epoch's loading with that of its training steps (the bundle's network and batch size; forward, backward, update). CPU
time is that of all threads and worker processes, so other work on the machine does not change the result. Loading in
other processes counts as a cost, too, since training would use those cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset, SmartCacheDataset, ThreadDataLoader
from monai.transforms import Compose, Rand2DElasticd, RandAdjustContrastd

from data_prep.collect import Run, prepare
from data_prep.phantom import PhantomSource
from data_prep.phantom_chest import ChestPhantom
from segcft_ext.augmentation import BatchAugmentation
from segcft_ext.batches import PrepareVariables
from segcft_ext.datalist import read_datalist
from segcft_ext.dscm import DSCM

CONFIG = Path(__file__).parents[1] / "bundles" / "dscm_pretraining" / "configs" / "train.json"


class MemoryMap(Dataset):
    """Images and label maps of all cases in one file on disk, of which only what is needed is read."""

    def __init__(self, data: list[dict[str, Any]], transform: Callable[[Any], Any], path: Path) -> None:
        super().__init__(data)
        first = transform(data[0])
        shape = (len(data), 2, *first["image"].shape)
        self.arrays = np.memmap(path, np.float32, "w+", shape=shape)
        for i, item in enumerate(data):
            loaded = transform(item)
            self.arrays[i] = np.stack([loaded["image"], loaded["label"]])
        self.arrays.flush()

    def _transform(self, index: int) -> dict[str, Any]:
        image, label = torch.from_numpy(self.arrays[index].copy())
        return {**self.data[index], "image": image, "label": label}


def cpu() -> float:
    """CPU seconds of this process and of the worker processes that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def resident() -> float:
    """Memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def epoch(loader: DataLoader) -> float:
    """CPU seconds of one epoch's loading."""
    start = cpu()
    if isinstance(loader.dataset, SmartCacheDataset):
        loader.dataset.update_cache()
    for _ in loader:
        pass
    return cpu() - start


def step_time(network: DSCM, batches: Iterable[Any], prepare_batch: PrepareVariables) -> tuple[float, float]:
    """CPU seconds of a training step of the bundle's network, and of augmenting and measuring its batch."""
    preparing, training = [], []
    optimizer = torch.optim.AdamW(network.parameters())
    for i, batch in enumerate(batches):
        start = cpu()
        image, values, *_ = prepare_batch(batch, torch.device("cpu"))
        middle = cpu()
        optimizer.zero_grad()
        posterior = network.hvae.posterior(image, network.variables.encode(values))
        (network.hvae.negative_elbo(image, posterior).mean() + network.scm.nll(batch["variables"])).backward()
        optimizer.step()
        preparing.append(middle - start)
        training.append(cpu() - middle)
        if i == 4:
            break
    return float(np.median(training)), float(np.median(preparing))


def monai_augmentation_time(batch: Any, size: int) -> float:
    """CPU seconds in which MONAI's transforms, case by case on the CPU, augment a batch much as
    :class:`~segcft_ext.augmentation.BatchAugmentation` does."""
    chain = Compose(
        [
            Rand2DElasticd(
                ["image", "label"],
                spacing=(size / 4, size / 4),
                magnitude_range=(0, 0.015 * size),
                prob=1.0,
                rotate_range=0.12,
                scale_range=(0.12, 0.12),
                translate_range=(0.05 * size, 0.05 * size),
                mode=["bilinear", "nearest"],
                padding_mode="border",
            ),
            RandAdjustContrastd("image", prob=1.0),
        ]
    )
    cases = [{key: batch[key][i] for key in ("image", "label")} for i in range(len(batch["image"]))]
    times = []
    for _ in range(5):
        start = cpu()
        for case in cases:
            chain(case)
        times.append(cpu() - start)
    return float(np.median(times))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--count", type=int, default=400)
    arguments.add_argument("--size", type=int, default=64)
    arguments.add_argument("--epochs", type=int, default=3)
    given = arguments.parse_args()

    folder = given.out / f"phantoms{given.size}"
    if not (folder / "datalist.json").exists():
        renderer = ChestPhantom(size=given.size)
        prepare(PhantomSource(renderer, given.count, (given.size,) * 2, 0, {"_target_": "none"}), Run(folder))
    parser = ConfigParser(json.loads(CONFIG.read_text()))
    parser["datalist"], parser["device"] = str(folder / "datalist.json"), torch.device("cpu")
    datalist = read_datalist(folder / "datalist.json")
    names = parser.get_parsed_content("names")
    items = datalist.items("training", variables=names)
    transform, size = parser.get_parsed_content("train#preprocessing"), parser["batch_size"]
    batches = {"batch_size": size, "shuffle": True}

    def cached() -> CacheDataset:
        return CacheDataset(items, transform, progress=False)

    ways: dict[str, Callable[[], DataLoader]] = {
        "Dataset": lambda: DataLoader(Dataset(items, transform), **batches),
        "Dataset, 2 workers": lambda: DataLoader(Dataset(items, transform), num_workers=2, **batches),
        "PersistentDataset": lambda: DataLoader(PersistentDataset(items, transform, given.out / "cache"), **batches),
        "memory map": lambda: DataLoader(MemoryMap(items, transform, folder / "arrays.bin"), **batches),
        "SmartCacheDataset, half": lambda: DataLoader(
            SmartCacheDataset(items, transform, replace_rate=0.2, cache_rate=0.5, progress=False), **batches
        ),
        "CacheDataset": lambda: DataLoader(cached(), **batches),
        "CacheDataset, ThreadDataLoader": lambda: ThreadDataLoader(cached(), num_workers=0, **batches),
        "CacheDataset, 2 workers": lambda: DataLoader(cached(), num_workers=2, **batches),
    }
    network = parser.get_parsed_content("network")
    network.fit(datalist)
    augmentation = PrepareVariables(datalist, names, BatchAugmentation())
    step, preparing = step_time(network, DataLoader(cached(), **batches), augmentation)
    print(
        f"\n{len(items)} images of {given.size} x {given.size}, batches of {size}, {torch.get_num_threads()} thread(s)"
    )
    print(f"a training step: {1000 * step:.0f} ms; augmentation and measuring: {1000 * preparing:.1f} ms")
    alone = monai_augmentation_time(next(iter(DataLoader(cached(), **batches))), given.size)
    print(f"augmentation by MONAI's transforms, case by case, without measuring: {1000 * alone:.1f} ms")
    print("| | start-up, ms per image | an epoch's loading, ms per image | share of training | memory, MB |")
    print("|---|---|---|---|---|")
    for name, build in ways.items():
        before, start = resident(), cpu()
        loader = build()
        if isinstance(loader.dataset, SmartCacheDataset):
            loader.dataset.start()
        epoch(loader)  # the first one fills a persistent cache, and counts as start-up
        started = cpu() - start
        loading = float(np.median([epoch(loader) for _ in range(given.epochs)])) / len(loader.dataset)
        if isinstance(loader.dataset, SmartCacheDataset):
            loader.dataset.shutdown()
        print(
            f"| {name} | {1000 * started / len(items):.1f} | {1000 * loading:.2f} |"
            f" {100 * loading * size / step:.1f} % | {resident() - before:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
