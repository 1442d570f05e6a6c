"""`code_conv2d` in Triton: gathered columns forward, sums over the rows of a code backward.

M = B·H·W positions, T taps, K codes, C channels. Maps are channels last, `[M, C]` in memory, so
that a tap is a fixed distance between rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops._triton_rows import rows_by_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = ["code_conv2d_backward_triton", "code_conv2d_fused_triton", "examples"]


@triton.jit
def _code_conv2d_fwd_kernel(
    codes_ptr,
    table_ptr,
    offsets_ptr,
    out_ptr,
    M,
    H,
    W,
    K,
    C,
    T,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[m] = Σ_t table[t, code under tap t of m]; reads T·C cached values per position."""
    positions = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    i, j = positions // W % H, positions % W
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for t in range(0, T):
        row = tl.load(offsets_ptr + 2 * t)
        column = tl.load(offsets_ptr + 2 * t + 1)
        inside = (i + row >= 0) & (i + row < H) & (j + column >= 0) & (j + column < W)
        inside = inside & (positions < M)
        code = tl.load(codes_ptr + positions + row * W + column, mask=inside, other=-1)
        inside = (code >= 0) & (code < K)
        source = (code + t * K)[:, None] * C + c[None, :]
        columns = tl.load(table_ptr + source, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        total += columns.to(tl.float32)
    tl.store(
        out_ptr + positions.to(tl.int64)[:, None] * C + c[None, :],
        total,
        mask=(positions < M)[:, None] & (c < C)[None, :],
    )


@triton.jit
def _code_conv2d_bwd_kernel(
    dout_ptr,
    order_ptr,
    bounds_ptr,
    offsets_ptr,
    dtable_ptr,
    H,
    W,
    K,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dtable[t, k] = Σ dout over the positions that see code k under tap t, in order."""
    k, t = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.load(offsets_ptr + 2 * t)
    column = tl.load(offsets_ptr + 2 * t + 1)
    last = tl.load(bounds_ptr + k + 1)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(tl.load(bounds_ptr + k), last, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        source = tl.load(order_ptr + m, mask=m < last, other=0)
        i, j = source // W % H - row, source % W - column
        inside = (m < last) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        target = source - row * W - column
        dout = tl.load(
            dout_ptr + target[:, None] * C + c[None, :],
            mask=inside[:, None] & (c < C)[None, :],
            other=0.0,
        )
        total += dout.to(tl.float32)
    entry = (t.to(tl.int64) * K + k) * C + c
    tl.store(dtable_ptr + entry, tl.sum(total, axis=0), mask=c < C)


@functools.cache
def _offsets_on(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """The taps' offsets, int32 `[2T]`; copied to each device once, so that calls do not wait."""
    return torch.tensor(offsets, dtype=torch.int32, device=device)


def code_conv2d_fused_triton(codes: Tensor, table: Tensor, offsets: Sequence[int]) -> Tensor:
    batch, height, width = codes.shape
    taps, num_embeddings, channels = table.shape
    out = table.new_empty((batch, height, width, channels))
    config = configuration("code_conv2d_fwd", codes.device)
    grid = (triton.cdiv(codes.numel(), config["BLOCK_M"]), triton.cdiv(channels, config["BLOCK_C"]))
    launch(
        _code_conv2d_fwd_kernel,
        grid,
        codes.contiguous(),
        table.contiguous(),
        _offsets_on(tuple(offsets), codes.device),
        out,
        codes.numel(),
        height,
        width,
        num_embeddings,
        channels,
        taps,
        **config,
    )
    return out.permute(0, 3, 1, 2)


def code_conv2d_backward_triton(
    dout: Tensor, codes: Tensor, num_embeddings: int, offsets: Sequence[int]
) -> Tensor:
    _, height, width = codes.shape
    taps, channels = len(offsets) // 2, dout.shape[1]
    _, order, bounds = rows_by_code(codes.flatten(), num_embeddings)
    dtable = dout.new_empty((taps, num_embeddings, channels))
    config = configuration("code_conv2d_bwd", codes.device)
    launch(
        _code_conv2d_bwd_kernel,
        (num_embeddings, taps, triton.cdiv(channels, config["BLOCK_C"])),
        dout.permute(0, 2, 3, 1).contiguous(),
        order,
        bounds,
        _offsets_on(tuple(offsets), codes.device),
        dtable,
        height,
        width,
        num_embeddings,
        channels,
        **config,
    )
    return dtable


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    codes, offsets = torch.arange(64).view(1, 8, 8), [-1, 0, 0, -1]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield code_conv2d_fused_triton, (codes, torch.ones(2, 64, 32, dtype=dtype), offsets)
        dout = torch.ones(1, 32, 8, 8, dtype=dtype)
        yield code_conv2d_backward_triton, (dout, codes, 64, offsets)
