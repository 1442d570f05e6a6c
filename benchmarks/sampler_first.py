"""Times the first draw of a loaded prior of the port's size against later ones.

    python benchmarks/sampler_first.py [--threads 2] [--engine cpu]

Each prior is saved, loaded again by a process of its own, and drawn from three times, batch 1. The
first draw folds and packs the weights; no draw before it has touched the library's memory. With one
thread the times are of the processor, which other load disturbs little, else of the wall clock.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sampler import PRIORS, clock

import vqvae2_fast
from vqvae2_fast.models.pixelsnail import PixelSNAIL


def draw_from(folder: str, engine: str) -> None:
    """Prints the seconds of loading and of three draws, and the peak of memory in MB."""
    start = clock()
    prior = vqvae2_fast.load(folder, expect=PixelSNAIL)
    times = [clock() - start]
    maps = [torch.zeros(1, *size, dtype=torch.int64) for size in prior.config.condition_sizes]
    for _ in range(3):
        start = clock()
        vqvae2_fast.sample_codes(prior, 1, condition=maps, engine=engine)
        times.append(clock() - start)
    print(*times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.folder:
        draw_from(arguments.folder, arguments.engine)
        return
    first_image, warm_image = 0.0, 0.0
    for name, config in PRIORS.items():
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            vqvae2_fast.save(PixelSNAIL(config), Path(folder) / name)
            script = [sys.executable, __file__, "--folder", f"{folder}/{name}"]
            options = ["--threads", str(arguments.threads), "--engine", arguments.engine]
            done = subprocess.run([*script, *options], check=True, capture_output=True, text=True)
        load, first, *warm, memory = map(float, done.stdout.split())
        first_image, warm_image = first_image + first, warm_image + min(warm)
        print(
            f"{name}: load {load:.2f} s, first draw {first:.2f} s, warm {min(warm):.2f} s: "
            f"{first / min(warm):.2f} times; {memory:.0f} MB at most"
        )
    print(
        f"one image: {first_image:.2f} s, warm {warm_image:.2f} s: {first_image / warm_image:.2f}"
    )


if __name__ == "__main__":
    main()
