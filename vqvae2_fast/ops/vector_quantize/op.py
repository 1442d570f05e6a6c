"""`vector_quantize`: nearest code, straight-through gradient and commitment loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from vqvae2_fast.ops._checks import check_codebook, check_floating, check_tensors, fits_codebook
from vqvae2_fast.ops._heads import for_each_head
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.nearest_code.op import why_not
from vqvae2_fast.ops.vector_quantize.gradient import backward, setup_context
from vqvae2_fast.ops.vector_quantize.reference import vector_quantize_reference

__all__ = ["VECTOR_QUANTIZE", "vector_quantize"]


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        z.new_empty(z.shape),
        z.new_empty(z.shape[:1], dtype=torch.int64),
        z.new_empty((), dtype=torch.float32),
    )


class _VectorQuantize(torch.autograd.Function):
    """The same as the registered gradient, at half its cost per call."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            results = VECTOR_QUANTIZE.overload._op(z, codebook)
        setup_context(ctx, (z, codebook), results)
        return results

    backward = staticmethod(backward)


def _kernel(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Calls the overload in the cheapest way; tracers get the overload itself."""
    if is_compiling():
        return VECTOR_QUANTIZE.overload(z, codebook)
    if z.requires_grad and torch.is_grad_enabled():
        return _VectorQuantize.apply(z, codebook)  # type: ignore[no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return VECTOR_QUANTIZE.overload._op(z, codebook)


VECTOR_QUANTIZE = register(
    "vector_quantize",
    "(Tensor z, Tensor codebook) -> (Tensor z_q, Tensor indices, Tensor commitment)",
    reference=vector_quantize_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=why_not,
    kernel=_kernel,
    gradient=(setup_context, backward),
)


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
        Second and forward-mode derivatives go straight through z_q too. Do not change z_q in
        place: where backward needs it, it raises RuntimeError then.
    """
    # The condition repeats the check because a Python call costs more.
    if not (isinstance(z, Tensor) and isinstance(codebook, Tensor)):
        check_tensors(z=z, codebook=codebook)
    if codebook.requires_grad:
        codebook = codebook.detach()
    if not fits_codebook(z, codebook):
        if codebook.dim() == 3:
            z_q, indices, each = for_each_head(vector_quantize, z, codebook)
            return z_q, indices, each.mean()
        check_codebook(z, codebook)
        flat = z.reshape(-1, z.shape[-1])  # [N, D]
        z_q, indices, commitment = VECTOR_QUANTIZE(flat, codebook)
        return z_q.view(z.shape), indices.view(z.shape[:-1]), commitment
    # `VECTOR_QUANTIZE(z, codebook)` without a Python call.
    reason = VECTOR_QUANTIZE.choose(z, codebook)
    if reason is None:
        return _kernel(z, codebook)
    check_floating(z=z, codebook=codebook)
    return VECTOR_QUANTIZE.fall_back(reason, z, codebook)
