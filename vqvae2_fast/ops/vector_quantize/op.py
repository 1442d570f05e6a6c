"""`vector_quantize`: nearest code, straight-through gradient and commitment loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    check_codebook,
    check_floating,
    fits_codebook,
    other_dtype,
)
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.nearest_code.op import NEAREST_CODE, for_each_head, why_not

__all__ = [
    "VECTOR_QUANTIZE",
    "rotate_gradient",
    "rotated",
    "rotated_back",
    "straight_through",
    "vector_quantize",
    "vector_quantize_backward_reference",
    "vector_quantize_reference",
]


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, code: Tensor) -> Tensor:
        return code.to(z.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dz_q: Tensor) -> tuple[Tensor, None]:
        return dz_q, None


class _WithForwardMode(_StraightThrough):
    @staticmethod
    def jvp(ctx: Any, z_tangent: Tensor, _code_tangent: Tensor | None) -> Tensor:
        return z_tangent.clone()


def straight_through(z: Tensor, code: Tensor) -> Tensor:
    """The code itself rather than z + (code - z), which is off by an ulp; its derivative is z's."""
    # Dynamo traces no function that has a `jvp`.
    function = _StraightThrough if torch.compiler.is_compiling() else _WithForwardMode
    z_q: Tensor = function.apply(z, code)  # type: ignore[no-untyped-call]
    return z_q


# The rotation trick, section 4.2 of https://arxiv.org/abs/2410.06424: the gradient of a quantised
# vector as if it were rotated from its input. With u = z/‖z‖, q = e/‖e‖, w = (u + q)/‖u + q‖ and
# λ = ‖e‖/‖z‖, all held constant, λRz = λ(z − 2(z·w)w + 2(z·u)q) is the code e up to rounding. z and
# e are `[..., D]`; results are float64 if z is, else float32.


def _wide(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _frame(z: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, q, w and λ."""
    wide = _wide(z.detach())
    e = code.detach().to(wide.dtype)
    u, q = F.normalize(wide, dim=-1), F.normalize(e, dim=-1)
    scale = e.norm(dim=-1, keepdim=True) / wide.norm(dim=-1, keepdim=True).clamp(1e-6)
    return u, q, F.normalize(u + q, dim=-1), scale


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def rotated(z: Tensor, code: Tensor) -> Tensor:
    """λRz, differentiable in z; no gradient flows to the code."""
    wide = _wide(z)
    u, q, w, scale = _frame(z, code)
    return (wide - 2 * _dot(wide, w) * w + 2 * _dot(wide, u) * q) * scale


def rotated_back(gradient: Tensor, z: Tensor, code: Tensor) -> Tensor:
    """λRᵀg, the gradient of `rotated` in z for the gradient g of its result."""
    u, q, w, scale = _frame(z, code)
    g = _wide(gradient)
    return (g - 2 * _dot(g, w) * w + 2 * _dot(g, q) * u) * scale


def rotate_gradient(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q with the gradient to z of its rotation, `rotated`. The value is z_q itself."""
    image = rotated(z, z_q)
    # The difference is zero, with the gradient of its first term.
    return z_q.detach() + (image - image.detach()).to(z.dtype)


def vector_quantize_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    indices, _ = NEAREST_CODE(z.detach(), codebook.detach())
    code = codebook.detach()[indices]  # [N, D]
    z_q = straight_through(z, code)
    commitment = (z.double() - code.double()).square().sum() / max(z.numel(), 1)
    return z_q, indices, commitment.float()


def vector_quantize_backward_reference(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, codes: Tensor, indices: Tensor | None = None
) -> Tensor:
    scale = dcommitment * (2.0 / max(z.numel(), 1))
    # As the kernels do, in float32 at least: of many vectors the scale is 0 in float16.
    dtype = torch.promote_types(z.dtype, torch.float32)
    # A saved z_q is straight-through: its gradient would cancel that of z.
    codes = codes.detach() if indices is None else codes.detach()[indices]
    difference = z.to(dtype) - codes.to(dtype)
    return (dz_q.to(dtype) + scale * difference).to(z.dtype)


# From this many vectors per code on, copying the codebook and gathering from the copy moves less
# memory than reading z_q.
_FEWEST_VECTORS_PER_CODE = 4


def _backward_fake(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, codes: Tensor, indices: Tensor | None = None
) -> Tensor:
    return z.new_empty(z.shape)


def _why_not_backward(
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
    fake=_backward_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
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


def _backward(
    ctx: Any, dz_q: Tensor | None, _dindices: None, dcommitment: Tensor | None
) -> tuple[Tensor | None, None]:
    z, *codes = ctx.saved_tensors
    if dz_q is None:
        dz_q = torch.zeros_like(z)
    if dcommitment is None:
        return dz_q, None
    return VECTOR_QUANTIZE_BACKWARD(dz_q, dcommitment, z, *codes), None


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
        _setup_context(ctx, (z, codebook), results)
        return results

    backward = staticmethod(_backward)


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
    gradient=(_setup_context, _backward),
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
        check_floating(z=z, codebook=codebook)
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
