"""`code_statistics` in Triton: rows sorted by code, then float64 sums over pieces of each code.

The pieces depend only on the indices and are added in order, so that results are the same bits in
every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops._triton_rows import rows_by_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["code_statistics_triton", "examples"]


@triton.jit
def _piece_rows(start, end, PIECES: tl.constexpr, MIN_ROWS: tl.constexpr):
    """Rows per piece: a code's rows are cut into at most PIECES pieces of at least MIN_ROWS."""
    return tl.maximum((end - start + PIECES - 1) // PIECES, MIN_ROWS)


@triton.jit
def _code_pieces_kernel(
    z_ptr,
    order_ptr,
    bounds_ptr,
    partial_ptr,
    z_stride_n,
    z_stride_d,
    K,
    D,
    PIECES: tl.constexpr,
    MIN_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partial[s, k] = Σ z over the s-th piece of code k; reads each row of z once."""
    k = tl.program_id(0)
    piece = tl.program_id(1)
    start = tl.load(bounds_ptr + k)
    end = tl.load(bounds_ptr + k + 1)
    rows = _piece_rows(start, end, PIECES, MIN_ROWS)
    first = start + piece * rows
    last = tl.minimum(first + rows, end)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    if first < last:
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float64)
        for block in range(first, last, BLOCK_N):
            n = block + tl.arange(0, BLOCK_N)
            row = tl.load(order_ptr + n, mask=n < last, other=0)
            z = tl.load(
                z_ptr + row[:, None] * z_stride_n + d[None, :] * z_stride_d,
                mask=(n < last)[:, None] & (d < D)[None, :],
                other=0.0,
            )
            total += z.to(tl.float64)
        entry = (piece.to(tl.int64) * K + k) * D + d
        tl.store(partial_ptr + entry, tl.sum(total, axis=0), mask=d < D)


@triton.jit
def _code_sums_kernel(
    partial_ptr,
    bounds_ptr,
    counts_ptr,
    sums_ptr,
    K,
    D,
    PIECES: tl.constexpr,
    MIN_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sums[k] = Σ over the pieces of code k, rounded once; counts[k] from the bounds."""
    k = tl.program_id(0).to(tl.int64)
    start = tl.load(bounds_ptr + k)
    end = tl.load(bounds_ptr + k + 1)
    rows = _piece_rows(start, end, PIECES, MIN_ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float64)
    for piece in range(0, (end - start + rows - 1) // rows):
        total += tl.load(partial_ptr + (piece * K + k) * D + d, mask=d < D, other=0.0)
    tl.store(sums_ptr + k * D + d, total.to(tl.float32), mask=d < D)
    tl.store(counts_ptr + k, end - start)


def code_statistics_triton(
    z: Tensor, indices: Tensor, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    inside = ((indices >= 0) & (indices < num_embeddings)).all()
    # On a GPU this fails when the stream reaches it, without a synchronisation.
    torch._assert_async(
        inside, f"code_statistics: expected indices in 0..{num_embeddings - 1}, got one outside."
    )
    order, bounds = rows_by_code(indices, num_embeddings)
    dimension = z.shape[1]
    config = configuration("code_pieces", z.device)
    blocks = triton.cdiv(dimension, config["BLOCK_D"])
    pieces = config["PIECES"]
    partial = z.new_empty((pieces, num_embeddings, dimension), dtype=torch.float64)
    launch(
        _code_pieces_kernel,
        (num_embeddings, pieces, blocks),
        z,
        order,
        bounds,
        partial,
        z.stride(0),
        z.stride(1),
        num_embeddings,
        dimension,
        **config,
    )
    counts = indices.new_empty(num_embeddings)
    sums = z.new_empty((num_embeddings, dimension), dtype=torch.float32)
    launch(
        _code_sums_kernel,
        (num_embeddings, blocks),
        partial,
        bounds,
        counts,
        sums,
        num_embeddings,
        dimension,
        PIECES=pieces,
        MIN_ROWS=config["MIN_ROWS"],
        BLOCK_D=config["BLOCK_D"],
        num_warps=1,
    )
    return counts, sums


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    indices = torch.arange(64) % 32
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield code_statistics_triton, (torch.ones(64, 64, dtype=dtype), indices, 32)
