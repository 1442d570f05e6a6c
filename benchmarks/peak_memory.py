"""MiB of peak memory of one call above what was used before it, in a separate process.

    python benchmarks/peak_memory.py search ours [--threads 2]

Prints MiB: the high-water mark of resident memory during the second call (the first warms caches
that last) minus the resident memory before it, outputs included. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def numbers_of(script: str, *arguments: str, count: int) -> list[float]:
    """The last numbers that a script prints in a new process; NaN if the system does not report
    its memory."""
    if not Path("/proc/self/clear_refs").exists():
        return [float("nan")] * count
    # glibc keeps freed blocks below this size, which would hide what a call takes.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    result = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return [float(number) for number in result.stdout.split()[-count:]]


def peak_mib(workload: str, contender: str) -> float:
    import torch

    # Each thread has a workspace, so the other process takes as many as this one.
    threads = ("--threads", str(torch.get_num_threads()))
    return numbers_of(__file__, workload, contender, *threads, count=1)[0]


def rise_of(run: Callable[[], object]) -> float:
    """MiB that a call needs beyond the resident memory before it."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run()
    return max(0.0, resident("VmHWM") - before)


def resident(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    import torch
    from workloads import WORKLOADS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=WORKLOADS, metavar="workload", help="of compare.py")
    parser.add_argument("contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    makers = WORKLOADS[options.workload]().contenders
    if options.contender not in makers:
        parser.error(f"expected a contender of {', '.join(makers)}, got {options.contender}")
    run = makers[options.contender]()
    run()
    print(rise_of(run))


if __name__ == "__main__":
    main()
