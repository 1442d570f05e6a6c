"""Times the first draw of a loaded prior of the port's size against later ones.

    python benchmarks/sampler_first.py [--threads 2] [--engine cpu] [--rounds 5]

Each prior is saved; then in each round a process of its own loads it and draws from it three times,
batch 1. The first draw folds and packs the weights; no draw before it has touched the library's
memory. Printed are medians over the rounds, and ratios of them without their spread. With one
thread the times are of the processor, which other load disturbs little, else of the wall clock.

The library takes its memory in pages of 2 MiB, all threads at once. The host of a virtual machine
that has taken back the free memory needs about 4 ms for each; then the rest is taken in small
pages. The comparison is made again without the time in which the packed weights get their memory
and nothing else happens.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from sampler import PRIORS, clock
from shared import measure

import vqvae2_fast
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.ops import _native


def draw_from(folder: str, engine: str) -> None:
    """Prints the peak of memory in MB, and the seconds of loading, of the memory of the packed
    weights, and of three draws.
    """
    library, waited = _native.module, []
    take_memory = library.SamplerPlan

    def timed(**arguments):
        start = clock()
        plan = take_memory(**arguments)
        waited.append(clock() - start)
        return plan

    library.SamplerPlan = timed
    start = clock()
    prior = vqvae2_fast.load(folder, expect=PixelSNAIL)
    load = clock() - start
    maps = [torch.zeros(1, *size, dtype=torch.int64) for size in prior.config.condition_sizes]
    draws = []
    for _ in range(3):
        start = clock()
        vqvae2_fast.sample_codes(prior, 1, condition=maps, engine=engine)
        draws.append(clock() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(peak, load, sum(waited), *draws)


def compared(first: float, memory: float, warm: float) -> str:
    """Seconds of the first draw, of taking memory in it, and of a warm draw."""
    return (
        f"first draw {first:.2f} s, warm {warm:.2f} s: {first / warm:.2f} times, or "
        f"{(first - memory) / warm:.2f} without {memory:.2f} s for memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=measure.count, default=2)
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--rounds", type=measure.count, default=5)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.folder:
        draw_from(arguments.folder, arguments.engine)
        return
    print(f"{measure.machine()}, {arguments.rounds} rounds")
    image = [0.0, 0.0, 0.0]
    for name, config in PRIORS.items():
        rounds = []
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            vqvae2_fast.save(PixelSNAIL(config), Path(folder) / name)
            script = [sys.executable, __file__, "--folder", f"{folder}/{name}"]
            options = ["--threads", str(arguments.threads), "--engine", arguments.engine]
            for _ in range(arguments.rounds):
                done = subprocess.run(
                    [*script, *options], check=True, capture_output=True, text=True
                )
                rounds.append([float(number) for number in done.stdout.split()])
        peak, load, memory, first, *later = (list(of_all) for of_all in zip(*rounds, strict=True))
        times = median(first), median(memory), median(sum(later, []))
        image = [total + time for total, time in zip(image, times, strict=True)]
        loaded = f"load {median(load):.2f} s, {compared(*times)}"
        print(f"{name}: {loaded}; {max(peak):.0f} MB at most", flush=True)
    print(f"one image: {compared(*image)}")


if __name__ == "__main__":
    main()
