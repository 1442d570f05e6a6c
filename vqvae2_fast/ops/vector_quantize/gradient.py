"""The gradient of `vector_quantize`, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import KERNEL_DTYPES, other_dtype
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.vector_quantize.reference import vector_quantize_backward_reference

__all__ = ["backward", "setup_context"]


def _fake(dz_q: Tensor, dcommitment: Tensor, z: Tensor, z_q: Tensor) -> Tensor:
    return z.new_empty(z.shape)


def _why_not(dz_q: Tensor, dcommitment: Tensor, z: Tensor, z_q: Tensor) -> str | None:
    return other_dtype(KERNEL_DTYPES, gradient=dz_q, input=z, codes=z_q) or other_dtype(
        (torch.float32,), gradient_of_the_commitment=dcommitment
    )


# dz = dz_q + dcommitment 2 / (N D) (z - z_q), of dz_q, z, z_q `[N, D]` and dcommitment 0-d float32;
# the result has z's dtype.
VECTOR_QUANTIZE_BACKWARD = register(
    "vector_quantize_backward",
    "(Tensor dz_q, Tensor dcommitment, Tensor z, Tensor z_q) -> Tensor",
    reference=vector_quantize_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    is_gradient=True,
)


def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    # Do not make zeros for results without a gradient; indices never have one.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], output[0])


def backward(
    ctx: Any, dz_q: Tensor | None, _dindices: None, dcommitment: Tensor | None
) -> tuple[Tensor | None, None]:
    z, z_q = ctx.saved_tensors
    if dz_q is None:
        dz_q = torch.zeros_like(z_q)
    if dcommitment is None:
        return dz_q, None
    return VECTOR_QUANTIZE_BACKWARD(dz_q, dcommitment, z, z_q), None
