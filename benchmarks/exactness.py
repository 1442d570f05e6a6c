"""Checks `nearest_code` against float64 on ten million rows of adversarial data per SIMD level.

    python benchmarks/exactness.py --rows 10000000 --levels avx2 avx512_vnni
    python benchmarks/exactness.py --rows 1000000 --quantizers 3
    python benchmarks/exactness.py --rows 100000 --codes 16384
    python benchmarks/exactness.py --rows 100000 --codes 1024 --widen 16

With several quantisers it checks `residual_nearest_code`: every residual, computed in float32 by
the definition, against its codebook. The codebooks are copies of the data's, each half as long as
the one before; a row is wrong if one of its codes or its sum is.

With --codes, all data has that many codes and twice the dimensions, or --widen times, so that the
screen in bytes is checked. Where it does not pay, it gets only some blocks of rows.

Each kind of data gets its share of the rows in whole blocks, so that more are checked than asked
for.

The judge is independent of the kernel and of its reference: it computes float64 scores of all codes
by one matrix product. For every row where several codes lie within its rounding of the smallest
score, it applies the definition (the sum in the order of d, lowest index on ties). Exits with 1 on
a wrong pick.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from shared.measure import count
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.compare import simd_level, simd_levels  # noqa: E402

CHUNK = 1 << 14


def gaussian(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)


def midpoints(
    g: torch.Generator, n: int, k: int, d: int, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Within 3 ulp of the middle of two codes."""
    codebook = torch.randn(k, d, generator=g) + offset
    middle = codebook[torch.randint(k, (n, 2), generator=g)].double().mean(1)
    nudge = torch.randint(-3, 4, (n, d), generator=g) * 2.0**-24
    return (middle * (1 + nudge)).float(), codebook


def close(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """The middle of two codes of one of two clusters, whose codes lie close together."""
    codebook = torch.randn(k, d, generator=g) / 16 + torch.randn(d, generator=g) * _sides(k)
    chosen = torch.randint(k // 2, (n, 2), generator=g) * 2 + torch.randint(2, (n, 1), generator=g)
    return codebook[chosen].double().mean(1).float(), codebook


def _sides(k: int) -> Tensor:
    """1 and -1 in turns, `[k, 1]`."""
    return 1.0 - 2.0 * (torch.arange(k) % 2)[:, None]


def neighbours(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Codes in pairs that differ in the last bit of one coordinate, vectors close to them."""
    codebook = torch.randn(k // 2, d, generator=g)
    above = codebook.clone()
    above[:, d // 2] = torch.nextafter(above[:, d // 2], torch.tensor(torch.inf))
    z = codebook[torch.randint(k // 2, (n,), generator=g)] + 1e-2 * torch.randn(n, d, generator=g)
    return z, torch.cat([above, codebook])


def duplicated(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    z, codebook = gaussian(g, n, k, d)
    return z, codebook[torch.randint(k // 3, (k,), generator=g)]


def integers(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    draw = lambda rows: torch.randint(-2, 3, (rows, d), generator=g).float()  # noqa: E731
    return draw(n), draw(k)


def scales(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    z, codebook = gaussian(g, n, k, d)
    power = lambda rows: 10.0 ** torch.randint(-30, 18, (rows, 1), generator=g)  # noqa: E731
    return z * power(n), codebook * power(k)


def far(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Vectors so far out that the codes vanish, some or all, in float64 sums: mostly ties."""
    z, codebook = gaussian(g, n, k, d)
    return z * 10.0 ** torch.randint(4, 17, (n, 1), generator=g), codebook


def denormal(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    z, codebook = gaussian(g, n, k, d)
    return z * 1e-41, codebook * 1e-41


def flung(g: torch.Generator, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    z, codebook = gaussian(g, n, k, d)
    codebook[torch.rand(k, generator=g) < 0.6] *= 1e5
    return z, codebook


# Kind, share of the rows in percent, K, D. Denormal data has few rows, because all of it is settled
# in float64.
KINDS = {
    "gaussian": (gaussian, 10, 256, 32),
    "odd sizes": (gaussian, 10, 131, 19),
    "midpoints": (midpoints, 15, 128, 16),
    "close codes": (close, 10, 256, 32),
    "midpoints, offset 100": (lambda *a: midpoints(*a, 100.0), 10, 128, 16),
    "neighbours": (neighbours, 10, 128, 24),
    "duplicated codes": (duplicated, 10, 128, 16),
    "small integers": (integers, 9, 96, 6),
    "norms of every size": (scales, 5, 64, 8),
    "far from all codes": (far, 5, 64, 8),
    "flung codes": (flung, 5, 256, 32),
    "denormal": (denormal, 1, 64, 8),
}


def wrong_picks(z: Tensor, codebook: Tensor) -> int:
    picks, _ = ops.nearest_code(z, codebook)
    return int(is_wrong(z, codebook, picks).sum())


def wrong_rows(z: Tensor, codebook: Tensor, quantizers: int) -> int:
    """Rows of a residual quantisation that have a wrong code or a wrong sum."""
    codebooks = torch.stack([codebook * 0.5**q for q in range(quantizers)])
    z_q, indices, _ = ops.residual_nearest_code(z, codebooks)
    residual, total = z, torch.zeros_like(z)
    wrong = torch.zeros(len(z), dtype=torch.bool)
    for each, index in zip(codebooks, indices.unbind(1), strict=True):
        wrong |= is_wrong(residual, each, index)
        residual, total = residual - each[index], total + each[index]
    return int((wrong | (z_q != total).any(1)).sum())


def is_wrong(z: Tensor, codebook: Tensor, picks: Tensor) -> Tensor:
    """Rows `[n]` whose pick is not the nearest code."""
    rows, codes = z.double(), codebook.double()
    norms = codes.square().sum(1)  # [K]
    scores = torch.addmm(norms, rows, codes.t(), alpha=-2)  # [n, K]
    # Well above what float64 loses, here and in the sums of the definition.
    slack = 4e-14 * (rows.square().sum(1, keepdim=True) + norms)  # [n, K]
    least = (scores + slack).amin(1, keepdim=True)
    possible = scores - slack <= least
    wrong = ~possible.gather(1, picks[:, None]).squeeze(1)
    unsure = (possible.sum(1) > 1).nonzero().squeeze(1)
    expected, _ = nearest_code_reference(z[unsure], codebook)
    wrong[unsure] = picks[unsure] != expected
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", type=count, default=10_000_000, help="per SIMD level; rounded up to whole blocks"
    )
    parser.add_argument("--levels", nargs="+", default=list(simd_levels()))
    parser.add_argument("--quantizers", type=count, default=1)
    parser.add_argument("--codes", type=int, default=0)
    parser.add_argument("--widen", type=int, default=2, help="with --codes")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    total = 0
    for level in options.levels:
        level_total, level_rows, start = 0, 0, time.perf_counter()
        for kind, (make, percent, k, d) in KINDS.items():
            wrong, rows, chunk = 0, 0, CHUNK
            if options.codes:
                # About as many scores at once as otherwise.
                k, d = options.codes, options.widen * d
                chunk = max(64, (CHUNK << 8) // options.codes)
            generator = torch.Generator().manual_seed(percent + k)
            while rows * 100 < options.rows * percent:
                z, codebook = make(generator, chunk, k, d)
                with simd_level(level):
                    if options.quantizers > 1:
                        wrong += wrong_rows(z, codebook, options.quantizers)
                    else:
                        wrong += wrong_picks(z, codebook)
                rows += chunk
            print(f"{level} {kind}: {wrong} wrong of {rows}", flush=True)
            level_total += wrong
            level_rows += rows
        more = f" (--rows {options.rows} in whole blocks)" if level_rows > options.rows else ""
        print(
            f"{level}: {level_total} wrong picks in {level_rows} rows{more}, "
            f"{time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}"
        )
        total += level_total
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
