"""Times training steps alone and beside a busy process, with OpenMP's threads as they are, with
`vqvae2_fast.training.shared_cores`, and as in a training, which also takes one thread instead of
two.

    python benchmarks/shared_cores.py [--rounds 3] [--threads 2]

The busy process has one thread. In each round every setting has a process of its own, in turns:
`as it is`, `shared_cores` and `training` with --threads, and `one thread`. Each makes steps for six
seconds; those of the first two do not count. Printed are medians over the rounds of the median
step, with least and most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import TYPE_CHECKING

from freed_memory import prior_step, vqvae_step
from shared import measure

from vqvae2_fast.machine.fitting_threads import FittingThreads
from vqvae2_fast.training import keep_freed_memory, shared_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

WORKS: dict[str, Callable[[], Work]] = {
    "VQ-VAE of emoji32, batch 32": lambda: vqvae_step("emoji32", 32),
    "VQ-VAE of photos64, batch 32": lambda: vqvae_step("photos64", 32),
    "bottom prior of photos64, batch 16": lambda: prior_step("photos64", 16),
}
SETTINGS = ("as it is", "shared_cores", "training", "one thread")
UNCOUNTED, COUNTED = 2.0, 4.0  # seconds


def step_time(what: str, setting: str) -> float:
    """Seconds of the median step."""
    keep_freed_memory()
    step = WORKS[what]()
    found = []
    with shared_cores() if setting in ("shared_cores", "training") else nullcontext():
        threads = FittingThreads()
        began = time.perf_counter()
        while (start := time.perf_counter()) < began + UNCOUNTED + COUNTED:
            with threads.taken() if setting == "training" else nullcontext():
                step()
            if start > began + UNCOUNTED:
                found.append(time.perf_counter() - start)
    return median(found)


def in_a_process(what: str, setting: str, threads: int) -> float:
    """What `step_time` gives."""
    threads = 1 if setting == "one thread" else threads
    options = ["--work", what, "--setting", setting, "--threads", str(threads)]
    return measure.numbers_printed(__file__, *options)[0]


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = measure.parser(__doc__, rounds=3)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = measure.parse(parser)
    if options.work:
        print(step_time(options.work, options.setting))
        return
    print(f"{measure.machine()}, {options.rounds} rounds")
    for what in WORKS:
        for beside, company in (("alone", nullcontext), ("beside one process", busy_process)):
            with company():
                rounds = [
                    [in_a_process(what, setting, options.threads) for setting in SETTINGS]
                    for _ in range(options.rounds)
                ]
            told = [
                f"{setting} {median(found) * 1e3:.0f} ms ({min(found) * 1e3:.0f}-"
                f"{max(found) * 1e3:.0f})"
                for setting, found in zip(SETTINGS, zip(*rounds, strict=True), strict=True)
            ]
            print(f"{what}, {beside}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
