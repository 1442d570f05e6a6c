"""The gradient of `residual_nearest_code`, which follows the residuals a second time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import KERNEL_DTYPES, other_dtype
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops._triton import runs_triton
from vqvae2_fast.ops.residual_nearest_code.reference import (
    residual_nearest_code_backward_reference,
)

__all__ = ["backward", "setup_context"]


def _fake(
    dz_q: Tensor,
    dcommitments: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    rotate: bool = False,
) -> Tensor:
    return z.new_empty(z.shape)


# A Triton program holds a vector in registers.
_LARGEST_DIMENSION_ON_GPU = 4096


def _why_not(
    dz_q: Tensor, dcommitments: Tensor, z: Tensor, codebooks: Tensor, *_: Any
) -> str | None:
    if z.shape[1] > _LARGEST_DIMENSION_ON_GPU and runs_triton(z):
        return f"more than {_LARGEST_DIMENSION_ON_GPU} dimensions"
    return other_dtype(KERNEL_DTYPES, gradient=dz_q, input=z, codebooks=codebooks) or other_dtype(
        (torch.float32,), gradient_of_the_commitments=dcommitments
    )


# dz = dz_q + Σ_q dcommitments[q] 2 / (N D) (r_q - e_q), or with `rotate` the sum of the
# λ_q R_qᵀ dz_q in place of dz_q; of dz_q, z `[N, D]`, dcommitments float32 `[Q]`, codebooks
# `[Q, K, D]` and indices `[N, Q]`; the result has z's dtype.
RESIDUAL_NEAREST_CODE_BACKWARD = register(
    "residual_nearest_code_backward",
    "(Tensor dz_q, Tensor dcommitments, Tensor z, Tensor codebooks, Tensor indices, "
    "bool rotate=False) -> Tensor",
    reference=residual_nearest_code_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    is_gradient=True,
)


def _kept(codebooks: Tensor) -> Tensor:
    """A copy, because the codebooks may move before backward runs; a shared one is copied once."""
    if codebooks.stride(0) == 0:
        return codebooks[:1].clone().expand_as(codebooks)
    return codebooks.clone()


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Do not make zeros for results without a gradient; indices never have one.
    ctx.set_materialize_grads(False)
    z, codebooks, ctx.rotate = inputs
    ctx.save_for_backward(z, _kept(codebooks), output[1])


def backward(
    ctx: Any, dz_q: Tensor | None, _dindices: None, dcommitments: Tensor | None
) -> tuple[Tensor | None, None, None]:
    z, codebooks, indices = ctx.saved_tensors
    if dz_q is None and dcommitments is None:
        return None, None, None
    if dz_q is None:
        dz_q = z.new_zeros(z.shape)
    if dcommitments is None:
        if not ctx.rotate:
            return dz_q, None, None
        dcommitments = z.new_zeros(len(codebooks), dtype=torch.float32)
    dz = RESIDUAL_NEAREST_CODE_BACKWARD(dz_q, dcommitments, z, codebooks, indices, ctx.rotate)
    return dz, None, None
