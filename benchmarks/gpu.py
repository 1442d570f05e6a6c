"""Times operators on a GPU, contenders in turns in one process: medians, ratios, ceilings.

    python benchmarks/gpu.py --rounds 31 --save
    python benchmarks/gpu.py --only search quantiser_step --contenders ours --json FILE

`benchmarks/gpu.sh` runs it before the tests; `shared/gpu_workloads.py` says what is measured.
Contenders whose package is missing, or that fail, are left out by name. A piece of work that fails
does not end the script, but its exit code. TF32 is off unless a piece of work says otherwise. The
ceilings are a float16 product and a copy in the same run. `--save` puts the rows into
results/<device>.csv, where they replace earlier ones of the same work and contender, and draws its
plots.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import time
import traceback
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from shared import measure
from shared.gpu_workloads import Work, works
from shared.workload import Run, make_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = dict[str, object]
# cuVS is a package for each CUDA.
PACKAGES = (
    *("vqvae2_fast", "torch", "triton"),
    *("flash-kmeans", "cuvs", "cuvs-cu12", "cuvs-cu13"),
)
# What a row of the table is about: a later one takes the place of an earlier one.
KEY = ("mode", "shape", "contender")


def clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def ceilings() -> dict[str, Run]:
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    source = torch.zeros(1 << 28, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {"ceiling:matmul": lambda: a @ a, "ceiling:copy": lambda: target.copy_(source)}


def rounded(value: float, digits: int) -> float:
    """The value with this many significant digits."""
    return float(f"{value:.{digits}g}")


def working(runs: dict[str, Run]) -> dict[str, Run]:
    """The contenders that run. Only a failure of ours is one of the piece of work."""
    found = {}
    for name, run in runs.items():
        try:
            run()
            torch.cuda.synchronize()
        except Exception as error:  # whatever another project's kernels raise on a new card
            if name == "ours":
                raise
            print(f"  {name}: left out, it fails: {type(error).__name__}: {error}", flush=True)
            continue
        found[name] = run
    return found


def measured(work: Work, rounds: int, only: Sequence[str] = ()) -> list[Row]:
    wanted = {name: make for name, make in work.contenders.items() if not only or name in only}
    runs = working(make_runs(wanted))
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
                "median_ms": rounded(median * 1e3, 5),
                "p20_ms": rounded(np.quantile(times, 0.2) * 1e3, 5),
                "p80_ms": rounded(np.quantile(times, 0.8) * 1e3, 5),
                "gb_per_s": rounded(work.bytes / median / 1e9, 4),
                "gflop_per_s": rounded(work.flops / median / 1e9, 4),
                "matmul_gflop_per_s": rounded(matmul / 1e9, 4),
                "copy_gb_per_s": rounded(copy / 1e9, 4),
                "share_of_ceiling": rounded(share, 3),
                "ratio_to_ours": rounded(middle, 3),
                "device": torch.cuda.get_device_name(),
                "threads": 1,
                "clock": "device",
                "rounds": rounds,
                "versions": measure.versions(PACKAGES),
                "commit": measure.commit(),
                "date": date.today().isoformat(),
            }
        )
    return rows


def save(rows: list[Row], suffix: str = "", key: Sequence[str] = KEY) -> Path:
    """Puts rows into results/<device><suffix>.csv, in the place of those with the same key."""
    path = measure.RESULTS / f"{measure.slug(torch.cuda.get_device_name())}{suffix}.csv"
    path.parent.mkdir(exist_ok=True)
    before: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            before = list(csv.DictReader(file))
    table = {tuple(str(row[name]) for name in key): row for row in before + rows}
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, rows[0].keys(), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table.values())
    replace(path, content.getvalue())
    return path


def save_json(content: object, path: Path) -> None:
    replace(path, json.dumps(content, indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """Replaces a file at once: a run that is stopped on the way leaves the old one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=measure.count, default=21)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of pieces of work")
    parser.add_argument("--contenders", nargs="+", default=[], help="these only; ours among them")
    parser.add_argument(
        "--save",
        action="store_true",
        help="put the rows into results/<device>.csv, where they replace earlier ones of the same "
        "work and contender, and draw its plots",
    )
    parser.add_argument("--json", type=Path, help="write the table here as well")
    options = parser.parse_args()
    if options.contenders and "ours" not in options.contenders:
        parser.error(f"--contenders: expected ours among them, got {options.contenders}")
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: no CUDA device; expected a GPU that torch can use.")
    torch.backends.cudnn.allow_tf32 = False
    rows: list[Row] = []
    failed = []
    makers = {
        " ".join(map(str, [make.func.__name__, *make.args, *make.keywords.values()])): make
        for make in works()
    }
    chosen = [name for name in makers if any(part in name for part in options.only)]
    if not chosen:
        parser.error(f"--only: expected parts of {', '.join(makers)}; got {options.only}")
    unmet = set(options.contenders)
    for name in chosen:
        try:
            torch.cuda.empty_cache()
            work = makers[name]()
            unmet -= work.contenders.keys()
            rows += measured(work, options.rounds, options.contenders)
        except Exception:  # the first failure on a new card must not cost the other figures
            traceback.print_exc()
            failed.append(name)
        # Save after each piece, so that nothing is lost if a later one is stopped.
        if options.json:
            save_json(rows, options.json)
        if options.save and rows:
            save(rows)
    if options.save and rows:
        import report  # needs matplotlib, which the figures do not

        path = save(rows)
        report.draw(path)
        print(path)
    if failed:
        raise SystemExit(f"benchmarks/gpu.py: failed: {', '.join(failed)}.")
    if unmet:
        raise SystemExit(f"benchmarks/gpu.py: --contenders: no work has {', '.join(unmet)}.")


if __name__ == "__main__":
    main()
