"""Runs contenders in turns in one process and prints ratios of medians with their spread.

    python benchmarks/compare.py search step --rounds 31 --threads 2 --save
    python benchmarks/compare.py "search*" "cost*" --save
    python benchmarks/compare.py --list

Prints each contender's median and how many times as long as ours it takes: ratio of medians, in
brackets the 20th and 80th percentile of the ratio within a round. An operator whose conformance
tests fail gets no ratio. `VQVAE2_FAST_SIMD` chooses our SIMD level.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import conformance
import measure
from peak_memory import peak_mib
from workloads import WORKLOADS, Workload


def make_runs(workload: Workload, wanted: list[str]) -> dict[str, object]:
    runs = {}
    for name, make in workload.contenders.items():
        if wanted and name not in ("ours", *wanted):
            continue
        try:
            runs[name] = make()
        except ModuleNotFoundError as error:
            print(f"  {name}: left out, {error.name} is not installed (pip install '.[bench]')")
    return runs


def compare(name: str, options: argparse.Namespace) -> list[measure.Row]:
    workload = WORKLOADS[name]()
    green = conformance.is_green(workload.op)
    runs = make_runs(workload, options.against)
    seconds = measure.interleave(
        {**runs, **measure.ceilings()}, options.rounds, measure.CLOCKS[options.clock]
    )
    print(
        f"{workload.name}, load {os.getloadavg()[0]:.1f}; matmul "
        f"{measure.matmul_rate(seconds['ceiling:matmul']):.0f} GFLOP/s, copy "
        f"{measure.copy_rate(seconds['ceiling:copy']):.1f} GB/s, "
        f"OpenBLAS {measure.openblas_cores()}"
    )
    rows = []
    for contender in runs:
        times = seconds[contender]
        wants_memory = options.memory and not workload.mode.startswith("cost_")
        peak = peak_mib(name, contender) if wants_memory else float("nan")
        row = measure.make_row(workload, contender, seconds, peak, options.clock)
        rows.append(row)
        line = (
            f"  {contender:14} {statistics.median(times) * 1e3:9.4f} ms "
            f"({row.p20_ms:.4g}-{row.p80_ms:.4g}) {row.gflop_per_s:7.1f} GFLOP/s "
            f"{100 * row.share_of_ceiling:4.0f} % of ceiling"
        )
        if wants_memory:
            line += f" {peak:7.1f} MiB"
        if contender != "ours" and "ours" in runs:
            middle, low, high = measure.ratio(times, seconds["ours"])
            line += (
                f"  {middle:.2f}x ours ({low:.2f}-{high:.2f})"
                if green
                else "  no ratio: its tests fail"
            )
        print(line, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "workloads", nargs="*", default=["*"], help="names or patterns of workloads; default: all"
    )
    parser.add_argument(
        "--against", nargs="*", default=[], help="contenders in addition to ours; default: all"
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="peak memory, in separate processes")
    parser.add_argument("--save", action="store_true", help="append to results/<device>.csv")
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--clock",
        choices=list(measure.CLOCKS),
        default="wall",
        help="cpu: only the time of the calling thread, for a busy machine",
    )
    options = parser.parse_args()
    if options.list:
        print("\n".join(WORKLOADS))
        return
    names = [[n for n in WORKLOADS if fnmatch.fnmatch(n, each)] for each in options.workloads]
    unknown = [each for each, found in zip(options.workloads, names, strict=True) if not found]
    if unknown:
        parser.error(f"expected workloads of {', '.join(WORKLOADS)}, got {', '.join(unknown)}")
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu sees only the calling thread: expected --threads 1")
    torch.set_num_threads(options.threads)
    print(
        f"{measure.device_name()}, {options.threads} threads, {options.clock} clock, "
        f"{options.rounds} rounds, {measure.versions()}, commit {measure.commit()}"
    )
    for name in dict.fromkeys(sum(names, [])):
        rows = compare(name, options)
        if options.save:
            measure.save(rows)


if __name__ == "__main__":
    main()
