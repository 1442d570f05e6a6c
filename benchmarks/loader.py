"""Compares our loaders with torchvision's ImageFolder and DataLoader, in images per second.

    python tools/cut_photo_patches.py PHOTOS patches
    python benchmarks/loader.py patches [--size 128] [--workers 0 2] [--rounds 7]

A pass gives all images once, shuffled, as float batches in [-1, 1] of SIZE×SIZE, after the same
bicubic resizing. Contenders: torchvision (PIL decoding; Resize, CenterCrop, ToTensor, Normalize),
our ImageFolder, and our cache of decoded images. Each pass makes a new loader, so it includes the
start of the workers. Prints median rates, and the ratio to torchvision's rate of the same round
with its 20th and 80th percentile. --step also gives the share of a training step spent waiting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from shared import measure
from torch.utils.data import DataLoader

import vqvae2_fast
from vqvae2_fast.data import ImageFolder, batches, cached_images, to_float

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from vqvae2_fast.data import ImageSource, ImageTensorDataset

    Loader = Callable[[], Iterator[tuple[Tensor, Tensor]]]

torchvision = measure.needed("torchvision")


def transform_to(size: int) -> torchvision.transforms.Compose:
    t = torchvision.transforms
    return t.Compose(
        [
            t.Resize(size, t.InterpolationMode.BICUBIC),
            t.CenterCrop(size),
            t.ToTensor(),
            t.Normalize(0.5, 0.5, inplace=True),
        ]
    )


def torchvision_loader(root: Path, size: int, batch: int, workers: int) -> Loader:
    dataset = torchvision.datasets.ImageFolder(root, transform_to(size))
    return lambda: iter(
        DataLoader(dataset, batch, shuffle=True, num_workers=workers, drop_last=True)
    )


def our_loader(dataset: ImageSource, batch: int, workers: int) -> Loader:
    steps = len(dataset) // batch
    return lambda: islice(batches(dataset, batch, seed=0, num_workers=workers), steps)


def rate_of(loader: Loader) -> float:
    start, images = time.perf_counter(), 0
    for batch, _ in loader():
        images += len(batch)
    return images / (time.perf_counter() - start)


def waiting_share(loader: Loader, steps: int, size: int) -> tuple[float, float]:
    """Seconds per training step of a VQ-VAE, and the share of them spent waiting for the loader."""
    config = vqvae2_fast.VQVAE2Config(
        image_size=(size, size), hidden_channels=64, residual_channels=32, init="normal"
    )
    model = vqvae2_fast.VQVAE2(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    waited = 0.0
    source = iter(loader())
    next(source)  # the workers' start belongs to the run, not to a step
    start = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        images, _ = next(source)
        waited += time.perf_counter() - asked
        loss = model.loss(images, model(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_codebooks_()
    took = time.perf_counter() - start
    return took / steps, waited / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="class folders of images")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=measure.count, default=7)
    parser.add_argument("--step", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(measure.machine("torchvision", "pillow"))
    folder = ImageFolder(options.folder, options.size)
    print(f"{len(folder)} images to {options.size}x{options.size}, batches of {options.batch}")
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        cached = cached_images(folder, cache)
        print(f"cache made at {len(folder) / (time.perf_counter() - start):.0f} images/s")
        contenders: dict[str, Loader] = {}
        for workers in options.workers:
            name = f"{workers} workers"
            contenders[f"torchvision, {name}"] = torchvision_loader(
                options.folder, options.size, options.batch, workers
            )
            contenders[f"ImageFolder, {name}"] = our_loader(folder, options.batch, workers)
        contenders["cached_images"] = our_loader(cached, options.batch, 0)
        check_equal(folder, cached, options.folder)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(options.rounds + 1):
            for name in list(contenders)[:: 1 if number % 2 else -1]:
                rate = rate_of(contenders[name])
                if number:  # the first warms up
                    rates[name].append(rate)
        for name, taken in rates.items():
            base = name.replace("ImageFolder", "torchvision")
            if base not in rates or name == "cached_images":
                base = f"torchvision, {options.workers[-1]} workers"
            ratios = sorted(a / b for a, b in zip(taken, rates[base], strict=True))
            low, high = ratios[int(0.2 * (len(ratios) - 1))], ratios[round(0.8 * (len(ratios) - 1))]
            print(
                f"{name:24} {statistics.median(taken):8.0f} images/s; to {base}: "
                f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"
            )
        if options.step:
            for name, loader in contenders.items():
                seconds, share = waiting_share(loader, 12, options.size)
                print(f"{name:24} step {seconds * 1e3:.0f} ms, {100 * share:.1f} % of it waiting")
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def check_equal(folder: ImageFolder, cached: ImageTensorDataset, root: Path) -> None:
    """Fails unless all loaders give the same images; torchvision's may differ by two grey
    levels."""
    size = folder.image_shape[1]
    theirs = torchvision.datasets.ImageFolder(root, transform_to(size))
    paths = [Path(path).relative_to(root).as_posix() for path, _ in theirs.samples]
    if tuple(paths) != folder.names:
        sys.exit("torchvision finds other files: no rates are given")
    for i in range(0, len(folder), max(1, len(folder) // 5)):
        ours = folder[i][0]
        difference = (to_float(ours) - theirs[i][0]).abs().max() * 127.5
        if not torch.equal(ours, cached[i][0]) or difference > 2.01 or folder[i][1] != theirs[i][1]:
            sys.exit(f"image {i} differs by {difference:.1f} levels: no rates are given")


if __name__ == "__main__":
    main()
