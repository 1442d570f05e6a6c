"""`code_statistics` in Triton: rows sorted by code, then float64 sums over segments of these rows.

Segments depend only on the number of rows. A code that lies in several segments has a partial sum
in each, and these are added in a fixed order, so that results are the same bits in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._checks import assert_inside
from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops._triton_rows import rows_by_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["code_statistics_triton", "examples"]


@triton.jit
def _code_segments_kernel(
    z_ptr,
    keys_ptr,
    order_ptr,
    bounds_ptr,
    sums_ptr,
    partial_ptr,
    z_stride_n,
    z_stride_d,
    K,
    D,
    SEGMENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One segment of the sorted rows, code by code; reads each row of z once.

    A code that lies in this segment alone gets its sum. partial[segment] has two rows for the
    others: [0] for the code that began in an earlier segment, [1] for the one that goes on.
    """
    segment = tl.program_id(0).to(tl.int64)
    begin = segment * SEGMENT
    # Rows of codes that do not exist lie before the first bound and after the last.
    position = tl.maximum(begin, tl.load(bounds_ptr))
    stop = tl.minimum(begin + SEGMENT, tl.load(bounds_ptr + K))
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    while position < stop:
        k = tl.load(keys_ptr + position).to(tl.int64)
        start = tl.load(bounds_ptr + k)
        end = tl.load(bounds_ptr + k + 1)
        last = tl.minimum(end, stop)
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float64)
        for block in range(position, last, BLOCK_N):
            n = block + tl.arange(0, BLOCK_N)
            row = tl.load(order_ptr + n, mask=n < last, other=0)
            z = tl.load(
                z_ptr + row[:, None] * z_stride_n + d[None, :] * z_stride_d,
                mask=(n < last)[:, None] & (d < D)[None, :],
                other=0.0,
            )
            total += z.to(tl.float64)
        total = tl.sum(total, axis=0)
        if (start >= begin) & (end <= begin + SEGMENT):
            tl.store(sums_ptr + k * D + d, total.to(tl.float32), mask=d < D)
        else:
            entry = 2 * segment + (start >= begin).to(tl.int64)
            tl.store(partial_ptr + entry * D + d, total, mask=d < D)
        position = last


@triton.jit
def _code_sums_kernel(
    partial_ptr,
    bounds_ptr,
    counts_ptr,
    sums_ptr,
    D,
    SEGMENT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """counts[k] from the bounds; sums[k] of codes without rows or with rows in several segments."""
    k = tl.program_id(0).to(tl.int64)
    start = tl.load(bounds_ptr + k)
    end = tl.load(bounds_ptr + k + 1)
    tl.store(counts_ptr + k, end - start)
    first = start // SEGMENT
    last = (end - 1) // SEGMENT
    if (start == end) | (first < last):
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_S, BLOCK_D), tl.float64)
        if start < end:
            for block in range(first, last + 1, BLOCK_S):
                segment = block + tl.arange(0, BLOCK_S)
                entry = 2 * segment + (segment == first).to(tl.int64)
                total += tl.load(
                    partial_ptr + entry[:, None] * D + d[None, :],
                    mask=(segment <= last)[:, None] & (d < D)[None, :],
                    other=0.0,
                )
        tl.store(sums_ptr + k * D + d, tl.sum(total, axis=0).to(tl.float32), mask=d < D)


def code_statistics_triton(
    z: Tensor, indices: Tensor, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    assert_inside(indices, 0, num_embeddings)
    keys, order, bounds = rows_by_code(indices, num_embeddings)
    num_rows, dimension = z.shape
    config = configuration("code_segments", z.device)
    blocks = triton.cdiv(dimension, config["BLOCK_D"])
    segments = triton.cdiv(num_rows, config["SEGMENT"])
    counts = indices.new_empty(num_embeddings)
    sums = z.new_empty((num_embeddings, dimension), dtype=torch.float32)
    partial = z.new_empty((segments, 2, dimension), dtype=torch.float64)
    launch(
        _code_segments_kernel,
        (segments, blocks),
        z,
        keys,
        order,
        bounds,
        sums,
        partial,
        z.stride(0),
        z.stride(1),
        num_embeddings,
        dimension,
        **config,
    )
    launch(
        _code_sums_kernel,
        (num_embeddings, blocks),
        partial,
        bounds,
        counts,
        sums,
        dimension,
        SEGMENT=config["SEGMENT"],
        BLOCK_S=config["BLOCK_N"],
        BLOCK_D=config["BLOCK_D"],
    )
    return counts, sums


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    indices = torch.arange(64) % 32
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield code_statistics_triton, (torch.ones(64, 64, dtype=dtype), indices, 32)
    # More codes than int16 has numbers.
    yield code_statistics_triton, (torch.ones(64, 64), indices, 1 << 15)
