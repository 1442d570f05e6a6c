"""`vector_quantize`: nearest code, straight-through gradient and commitment loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import check_codebook
from vqvae2_fast.ops._heads import for_each_head
from vqvae2_fast.ops._registry import LIBRARY, register
from vqvae2_fast.ops.nearest_code.op import fits_kernel, refusal
from vqvae2_fast.ops.vector_quantize.reference import vector_quantize_reference
from vqvae2_fast.ops.vector_quantize_backward.op import VECTOR_QUANTIZE_BACKWARD

__all__ = ["VECTOR_QUANTIZE", "vector_quantize"]


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        z.new_empty(z.shape),
        z.new_empty(z.shape[:1], dtype=torch.int64),
        z.new_empty((), dtype=torch.float32),
    )


VECTOR_QUANTIZE = register(
    "vector_quantize",
    "(Tensor z, Tensor codebook) -> (Tensor z_q, Tensor indices, Tensor commitment)",
    reference=vector_quantize_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    refusal=refusal,
)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _backward(
    ctx: Any, dz_q: Tensor, _dindices: None, dcommitment: Tensor
) -> tuple[Tensor | None, None]:
    if not ctx.needs_input_grad[0]:
        return None, None
    return VECTOR_QUANTIZE_BACKWARD(dz_q, dcommitment, *ctx.saved_tensors), None


torch.library.register_autograd(
    "vqvae2_fast::vector_quantize", _backward, setup_context=_setup_context, lib=LIBRARY
)


class _VectorQuantize(torch.autograd.Function):
    """What `register_autograd` does, at half its cost a call; tracers take the registered one."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            z_q, indices, commitment = VECTOR_QUANTIZE.overload(z, codebook)
        # No zeros are made for results without a gradient, which indices always are.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, z_q)
        return z_q, indices, commitment

    @staticmethod
    def backward(
        ctx: Any, dz_q: Tensor | None, _dindices: None, dcommitment: Tensor | None
    ) -> tuple[Tensor | None, None]:
        z, z_q = ctx.saved_tensors
        if dz_q is None:
            dz_q = torch.zeros_like(z_q)
        if dcommitment is None:
            return dz_q, None
        return VECTOR_QUANTIZE_BACKWARD(dz_q, dcommitment, z, z_q), None


def _call(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A call that fits the kernel, by the way that costs least."""
    if torch.compiler.is_compiling():
        return VECTOR_QUANTIZE(z, codebook)
    if z.requires_grad and torch.is_grad_enabled():
        return _VectorQuantize.apply(z, codebook)  # type: ignore[no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return VECTOR_QUANTIZE.overload(z, codebook)


def vector_quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace each vector by its nearest code.

    `z_q = e_k`, `k = argmin_j ‖z − e_j‖` and `commitment = mean((z − sg[e_k])²)`, eqs. 1 to 3 of
    https://arxiv.org/abs/1711.00937 (β is the caller's).

    Args:
        z: Vectors, `[..., D]`, floating.
        codebook: Codes, `[K, D]`; or of H heads, `[H, K, D]`, and z is `[H, ..., D]`.

    Returns:
        z_q: `[..., D]`, the exact codebook row in z's dtype. Its gradient goes straight to z.
        indices: int64, `[...]`, as `nearest_code` finds them.
        commitment: float32, 0-d, differentiable in z.

    Raises:
        ValueError, TypeError, RuntimeError: As `nearest_code`.

    Note:
        No gradient flows to the codebook or to indices: the codebook learns by `ema_update_`.
    """
    if codebook.requires_grad:
        codebook = codebook.detach()
    if fits_kernel(z, codebook):
        return _call(z, codebook)
    if codebook.dim() == 3:
        z_q, indices, each = for_each_head("vector_quantize", vector_quantize, z, codebook)
        return z_q, indices, each.mean()
    check_codebook("vector_quantize", z, codebook)
    if z.dim() == 2:
        return VECTOR_QUANTIZE(z, codebook)
    flat = z.reshape(-1, z.shape[-1])  # [N, D]
    quantize = _call if fits_kernel(flat, codebook) else VECTOR_QUANTIZE
    z_q, indices, commitment = quantize(flat, codebook)
    return z_q.view(z.shape), indices.view(z.shape[:-1]), commitment
