"""The gradient of `vector_quantize`, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import KERNEL_DTYPES, other_dtype
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.vector_quantize.reference import vector_quantize_backward_reference

__all__ = ["backward", "setup_context"]

# From this many vectors per code on, copying the codebook and gathering from the copy moves less
# memory than reading z_q.
_FEWEST_VECTORS_PER_CODE = 4


def _fake(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, codes: Tensor, indices: Tensor | None = None
) -> Tensor:
    return z.new_empty(z.shape)


def _why_not(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, codes: Tensor, indices: Tensor | None = None
) -> str | None:
    return other_dtype(KERNEL_DTYPES, gradient=dz_q, input=z, codes=codes) or other_dtype(
        (torch.float32,), gradient_of_the_commitment=dcommitment
    )


# dz = dz_q + dcommitment 2 / (N D) (z - e), of dz_q and z `[N, D]` and dcommitment 0-d float32; the
# result has z's dtype. Vector n's code e is codes[n], or codes[indices[n]] with indices `[N]`.
VECTOR_QUANTIZE_BACKWARD = register(
    "vector_quantize_backward",
    "(Tensor dz_q, Tensor dcommitment, Tensor z, Tensor codes, Tensor? indices=None) -> Tensor",
    reference=vector_quantize_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    is_gradient=True,
)


def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    # Do not make zeros for results without a gradient; indices never have one.
    ctx.set_materialize_grads(False)
    (z, codebook), (z_q, indices, _) = inputs, output
    if _saves_codebook(z, codebook):
        # The codebook may move before backward runs.
        ctx.save_for_backward(z, codebook.clone(), indices)
    else:
        ctx.save_for_backward(z, z_q)


def _saves_codebook(z: Tensor, codebook: Tensor) -> bool:
    """Whether backward reads less from a copy of the codebook than from z_q, or needs the copy."""
    if z.dtype != codebook.dtype:
        return True  # z_q is rounded
    if torch.compiler.is_exporting():  # a program is for any number of vectors
        return False
    return z.device.type == "cpu" and z.shape[0] >= _FEWEST_VECTORS_PER_CODE * codebook.shape[0]


def backward(
    ctx: Any, dz_q: Tensor | None, _dindices: None, dcommitment: Tensor | None
) -> tuple[Tensor | None, None]:
    z, *codes = ctx.saved_tensors
    if dz_q is None:
        dz_q = torch.zeros_like(z)
    if dcommitment is None:
        return dz_q, None
    return VECTOR_QUANTIZE_BACKWARD(dz_q, dcommitment, z, *codes), None
