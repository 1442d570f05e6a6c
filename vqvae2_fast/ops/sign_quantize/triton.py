"""`sign_quantize` in Triton: one pass over memory.

A program takes BLOCK_N vectors of d numbers, padded to BLOCK_D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import launch
from vqvae2_fast.ops.scalar_quantize.triton import blocks_of, tile_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["examples", "sign_quantize_triton"]


@triton.jit
def _sign_quantize_kernel(
    z_ptr,
    values_ptr,
    indices_ptr,
    scale,
    N,
    D,
    z_stride_n,
    z_stride_d,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """±scale and Σ_i [z_i > 0] · 2^(d−1−i); reads 4 bytes of a number, writes 4 and, of a vector,
    8."""
    n, d, inside = tile_of(N, D, BLOCK_N, BLOCK_D)
    z_at = n[:, None] * z_stride_n + d[None, :] * z_stride_d
    positive = tl.load(z_ptr + z_at, mask=inside, other=0.0) > 0.0
    tl.store(
        values_ptr + n[:, None] * D + d[None, :], tl.where(positive, scale, -scale), mask=inside
    )
    bit = tl.where(d < D, D - 1 - d, 0).to(tl.int64)[None, :]
    tl.store(indices_ptr + n, tl.sum(positive.to(tl.int64) << bit, axis=1), mask=n < N)


def sign_quantize_triton(z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    values = z.new_empty(z.shape)
    indices = z.new_empty(z.shape[:1], dtype=torch.int64)
    programs, blocks = blocks_of(z)
    launch(
        _sign_quantize_kernel,
        programs,
        z,
        values,
        indices,
        scale,
        *z.shape,
        *z.stride(),
        **blocks,
    )
    return values, indices


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    yield sign_quantize_triton, (torch.ones(512, 10), 1.0)
