"""Runs contenders in turns in one process and prints ratios of medians with their spread.

    python benchmarks/compare.py search step --rounds 31 --threads 2 --save
    python benchmarks/compare.py "search*" "cost*" --save
    python benchmarks/compare.py search --against faiss --levels avx2 avx2_vnni
    python benchmarks/compare.py --list

Prints each contender's median and how many times as long as ours it takes: ratio of medians, in
brackets the 20th and 80th percentile of the ratio within a round. A workload with an operator whose
conformance tests fail is left out, and the exit code is 1. `VQVAE2_FAST_SIMD` chooses our SIMD
level; --levels adds ours at others.
"""

from __future__ import annotations

import fnmatch
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peak_memory import peak_mib
from shared import conformance, measure
from shared.workload import Run, Workload, make_runs
from shared.workloads import WORKLOADS

from vqvae2_fast import ops

if TYPE_CHECKING:
    import argparse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.compare import simd_level, simd_levels  # noqa: E402


def owner_of(workload: Workload) -> str:
    """Who runs the operator that is recorded."""
    _, k, d = workload.shape
    z, codebook = torch.zeros(1, d), torch.zeros(k, d)
    arguments = {
        "code_statistics": (z, torch.zeros(1, dtype=torch.int64), k),
        "residual_nearest_code": (z, codebook[None]),
        "ema_update_": (torch.zeros(k), codebook, torch.zeros(k), codebook, codebook, 0.5, 1.0),
        "scalar_quantize": (z, [2] * d),
        "sign_quantize": (z, 1.0),
    }
    return ops.owner(workload.operator, *arguments.get(workload.operator, (z, codebook)))


def at_level(level: str, run: Run) -> Run:
    def run_at_level() -> object:
        with simd_level(level):
            return run()

    return run_at_level


def compare(name: str, workload: Workload, options: argparse.Namespace) -> list[measure.Row]:
    wanted = {"ours", *(options.against or workload.contenders)}
    runs = make_runs({who: make for who, make in workload.contenders.items() if who in wanted})
    if options.levels:
        runs |= {f"ours, {level}": at_level(level, runs["ours"]) for level in options.levels}
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
        is_own_process = contender in workload.contenders and not workload.mode.startswith("cost_")
        wants_memory = options.memory and is_own_process
        peak = peak_mib(name, contender) if wants_memory else float("nan")
        row = measure.make_row(
            contender,
            seconds,
            op=workload.operator,
            owner=owner_of(workload) if contender.startswith("ours") else contender,
            mode=workload.mode,
            shape=workload.size,
            flops=workload.flops,
            traffic=workload.bytes,
            peak_mib=peak,
            clock=options.clock,
        )
        rows.append(row)
        line = (
            f"  {contender:17} {statistics.median(times) * 1e3:9.4f} ms "
            f"({row.p20_ms:.4g}-{row.p80_ms:.4g}) {row.gflop_per_s:7.1f} GFLOP/s "
            f"{100 * row.share_of_ceiling:4.0f} % of ceiling"
        )
        if wants_memory:
            line += f" {peak:7.1f} MiB"
        if contender != "ours" and "ours" in runs:
            middle, low, high = measure.ratio(times, seconds["ours"])
            line += f"  {middle:.2f}x ours ({low:.2f}-{high:.2f})"
        print(line, flush=True)
    return rows


def main() -> None:
    parser = measure.parser(__doc__, rounds=21)
    measure.add_clock(parser)
    parser.add_argument(
        "workloads", nargs="*", default=["*"], help="names or patterns of workloads; default: all"
    )
    parser.add_argument(
        "--against", nargs="*", default=[], help="contenders in addition to ours; default: all"
    )
    parser.add_argument(
        "--levels", nargs="*", default=[], help="SIMD levels at which ours takes part as well"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory, in separate processes")
    parser.add_argument("--save", action="store_true", help="append to results/<device>.csv")
    parser.add_argument("--list", action="store_true")
    options = measure.parse(parser)
    if options.save and options.levels:
        parser.error("--save: expected one SIMD level, that of the table; leave out --levels")
    if options.list:
        print("\n".join(WORKLOADS))
        return
    if unknown := set(options.levels) - set(simd_levels()):
        here = ", ".join(simd_levels())
        parser.error(f"--levels: expected some of {here}, got {', '.join(unknown)}")
    names = [[n for n in WORKLOADS if fnmatch.fnmatch(n, each)] for each in options.workloads]
    unknown = [each for each, found in zip(options.workloads, names, strict=True) if not found]
    if unknown:
        parser.error(f"expected workloads of {', '.join(WORKLOADS)}, got {', '.join(unknown)}")
    measure.set_conditions(options.threads)
    print(f"{measure.machine()}, {options.clock} clock, {options.rounds} rounds")
    left_out, unmet = [], set(options.against) - {"ours"}
    for name in dict.fromkeys(sum(names, [])):
        workload = WORKLOADS[name]()
        unmet -= workload.contenders.keys()
        if failing := conformance.red(workload.operators):
            print(f"{workload.name}: left out, the tests of {', '.join(failing)} fail", flush=True)
            left_out.append(name)
            continue
        rows = compare(name, workload, options)
        if options.save:
            measure.save(rows)
    if unmet:
        raise SystemExit(
            f"benchmarks/compare.py: --against: none of these workloads has {', '.join(unmet)}."
        )
    if left_out:
        raise SystemExit(
            f"benchmarks/compare.py: {', '.join(left_out)} left out: operators fail their tests."
        )


if __name__ == "__main__":
    main()
