"""Peak memory and speed of the measures on many samples, in features of a network's size.

    python benchmarks/evaluation_memory.py --images 50000

Features are made up batch by batch, as a network would give them; they go to mapped files. Peak
memory is that of the process less what it took to import everything.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.metrics import extract_features, frechet_distance, inception_score, kernel_distance
from vqvae2_fast.metrics.features import Extracted
from vqvae2_fast.metrics.neighbours import neighbour_measures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_BATCH = 256


class MadeUp:
    """A network of no cost: normal features, mixed."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--neighbours", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=1280)
    options = parser.parse_args()
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as folder:
        sets = [
            extract_features(
                MadeUp(options.dim, shift),
                batches(options.images),
                options.images,
                Path(folder) / str(shift),
            )
            for shift in (0.0, 0.01)
        ]
        real, fake = (own.tensor() for own in sets)
        few = slice(0, options.neighbours)
        measures = {
            "moments of both sets": lambda: moments.extend(own.moments() for own in sets),
            "frechet, no interval": lambda: frechet_distance(*moments, interval=False),
            "kernel": lambda: kernel_distance(real, fake),
            "score": lambda: inception_score(sets[1].tensor("log_probabilities").split(4096)),
            f"neighbours of {options.neighbours}": lambda: neighbour_measures(
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
                f"s of processor), peak {peak:.0f} MiB, mapped files included",
                flush=True,
            )


if __name__ == "__main__":
    main()
