"""MiB of peak memory of one call above what was used before it, in a separate process.

    python benchmarks/peak_memory.py search ours [--threads 2]

Prints MiB: the high-water mark of resident memory during the second call (the first warms caches
that last) minus the resident memory before it, outputs included. Linux only.
"""

from __future__ import annotations

import argparse

from shared.memory import numbers_of, rise_of


def peak_mib(workload: str, contender: str) -> float:
    import torch

    # Each thread has a workspace, so the other process takes as many as this one.
    threads = ("--threads", str(torch.get_num_threads()))
    return numbers_of(__file__, workload, contender, *threads, count=1)[0]


def main() -> None:
    import torch
    from shared.workloads import WORKLOADS

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
