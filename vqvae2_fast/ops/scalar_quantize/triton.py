"""`scalar_quantize` and its gradient in Triton: one pass over memory each.

A program takes BLOCK_N vectors of d numbers, padded to BLOCK_D. The rows of columns are those of
`_Column`: shift, half, offset, least, most, width.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops.scalar_quantize.op import columns_of, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = [
    "blocks_of",
    "examples",
    "scalar_quantize_backward_triton",
    "scalar_quantize_triton",
    "tile_of",
]


@triton.jit
def tile_of(N, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows and columns of a program's numbers, and which of them exist."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    return n, d, (n < N)[:, None] & (d < D)[None, :]


@triton.jit
def _scalar_quantize_fwd_kernel(
    z_ptr,
    columns_ptr,
    places_ptr,
    values_ptr,
    indices_ptr,
    N,
    D,
    z_stride_n,
    z_stride_d,
    SYMMETRIC: tl.constexpr,
    HARD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """value = round(half · bounded(z + shift) + offset) / width; reads 4 bytes of a number, writes
    4 and, of a vector, 8."""
    n, d, inside = tile_of(N, D, BLOCK_N, BLOCK_D)
    real = d < D
    shift = tl.load(columns_ptr + d, mask=real, other=0.0)[None, :]
    half = tl.load(columns_ptr + D + d, mask=real, other=0.0)[None, :]
    offset = tl.load(columns_ptr + 2 * D + d, mask=real, other=0.0)[None, :]
    least = tl.load(columns_ptr + 3 * D + d, mask=real, other=0.0)[None, :]
    most = tl.load(columns_ptr + 4 * D + d, mask=real, other=0.0)[None, :]
    width = tl.load(columns_ptr + 5 * D + d, mask=real, other=1.0)[None, :]
    z_at = n[:, None] * z_stride_n + d[None, :] * z_stride_d
    x = tl.load(z_ptr + z_at, mask=inside, other=0.0) + shift
    if HARD:
        bounded = tl.where(x > 1.0, 1.0, tl.where(x < -1.0, -1.0, x))
    else:
        bounded = tl.div_rn(2.0, 1.0 + tl.exp(-2.0 * x)) - 1.0
    exact = half * bounded + offset
    # The nearest integer, of two the even one: adding 1.5 · 2²³ rounds to it.
    number = tl.floor(exact) if SYMMETRIC else (exact + 12582912.0) - 12582912.0
    # Comparisons, because a NaN has to stay.
    number = tl.where(number < least, least, tl.where(number > most, most, number))
    # Not `/`, which Triton compiles to a quotient within two ulp: values are exactly the grid's.
    value = tl.div_rn(number, width)
    if SYMMETRIC:
        value -= 1.0
    tl.store(values_ptr + n[:, None] * D + d[None, :], value, mask=inside)
    digit = number - least
    digit = tl.where(digit > 0.0, digit, 0.0).to(tl.int64)
    place = tl.load(places_ptr + d, mask=real, other=0)[None, :]
    tl.store(indices_ptr + n, tl.sum(digit * place, axis=1), mask=n < N)


@triton.jit
def _scalar_quantize_bwd_kernel(
    dvalues_ptr,
    z_ptr,
    columns_ptr,
    dz_ptr,
    N,
    D,
    dvalues_stride_n,
    dvalues_stride_d,
    z_stride_n,
    z_stride_d,
    SYMMETRIC: tl.constexpr,
    HARD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dz = dvalues · bounded'(z + shift) · half / width; reads two numbers, writes one."""
    n, d, inside = tile_of(N, D, BLOCK_N, BLOCK_D)
    shift = tl.load(columns_ptr + d, mask=d < D, other=0.0)[None, :]
    z_at = n[:, None] * z_stride_n + d[None, :] * z_stride_d
    x = tl.load(z_ptr + z_at, mask=inside, other=0.0) + shift
    if HARD:
        slope = tl.where(tl.abs(x) <= 1.0, 1.0, 0.0)
    else:
        # tanh' = 4 σ(2x) σ(−2x), which cancels nowhere.
        slope = 4.0 * tl.sigmoid(2.0 * x) * tl.sigmoid(-2.0 * x)
    if not SYMMETRIC:
        half = tl.load(columns_ptr + D + d, mask=d < D, other=0.0)[None, :]
        slope *= half / tl.load(columns_ptr + 5 * D + d, mask=d < D, other=1.0)[None, :]
    above_at = n[:, None] * dvalues_stride_n + d[None, :] * dvalues_stride_d
    above = tl.load(dvalues_ptr + above_at, mask=inside, other=0.0)
    tl.store(dz_ptr + n[:, None] * D + d[None, :], above * slope, mask=inside)


# Without bound, as captured CUDA graphs read these tensors as long as they live.
@functools.cache
def _constants(
    levels: tuple[int, ...], symmetric: bool, hard: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Columns float32 `[6, d]` and places int64 `[d]`, copied to the device once a grid."""
    like = torch.empty((), dtype=torch.float32, device="cpu")
    columns = torch.stack(columns_of(levels, symmetric, hard, like))
    return columns.to(device), torch.tensor(places_of(levels), device="cpu", dtype=torch.int64).to(
        device
    )


def blocks_of(z: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The grid of programs, and the block sizes."""
    config = dict(configuration("scalar_quantize", z.device))
    width = triton.next_power_of_2(z.shape[1])
    rows = max(1, config.pop("BLOCK") // width)
    return (triton.cdiv(len(z), rows),), {"BLOCK_N": rows, "BLOCK_D": width, **config}


def scalar_quantize_triton(
    z: Tensor,
    levels: Sequence[int],
    symmetric: bool = False,
    hard: bool = False,
    int32: bool = False,
) -> tuple[Tensor, Tensor]:
    values = z.new_empty(z.shape)
    indices = z.new_empty(z.shape[:1], dtype=torch.int32 if int32 else torch.int64)
    programs, blocks = blocks_of(z)
    launch(
        _scalar_quantize_fwd_kernel,
        programs,
        z,
        *_constants(tuple(levels), symmetric, hard, z.device),
        values,
        indices,
        *z.shape,
        *z.stride(),
        SYMMETRIC=symmetric,
        HARD=hard,
        **blocks,
    )
    return values, indices


def scalar_quantize_backward_triton(
    dvalues: Tensor, z: Tensor, levels: Sequence[int], symmetric: bool = False, hard: bool = False
) -> Tensor:
    dz = z.new_empty(z.shape)
    programs, blocks = blocks_of(z)
    launch(
        _scalar_quantize_bwd_kernel,
        programs,
        dvalues,
        z,
        _constants(tuple(levels), symmetric, hard, z.device)[0],
        dz,
        *z.shape,
        *dvalues.stride(),
        *z.stride(),
        SYMMETRIC=symmetric,
        HARD=hard,
        **blocks,
    )
    return dz


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    z = torch.ones(512, 4)
    for symmetric in (False, True):
        for hard in (False, True):
            for int32 in (False, True):
                yield scalar_quantize_triton, (z, [8, 5, 5, 5], symmetric, hard, int32)
            yield scalar_quantize_backward_triton, (z, z, [8, 5, 5, 5], symmetric, hard)
