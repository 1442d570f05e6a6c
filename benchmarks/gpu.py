"""Times operators on a GPU, contenders in turns in one process: medians, ratios, shares of
ceilings.

    python benchmarks/gpu.py --rounds 31 --save

`benchmarks/gpu.sh` runs it after the tests; `gpu_works.py` says what is measured. Contenders whose
package is missing are left out by name. TF32 is off unless a piece of work says otherwise. The
ceilings are a float16 product and a copy in the same run. `--save` writes results/<device>.csv and
its plots.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import statistics
import time
from datetime import date
from typing import TYPE_CHECKING

import measure
import numpy as np
import report
import torch
from gpu_works import Work, works
from workload import Run, make_runs

if TYPE_CHECKING:
    from pathlib import Path


def clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def ceilings() -> dict[str, Run]:
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    source = torch.zeros(1 << 28, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {"ceiling:matmul": lambda: a @ a, "ceiling:copy": lambda: target.copy_(source)}


def measured(work: Work, rounds: int) -> list[dict[str, object]]:
    runs = make_runs(work.contenders)
    seconds = measure.interleave({**runs, **ceilings()}, rounds, clock)
    matmul = 2 * 8192**3 / statistics.median(seconds["ceiling:matmul"])
    copy = 2 * (1 << 28) / statistics.median(seconds["ceiling:copy"])
    print(f"{work.name}: float16 product {matmul / 1e12:.0f} TFLOP/s, copy {copy / 1e9:.0f} GB/s")
    mode, _, shape = work.name.partition(" ")
    rows = []
    for name in runs:
        times = seconds[name]
        median = statistics.median(times)
        share = max(work.flops / median / matmul, work.bytes / median / copy)
        middle, low, high = measure.ratio(times, seconds["ours"])
        print(
            f"  {name:22} {median * 1e3:9.4f} ms  {100 * share:4.0f} % of ceiling  "
            f"{middle:.2f}x ours ({low:.2f}-{high:.2f})",
            flush=True,
        )
        rows.append(
            {
                "mode": mode,
                "shape": shape,
                "contender": name,
                "owner": work.owner if name == "ours" else name,
                "median_ms": f"{median * 1e3:.5g}",
                "p20_ms": f"{np.quantile(times, 0.2) * 1e3:.5g}",
                "p80_ms": f"{np.quantile(times, 0.8) * 1e3:.5g}",
                "gb_per_s": f"{work.bytes / median / 1e9:.4g}",
                "gflop_per_s": f"{work.flops / median / 1e9:.4g}",
                "matmul_gflop_per_s": f"{matmul / 1e9:.4g}",
                "copy_gb_per_s": f"{copy / 1e9:.4g}",
                "share_of_ceiling": f"{share:.3g}",
                "ratio_to_ours": f"{middle:.3g}",
                "device": torch.cuda.get_device_name(),
                "threads": 1,
                "clock": "device",
                "rounds": rounds,
                "versions": f"torch {torch.__version__}, "
                f"triton {importlib.metadata.version('triton')}",
                "commit": measure.commit(),
                "date": date.today().isoformat(),
            }
        )
    return rows


def save(rows: list[dict[str, object]], suffix: str = "") -> Path:
    """Replaces results/<device><suffix>.csv."""
    path = measure.RESULTS / f"{measure.slug(torch.cuda.get_device_name())}{suffix}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="", help="part of the name of a piece of work")
    parser.add_argument("--save", action="store_true", help="write results/<device>.csv and plots")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: no CUDA device; expected a GPU that torch can use.")
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    for make in works():
        work = make()
        if options.only not in work.name:
            continue
        rows += measured(work, options.rounds)
        del work
        torch.cuda.empty_cache()
        if options.save:
            # Save after each piece, so that nothing is lost if a later one is stopped.
            save(rows)
    if options.save:
        path = save(rows)
        report.draw(path)
        print(path)


if __name__ == "__main__":
    main()
