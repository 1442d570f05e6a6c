"""Operators on a GPU, contenders in turns in one process: medians, ratios, shares of the ceilings.

    python benchmarks/gpu.py --rounds 31 --save

`benchmarks/gpu.sh` runs it after the tests. Contenders whose package is missing are left out by
name. TF32 is off, as PyTorch has it by default; ceilings are a float16 product and a copy of the
same run.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import inspect
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))

import measure

from vqvae2_fast import ops

Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """A piece of work: arithmetic, least memory traffic in bytes, and makers of who can do it."""

    name: str
    flops: int
    bytes: int
    contenders: dict[str, Callable[[], Run]]


def clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def compiled(function: Callable[..., object]) -> Run:
    return torch.compile(function)


def lean_search(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    half_norms = codebook.square().sum(1) / 2  # [K]
    return torch.addmm(half_norms, z, codebook.t(), alpha=-1).argmin(dim=1)


def flash_kmeans_search(z: torch.Tensor, codebook: torch.Tensor) -> Run:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    batch, codes = z[None], codebook[None]
    # Versions differ in whether they want the norms.
    wants_norms = "x_sq" in inspect.signature(euclid_assign_triton).parameters
    norms = {"x_sq": batch.square().sum(-1)} if wants_norms else {}
    return lambda: euclid_assign_triton(batch, codes, **norms)


def cuvs_search(z: torch.Tensor, codebook: torch.Tensor) -> Run:
    from cuvs.cluster import kmeans

    parameters = kmeans.KMeansParams(n_clusters=len(codebook))
    return lambda: kmeans.predict(parameters, z, codebook)


def search(n: int, k: int, d: int) -> Work:
    z, codebook = torch.randn(n, d, device="cuda"), torch.randn(k, d, device="cuda")
    return Work(f"search {n}x{k}x{d}", 2 * n * k * d, 4 * d * (n + k) + 12 * n, {
        "ours": lambda: lambda: ops.nearest_code(z, codebook),
        "eager": lambda: lambda: lean_search(z, codebook),
        "compile": lambda: partial(compiled(lean_search), z, codebook),
        "flash-kmeans": lambda: flash_kmeans_search(z, codebook),
        "cuvs": lambda: cuvs_search(z, codebook),
    })  # fmt: skip


def quantiser_step(n: int, k: int, d: int) -> Work:
    z, codebook = torch.randn(n, d, device="cuda"), torch.randn(k, d, device="cuda")
    dz_q, one = torch.randn_like(z), torch.ones((), device="cuda")

    def state() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return codebook.clone(), torch.ones(k, device="cuda"), codebook.clone()

    def ours() -> Run:
        codes, size, average = state()
        leaf = z.clone().requires_grad_()

        def run() -> None:
            leaf.grad = None
            z_q, indices, commitment = ops.vector_quantize(leaf, codes)
            torch.autograd.backward([z_q, commitment], [dz_q, one])
            counts, sums = ops.code_statistics(leaf, indices, k)
            ops.ema_update_(counts, sums, size, average, codes)

        return run

    def plain(onehot: bool, codes: torch.Tensor, size: torch.Tensor, average: torch.Tensor) -> None:
        indices = lean_search(z, codes)
        if onehot:
            choice = F.one_hot(indices, k).float()  # [N, K]
            counts, sums = choice.sum(0), choice.t() @ z
        else:
            counts = torch.zeros(k, device=z.device).index_add_(
                0, indices, torch.ones_like(indices, dtype=torch.float32)
            )
            sums = torch.zeros_like(codes).index_add_(0, indices, z)
        z_q = codes[indices]
        dz = dz_q + 2 / z.numel() * (z - z_q)
        size.mul_(0.99).add_(counts, alpha=0.01)
        average.mul_(0.99).add_(sums, alpha=0.01)
        total = size.sum()
        codes.copy_(average / ((size + 1e-5) / (total + k * 1e-5) * total)[:, None])
        del dz

    return Work(f"quantiser step {n}x{k}x{d}", 2 * n * k * d, 4 * d * 7 * n, {
        "ours": ours,
        "one-hot": lambda: partial(plain, True, *state()),
        "lean": lambda: partial(plain, False, *state()),
        "one-hot compile": lambda: partial(compiled(partial(plain, True)), *state()),
        "lean compile": lambda: partial(compiled(partial(plain, False)), *state()),
    })  # fmt: skip


def statistics_of(n: int, k: int, d: int) -> Work:
    z, indices = torch.randn(n, d, device="cuda"), torch.randint(k, (n,), device="cuda")
    return Work(f"statistics {n}x{k}x{d}", n * d, 4 * n * d + 8 * n, {
        "ours": lambda: lambda: ops.code_statistics(z, indices, k),
        "index_add": lambda: lambda: torch.zeros(k, d, device="cuda").index_add_(0, indices, z),
    })  # fmt: skip


def attention(batch: int, heads: int, side: int, width: int, dtype: torch.dtype) -> Work:
    length = side * side
    q, k, v = (
        torch.randn(batch, heads, length, width, device="cuda", dtype=dtype, requires_grad=True)
        for _ in range(3)
    )
    dout, seed = torch.randn_like(q), torch.tensor(1, device="cuda")

    def step(dropout_p: float) -> None:
        out = ops.causal_attention(q, k, v, dropout_p, "logits", seed if dropout_p else None)
        torch.autograd.grad(out, (q, k, v), dout)

    # Seven products of half the matrix: two forward, five backward.
    flops = 7 * batch * heads * length * length * width
    name = f"attention {batch}x{heads}x{side}²x{width} {str(dtype).removeprefix('torch.')}"
    return Work(name, flops, q.element_size() * q.numel() * 12, {
        "ours": lambda: partial(step, 0.1),
        "sdpa without dropout": lambda: partial(step, 0.0),
    })  # fmt: skip


def gate(batch: int, channels: int, side: int) -> Work:
    h = torch.randn(batch, 2 * channels, side, side, device="cuda", requires_grad=True)
    x = torch.randn(batch, channels, side, side, device="cuda", requires_grad=True)
    dout = torch.randn_like(x)

    def step(function: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(function(h, x), (h, x), dout)

    def reference(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.glu(h, dim=1) + x

    return Work(f"gate {batch}x{channels}x{side}²", 10 * x.numel(), 36 * x.numel(), {
        "ours": lambda: partial(step, ops.gated_residual),
        "eager": lambda: partial(step, reference),
        "compile": lambda: partial(step, compiled(reference)),
    })  # fmt: skip


def works() -> list[Callable[[], Work]]:
    return [
        partial(search, 524_288, 512, 64), partial(search, 65_536, 8192, 256),
        partial(quantiser_step, 524_288, 512, 64), partial(statistics_of, 524_288, 512, 64),
        partial(attention, 32, 8, 32, 16, torch.float32),
        partial(attention, 32, 8, 32, 16, torch.bfloat16),
        partial(attention, 4, 8, 64, 64, torch.bfloat16),
        partial(gate, 64, 256, 32),
    ]  # fmt: skip


def ceilings() -> dict[str, Run]:
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    source = torch.zeros(1 << 28, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {"ceiling:matmul": lambda: a @ a, "ceiling:copy": lambda: target.copy_(source)}


def measured(work: Work, rounds: int) -> list[dict[str, object]]:
    runs: dict[str, Run] = {}
    for name, make in work.contenders.items():
        try:
            runs[name] = make()
        except ModuleNotFoundError as error:
            print(f"  {name}: left out, {error.name} is not installed")
    seconds = measure.interleave({**runs, **ceilings()}, rounds, clock)
    matmul = 2 * 8192**3 / statistics.median(seconds["ceiling:matmul"])
    copy = 2 * (1 << 28) / statistics.median(seconds["ceiling:copy"])
    print(f"{work.name}: float16 product {matmul / 1e12:.0f} TFLOP/s, copy {copy / 1e9:.0f} GB/s")
    rows = []
    for name in runs:
        times = seconds[name]
        median = statistics.median(times)
        share = max(work.flops / median / matmul, work.bytes / median / copy)
        middle, low, high = measure.ratio(times, seconds["ours"])
        print(f"  {name:22} {median * 1e3:9.4f} ms  {100 * share:4.0f} % of ceiling  "
              f"{middle:.2f}x ours ({low:.2f}-{high:.2f})", flush=True)  # fmt: skip
        rows.append({
            "work": work.name, "contender": name, "median_ms": f"{median * 1e3:.5g}",
            "p20_ms": f"{measure.quantile(times, 0.2) * 1e3:.5g}",
            "p80_ms": f"{measure.quantile(times, 0.8) * 1e3:.5g}",
            "gb_per_s": f"{work.bytes / median / 1e9:.4g}",
            "gflop_per_s": f"{work.flops / median / 1e9:.4g}",
            "matmul_gflop_per_s": f"{matmul / 1e9:.4g}", "copy_gb_per_s": f"{copy / 1e9:.4g}",
            "share_of_ceiling": f"{share:.3g}", "ratio_to_ours": f"{middle:.3g}",
            "device": torch.cuda.get_device_name(), "rounds": rounds,
            "versions": f"torch {torch.__version__}, triton {importlib.metadata.version('triton')}",
            "commit": measure.commit(), "date": date.today().isoformat(),
        })  # fmt: skip
    return rows


def save(rows: list[dict[str, object]], suffix: str = "") -> None:
    """Writes results/<device><suffix>.csv."""
    path = measure.RESULTS / f"{measure.slug(torch.cuda.get_device_name())}{suffix}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--save", action="store_true", help="write results/<device>.csv")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: no CUDA device.")
    rows = []
    for make in works():
        rows += measured(make(), options.rounds)
        torch.cuda.empty_cache()
    if options.save:
        save(rows)


if __name__ == "__main__":
    main()
