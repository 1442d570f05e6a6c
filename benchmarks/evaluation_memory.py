"""Peak memory and speed of an evaluation.

    python benchmarks/evaluation_memory.py features --images 50000
    python benchmarks/evaluation_memory.py images --data PHOTOGRAPHS --counts 24 300
    python benchmarks/evaluation_memory.py samples --counts 200 20000

`features` times the measures of many samples in random features of a network's size, which come
batch by batch as from a network. Its peaks are those of the process so far, minus what importing
everything took. `images` runs `vqvae2-fast evaluate` in a separate process for each number of
held-out images of 256x256, with a small untrained pipeline, and prints its peak. `samples` does the
same for each number of samples (`evaluate --images`) and as many made-up real images of 16x16, in
the features of a small classifier; its peaks have the mapped files of features in them.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from shared.measure import machine

from vqvae2_fast import VQVAE2, Pipeline, PixelSNAIL, preset, save
from vqvae2_fast.data import ImageFolder, in_order
from vqvae2_fast.metrics import extract_features, frechet_distance, inception_score, kernel_distance
from vqvae2_fast.metrics.features import Extracted
from vqvae2_fast.metrics.set_measures import neighbour_measures
from vqvae2_fast.models.classifier import Classifier, ClassifierConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.models import tiny_pipeline  # noqa: E402

_BATCH = 256
_CHILD = """
import resource, sys
from vqvae2_fast.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


class MadeUp:
    """A network that costs nothing: normal features."""

    name = "made-up"

    def __init__(self, dim: int, shift: float) -> None:
        self.generator = torch.Generator().manual_seed(int(shift * 100))
        self.dim, self.shift = dim, shift

    def __call__(self, images: Tensor) -> Extracted:
        rows = torch.randn(len(images), self.dim, generator=self.generator) + self.shift
        return Extracted(rows, rows[:, :448], rows[:, :1000].log_softmax(1))


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        yield torch.zeros(size, 1), torch.zeros(size, dtype=torch.int64)


def measure_features(images: int, neighbours: int, dim: int) -> None:
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as folder:
        sets = [
            extract_features(MadeUp(dim, shift), batches(images), images, Path(folder) / str(shift))
            for shift in (0.0, 0.01)
        ]
        real, fake = (own.tensor() for own in sets)
        few = slice(0, neighbours)
        measures = {
            "moments of both sets": lambda: moments.extend(own.moments() for own in sets),
            "frechet, no interval": lambda: frechet_distance(*moments, interval=False),
            "kernel": lambda: kernel_distance(real, fake),
            "score": lambda: inception_score(sets[1].tensor("log_probabilities").split(4096)),
            f"neighbours of {neighbours}": lambda: neighbour_measures(
                real[few].clone(), fake[few].clone()
            ),
        }
        moments: list = []
        for name, measure in measures.items():
            start, processor = time.monotonic(), time.process_time()
            measure()
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
            print(
                f"{name}: {time.monotonic() - start:.1f} s ({time.process_time() - processor:.1f} "
                f"s of processor), peak so far {peak:.0f} MiB, mapped files included",
                flush=True,
            )


def small_pipeline(data: Path) -> Pipeline:
    """A small pipeline for 256x256 images, whose codebooks start from vectors of images."""
    torch.manual_seed(0)
    config = preset("imagenet256")
    narrow = {"channels": 32, "residual_channels": 16, "num_blocks": 1, "layers_per_block": 1}
    vqvae = VQVAE2(
        replace(config.vqvae, hidden_channels=32, residual_channels=16, embedding_dim=16)
    )
    vqvae(next(in_order(ImageFolder(data, (256, 256), split="train"), 16))[0])
    priors = [
        PixelSNAIL(
            replace(prior, **narrow, num_heads=2, num_output_layers=1, condition_channels=16)
        )
        for prior in config.priors
    ]
    return Pipeline(vqvae.eval(), [prior.eval() for prior in priors])


def peak_of(command: str) -> str:
    """Runs an evaluation in a process of its own; its seconds and its peak."""
    start = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", _CHILD, "evaluate", *command.split(), "--quiet"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return f"{time.monotonic() - start:.0f} s, peak {told.stdout.split()[-1]} MiB"


def measure_images(data: Path, counts: list[int]) -> None:
    with TemporaryDirectory() as folder:
        save(small_pipeline(data), Path(folder) / "pipeline")
        options = f"--pipeline {folder}/pipeline --data {data} --train-images 0 --codec-images 8"
        for count in counts:
            told = peak_of(f"{options} --held-out-images {count} --out {folder}/{count}")
            print(f"{count} held-out images: {told}", flush=True)


def measure_samples(counts: list[int]) -> None:
    classes = ("a", "b", "c")
    with TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for number in range(2 * max(counts)):
            side = ("train", "held_out")[number % 2]
            path = Path(folder) / "data" / side / classes[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(path)
        save(tiny_pipeline(), Path(folder) / "pipeline", class_names=classes)
        judge = Classifier(ClassifierConfig((16, 16), 3, len(classes), "small", 8)).eval()
        save(judge, Path(folder) / "judge", class_names=classes)
        options = f"--pipeline {folder}/pipeline --data {folder}/data --classifier {folder}/judge"
        options += " --features classifier --held-out-images 200 --train-images 0"
        options += " --codec-images 8 --compressed-images 0"
        for count in counts:
            told = peak_of(f"{options} --images {count} --out {folder}/{count}")
            print(f"{count} samples: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    features = parts.add_parser("features")
    features.add_argument("--images", type=int, default=50_000)
    features.add_argument("--neighbours", type=int, default=10_000)
    features.add_argument("--dim", type=int, default=1280)
    images = parts.add_parser("images")
    images.add_argument("--data", type=Path, required=True)
    images.add_argument("--counts", type=int, nargs="+", default=[24, 300])
    samples = parts.add_parser("samples")
    samples.add_argument("--counts", type=int, nargs="+", default=[200, 20_000])
    options = parser.parse_args()
    print(machine())
    if options.part == "features":
        measure_features(options.images, options.neighbours, options.dim)
    elif options.part == "samples":
        measure_samples(options.counts)
    else:
        measure_images(options.data, options.counts)


if __name__ == "__main__":
    main()
