"""Options of the scripts, timing in turns, ceilings, and the record that a measurement leaves.

threadpoolctl is imported where it is used: the scripts for a GPU do without it.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import importlib
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast import ops

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("vqvae2_fast", "torch", "faiss-cpu", "vector-quantize-pytorch")
THREADS = 2
# Rounds of the clock below this many seconds are noise: short calls are repeated up to it.
SHORTEST = 2e-3
# Threads of the previous contender wait actively for some milliseconds, on the cores of the next.
SETTLE = 1e-2

if not ops.build_info()["native"]:
    raise SystemExit(
        "benchmarks: this install has no compiled module, its times would be those of the "
        "references. Run `pip install .` with a C++ compiler, and start from an installed package."
    )


def keep_freed_memory() -> None:
    """Lets the C library's malloc keep what is freed, as it does in a training.

    There other tensors lie above a freed one, so that it is seldom returned to the system: a step
    of the demo's VQ-VAE has about 30 page faults. Our step of the quantiser alone had 2,000 and
    8,000 on average in two runs without this, and 0 to 70 with it. Allocations of more than 32 MiB
    are returned, as they are in every program.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def set_conditions(threads: int) -> None:
    """Those under which operators are timed, by whichever script."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory()


def numbers_printed(script: str, *arguments: str) -> list[float]:
    """What a script prints in a new process, whose OpenMP threads spin as in the commands."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={"GOMP_SPINCOUNT": "10000", **os.environ},
    )
    return [float(number) for number in done.stdout.split()]


@dataclass(frozen=True)
class Row:
    """One contender on one workload. Times in ms; ceilings as measured in the same run."""

    op: str
    owner: str
    contender: str
    mode: str
    dtype: str
    shape: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    gb_per_s: float
    gflop_per_s: float
    matmul_gflop_per_s: float
    copy_gb_per_s: float
    share_of_ceiling: float
    peak_mib: float
    device: str
    threads: int
    versions: str
    commit: str
    date: str
    rounds: int
    clock: str
    load: float


Clock = Callable[[], float]
# cpu: the time that the calling thread used, for one thread on a machine that others use too. The
# time of the whole process would include the workers of torch.compile.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}


def count(text: str) -> int:
    """The value of an option that has to be 1 or more."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


def needed(package: str) -> Any:
    """A package that only benchmarks need, imported."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise SystemExit(
            f"benchmarks: {package} is not installed: `pip install '.[bench]'` installs it."
        ) from error


def parser(doc: str | None, *, rounds: int, threads: int = THREADS) -> argparse.ArgumentParser:
    """For a script with this docstring, with the options that most have, and their defaults."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--rounds", type=count, default=rounds)
    found.add_argument("--threads", type=count, default=threads)
    return found


def add_clock(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: only the time of the calling thread, for a busy machine",
    )


def parse(found: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; sets the number of threads."""
    options = found.parse_args()
    if getattr(options, "clock", None) == "cpu" and options.threads != 1:
        found.error("--clock cpu sees only the calling thread: expected --threads 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def machine(*packages: str) -> str:
    """What a measurement was made on, and the versions of these packages too."""
    return (
        f"{device_name()}, {torch.get_num_threads()} threads, {versions((*PACKAGES, *packages))}, "
        f"commit {commit()}, load {os.getloadavg()[0]:.1f}"
    )


def calls_per_round(run: Callable[[], object], clock: Clock) -> int:
    """By this clock: on a GPU only one that synchronises sees more of a call than its launch."""
    run()
    start = clock()
    run()
    return max(1, int(SHORTEST / max(clock() - start, 1e-7)))


def interleave(
    runs: dict[str, Callable[[], object]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one list entry per round. In every round each of them has
    one turn, in a rotating order, so that other load on the machine affects all alike."""
    repeats = {name: calls_per_round(run, clock) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    try:
        for round_number in range(rounds):
            for i in range(len(names)):
                name = names[(i + round_number) % len(names)]
                run, count = runs[name], repeats[name]
                time.sleep(SETTLE)
                start = clock()
                for _ in range(count):
                    run()
                seconds[name].append((clock() - start) / count)
    finally:
        gc.enable()
    return seconds


def ratio(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Ratio of medians, and the 20th and 80th percentile of the ratio within a round."""
    pairs = [a / b for a, b in zip(slower, faster, strict=True)]
    medians = statistics.median(slower) / statistics.median(faster)
    return medians, *np.quantile(pairs, (0.2, 0.8))


MATMUL_SIZE, COPY_BYTES = 1536, 1 << 26


def ceilings() -> dict[str, Callable[[], object]]:
    """A large float32 product and a large copy, which run among the contenders."""
    source = torch.zeros(COPY_BYTES // 4)
    target = torch.zeros_like(source)
    return {"ceiling:matmul": fastest_product(), "ceiling:copy": lambda: target.copy_(source)}


def fastest_product() -> Callable[[], object]:
    """torch's product or NumPy's, whichever is faster here: on AMD processors torch uses MKL
    without AVX-512, at half the rate of NumPy's OpenBLAS."""
    a, b = torch.randn(MATMUL_SIZE, MATMUL_SIZE), torch.randn(MATMUL_SIZE, MATMUL_SIZE)
    out = torch.empty(MATMUL_SIZE, MATMUL_SIZE)
    products = {"torch": lambda: torch.mm(a, b, out=out), "numpy": numpy_product(a, b, out)}
    seconds = interleave(products, rounds=5)
    return min(products.items(), key=lambda item: statistics.median(seconds[item[0]]))[1]


def numpy_product(a: Tensor, b: Tensor, out: Tensor) -> Callable[[], object]:
    """Splits the rows over Python threads, because OpenBLAS's own threads wait actively for too
    long."""
    pools = needed("threadpoolctl")
    mine = [each["filepath"] for each in pools.threadpool_info() if "numpy" in each["filepath"]]
    pools.ThreadpoolController().select(filepath=mine).limit(limits=1)
    workers = ThreadPoolExecutor(torch.get_num_threads())
    rows, out_rows = (x.chunk(torch.get_num_threads()) for x in (a, out))

    def multiply(i: int) -> None:
        np.matmul(rows[i].numpy(), b.numpy(), out=out_rows[i].numpy())

    def run() -> None:
        others = [workers.submit(multiply, i) for i in range(1, len(rows))]
        multiply(0)  # hands the interpreter's lock to them at once
        for each in others:
            each.result()

    return run


def openblas_cores() -> str:
    """Processors whose kernels the loaded OpenBLAS libraries run: `SkylakeX`, `Haswell`, ..."""
    loaded = needed("threadpoolctl").threadpool_info()
    libraries = [each for each in loaded if each["internal_api"] == "openblas"]
    return ", ".join(sorted({each["architecture"] for each in libraries}))


def matmul_rate(seconds: list[float]) -> float:
    """GFLOP/s"""
    return 2 * MATMUL_SIZE**3 / statistics.median(seconds) / 1e9


def copy_rate(seconds: list[float]) -> float:
    """GB/s, read and written"""
    return 2 * COPY_BYTES / statistics.median(seconds) / 1e9


def device_name() -> str:
    try:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {ops.simd_level()}"


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """Versions of everything that takes part and is installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, f"python {platform.python_version()}"])


def commit() -> str:
    """Short hash of the source tree, with + if it has changes; unknown outside git."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*"]
    try:
        found = subprocess.run([*git, "--dirty=+"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def make_row(
    contender: str,
    seconds: dict[str, list[float]],
    *,
    op: str,
    owner: str,
    mode: str,
    shape: str,
    flops: int,
    traffic: int,
    peak_mib: float,
    clock: str,
) -> Row:
    """The row of a contender, given the times of all and of the ceilings, and bytes of traffic."""
    times = seconds[contender]
    median = statistics.median(times)
    low, high = np.quantile(times, (0.2, 0.8))
    rate, bandwidth = flops / median / 1e9, traffic / median / 1e9
    matmul = matmul_rate(seconds["ceiling:matmul"])
    copy = copy_rate(seconds["ceiling:copy"])
    return Row(
        op=op,
        owner=owner,
        contender=contender,
        mode=mode,
        dtype="float32",
        shape=shape,
        median_ms=median * 1e3,
        p20_ms=low * 1e3,
        p80_ms=high * 1e3,
        gb_per_s=bandwidth,
        gflop_per_s=rate,
        matmul_gflop_per_s=matmul,
        copy_gb_per_s=copy,
        share_of_ceiling=max(rate / matmul, bandwidth / copy),
        peak_mib=peak_mib,
        device=device_name(),
        threads=torch.get_num_threads(),
        versions=versions(),
        commit=commit(),
        date=date.today().isoformat(),
        rounds=len(times),
        clock=clock,
        load=os.getloadavg()[0],
    )


def save(rows: list[Row]) -> Path:
    """Append to results/<device>.csv."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug(rows[0].device)}.csv"
    names = [field.name for field in fields(Row)]
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            record = asdict(row)
            writer.writerow(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in record.items()}
            )
    return path
