"""`vector_quantize` and its gradient in Triton.

Forward: the search of `nearest_code`, then a gather and a sum by PyTorch. The squared distances
that the search found are the commitment: z is not read again. Backward: one pass over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops.nearest_code.triton import nearest_code_triton

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["examples", "vector_quantize_backward_triton", "vector_quantize_triton"]


def vector_quantize_triton(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    indices, sqdist = nearest_code_triton(z, codebook)
    z_q = codebook.to(z.dtype).index_select(0, indices)  # [N, D]
    commitment = sqdist.sum(dtype=torch.float64) / max(z.numel(), 1)
    return z_q, indices, commitment.float()


@triton.jit
def _vector_quantize_bwd_kernel(
    dz_q_ptr,
    dcommitment_ptr,
    z_ptr,
    codes_ptr,
    indices_ptr,
    dz_ptr,
    size,
    D,
    gain,
    dz_q_strides,
    z_strides,
    codes_strides,
    GATHERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dz = dz_q + dcommitment · 2 / (N·D) · (z − e); reads three values, writes one."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < size
    n = entry // D
    d = entry % D
    scale = tl.load(dcommitment_ptr) * gain
    dz_q = tl.load(dz_q_ptr + n * dz_q_strides[0] + d * dz_q_strides[1], mask=inside, other=0.0)
    z = tl.load(z_ptr + n * z_strides[0] + d * z_strides[1], mask=inside, other=0.0)
    row = tl.load(indices_ptr + n, mask=inside, other=0) if GATHERS else n
    e = tl.load(codes_ptr + row * codes_strides[0] + d * codes_strides[1], mask=inside, other=0.0)
    dz = dz_q.to(tl.float32) + scale * (z.to(tl.float32) - e.to(tl.float32))
    tl.store(dz_ptr + entry, dz, mask=inside)


def vector_quantize_backward_triton(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, codes: Tensor, indices: Tensor | None = None
) -> Tensor:
    dz = z.new_empty(z.shape)
    config = configuration("vector_quantize_backward", z.device)
    launch(
        _vector_quantize_bwd_kernel,
        (triton.cdiv(z.numel(), config["BLOCK"]),),
        dz_q,
        dcommitment,
        z,
        codes,
        indices if indices is not None else z,  # not read without
        dz,
        z.numel(),  # int64 if int32 does not hold it
        z.shape[1],
        2.0 / max(z.numel(), 1),
        dz_q.stride(),
        z.stride(),
        codes.stride(),
        GATHERS=indices is not None,
        **config,
    )
    return dz


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet; for the search see `nearest_code`."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        z = torch.ones(512, 64, dtype=dtype)
        yield vector_quantize_backward_triton, (z, torch.ones(()), z, z)
        indices = torch.zeros(512, dtype=torch.int64)
        yield vector_quantize_backward_triton, (z, torch.ones(()), z, z, indices)
