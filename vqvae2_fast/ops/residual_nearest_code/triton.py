"""`residual_nearest_code` and its gradient in Triton.

Forward: for each quantiser the search of `nearest_code`, then one pass that subtracts the codes
from the residuals and adds them to the sums. The squared distances that the search found are the
commitments. Backward: one program per vector, whose residuals stay in registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops.nearest_code.triton import nearest_code_triton

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "examples",
    "residual_nearest_code_backward_triton",
    "residual_nearest_code_triton",
    "take_codes",
]


@triton.jit
def _take_codes_kernel(
    row_ptr,
    codebook_ptr,
    indices_ptr,
    residual_ptr,
    total_ptr,
    sum_ptr,
    size,
    D,
    row_strides,
    code_strides,
    index_strides,
    FIRST: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """residual = row − code, and with SUMS sum = total + code; no code where the index is −1."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < size
    n = entry // D
    d = entry % D
    k = tl.load(indices_ptr + n * index_strides[0], mask=inside, other=-1)
    code = tl.load(
        codebook_ptr + k * code_strides[0] + d * code_strides[1], mask=inside & (k >= 0), other=0.0
    ).to(tl.float32)
    row = tl.load(row_ptr + n * row_strides[0] + d * row_strides[1], mask=inside, other=0.0)
    tl.store(residual_ptr + entry, row.to(tl.float32) - code, mask=inside)
    if SUMS:
        total = code
        if not FIRST:
            total += tl.load(total_ptr + entry, mask=inside, other=0.0)
        tl.store(sum_ptr + entry, total, mask=inside)


def take_codes(
    rows: Tensor,
    codebook: Tensor,
    indices: Tensor,
    residual: Tensor,
    totals: tuple[Tensor | None, Tensor] | None = None,
) -> None:
    """`residual = rows − codebook[indices]`, which may be in place.

    Args:
        rows: `[N, D]`.
        indices: int64 `[N]`; −1 takes no code.
        residual: float32 `[N, D]`, contiguous.
        totals: The sums of codes so far, float32 `[N, D]` or None for zeros, and where to write the
            new ones, contiguous, of any dtype.
    """
    before, after = totals or (None, residual)
    config = configuration("take_codes", rows.device)
    launch(
        _take_codes_kernel,
        (triton.cdiv(rows.numel(), config["BLOCK"]),),
        rows,
        codebook,
        indices,
        residual,
        residual if before is None else before,
        after,
        rows.numel(),  # int64 if int32 does not hold it
        rows.shape[1],
        rows.stride(),
        codebook.stride(),
        indices.stride(),
        FIRST=before is None,
        SUMS=totals is not None,
        **config,
    )


def residual_nearest_code_triton(
    z: Tensor, codebooks: Tensor, rotate: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    residual = z.new_empty(z.shape, dtype=torch.float32)
    total = torch.empty_like(residual)
    z_q = z.new_empty(z.shape)
    indices = z.new_empty(len(z), len(codebooks), dtype=torch.int64)
    commitments = []
    rows, before = z, None
    for q, codebook in enumerate(codebooks.unbind()):
        index, sqdist = nearest_code_triton(rows, codebook)
        after = z_q if q == len(codebooks) - 1 else total
        take_codes(rows, codebook, index, residual, (before, after))
        rows, before = residual, total
        indices[:, q] = index
        commitments.append(sqdist.sum(dtype=torch.float64) / max(z.numel(), 1))
    return z_q, indices, torch.stack(commitments).float()


@triton.jit
def _residual_nearest_code_bwd_kernel(
    dz_q_ptr,
    dcommitments_ptr,
    z_ptr,
    codebooks_ptr,
    indices_ptr,
    dz_ptr,
    Q,
    D,
    gain,
    dz_q_strides,
    dcommitment_stride,
    z_strides,
    code_strides,
    index_strides,
    ROTATE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dz = dz_q + Σ_q dcommitments[q] · gain · r_{q+1}, or with ROTATE Σ_q λ_q R_qᵀ dz_q for dz_q.

    One program per vector: reads z and dz_q once and Q codes, writes dz.
    """
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    inside = d < D
    z = tl.load(z_ptr + n * z_strides[0] + d * z_strides[1], mask=inside, other=0.0)
    residual = z.to(tl.float32)
    dz_q = tl.load(dz_q_ptr + n * dz_q_strides[0] + d * dz_q_strides[1], mask=inside, other=0.0)
    g = dz_q.to(tl.float32)
    dz = g * 0.0 if ROTATE else g
    book = tl.full((), 0, tl.int64)
    for q in range(0, Q):
        k = tl.load(indices_ptr + n * index_strides[0] + q * index_strides[1])
        at = book + k * code_strides[1]
        book += code_strides[0]
        code = tl.load(codebooks_ptr + at + d * code_strides[2], mask=inside, other=0.0)
        code = code.to(tl.float32)
        if ROTATE:
            length = tl.sqrt(tl.sum(residual * residual, axis=0))
            code_length = tl.sqrt(tl.sum(code * code, axis=0))
            to_u = 1.0 / tl.maximum(length, 1e-12)
            to_q = 1.0 / tl.maximum(code_length, 1e-12)
            w = residual * to_u + code * to_q
            to_w = 1.0 / tl.maximum(tl.sqrt(tl.sum(w * w, axis=0)), 1e-12)
            along_w = to_w * tl.sum(g * w, axis=0) * to_w
            along_u = to_q * tl.sum(g * code, axis=0) * to_u
            scale = code_length / tl.maximum(length, 1e-6)
            dz += scale * (g - 2.0 * along_w * w + 2.0 * along_u * residual)
        residual -= code
        dz += tl.load(dcommitments_ptr + q * dcommitment_stride) * gain * residual
    tl.store(dz_ptr + n * D + d, dz, mask=inside)


def residual_nearest_code_backward_triton(
    dz_q: Tensor,
    dcommitments: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    rotate: bool = False,
) -> Tensor:
    dz = z.new_empty(z.shape)
    width = triton.next_power_of_2(z.shape[1])
    launch(
        _residual_nearest_code_bwd_kernel,
        (len(z),),
        dz_q,
        dcommitments,
        z,
        codebooks,
        indices,
        dz,
        len(codebooks),
        z.shape[1],
        2.0 / max(z.numel(), 1),
        dz_q.stride(),
        dcommitments.stride(0),
        z.stride(),
        codebooks.stride(),
        indices.stride(),
        ROTATE=rotate,
        BLOCK_D=width,
        num_warps=min(8, max(1, width // 256)),
    )
    return dz


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet; for the search see `nearest_code`."""
    weights, codebooks = torch.ones(2), torch.ones(2, 32, 64)
    indices = torch.zeros(16, 2, dtype=torch.int64)
    for rotate in (False, True):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            z = torch.ones(16, 64, dtype=dtype)
            yield (
                residual_nearest_code_backward_triton,
                (z, weights, z, codebooks, indices, rotate),
            )
        for dimension in (512, 4096):
            z, books = torch.ones(16, dimension), torch.ones(2, 4, dimension)
            yield (
                residual_nearest_code_backward_triton,
                (z, weights, z, books, indices, rotate),
            )
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        z, residual = torch.ones(16, 64, dtype=dtype), torch.ones(16, 64)
        index = torch.zeros(16, dtype=torch.int64)
        yield take_codes, (z, codebooks[0], index, residual)
        yield take_codes, (z, codebooks[0], index, residual, (None, residual))
        yield take_codes, (residual, codebooks[0], index, residual, (residual, z))
