"""`residual_nearest_code`: several quantisers in a row, each of what the last has left over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    check_codebook,
    check_floating,
    checked_integer,
    described,
    other_dtype,
)
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops._triton import runs_triton
from vqvae2_fast.ops.nearest_code.op import NEAREST_CODE
from vqvae2_fast.ops.vector_quantize.op import rotated, rotated_back, straight_through

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "RESIDUAL_NEAREST_CODE",
    "check_codebooks",
    "residual_nearest_code",
    "residual_nearest_code_backward_reference",
    "residual_nearest_code_reference",
    "residual_type",
    "residuals_and_codes",
    "why_not",
]


def residual_type(z: Tensor, codebooks: Tensor) -> torch.dtype:
    """Of residuals and sums: float32, or float64 if z or the codebooks are."""
    return torch.promote_types(torch.promote_types(z.dtype, codebooks.dtype), torch.float32)


def residuals_and_codes(
    z: Tensor, codebooks: Tensor, indices: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """r_q and e_q of each quantiser, `[N, D]`; each r_q has the derivative of z."""
    residual = z.to(residual_type(z, codebooks))
    for codebook, index in zip(codebooks.detach(), indices.unbind(1), strict=True):
        code = codebook.to(residual.dtype)[index]
        yield residual, code
        residual = residual - code


def residual_nearest_code_reference(
    z: Tensor, codebooks: Tensor, rotate: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    residual = z.to(residual_type(z, codebooks))  # [N, D]
    indices, commitments = [], []
    total, image = torch.zeros_like(residual.detach()), torch.zeros_like(residual)
    for codebook in codebooks.detach():
        index, _ = NEAREST_CODE(residual.detach(), codebook)
        code = codebook.to(residual.dtype)[index]  # [N, D]
        if rotate:
            image = image + rotated(residual, code)
        residual = residual - code
        total = total + code
        indices.append(index)
        commitments.append(residual.double().square().sum() / max(z.numel(), 1))
    source = image.to(z.dtype) if rotate else z
    z_q = straight_through(source, total)
    return z_q, torch.stack(indices, 1), torch.stack(commitments).float()


def residual_nearest_code_backward_reference(
    dz_q: Tensor,
    dcommitments: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    rotate: bool = False,
) -> Tensor:
    scale = dcommitments * (2.0 / max(z.numel(), 1))  # [Q]
    dtype = residual_type(z, codebooks)
    incoming = dz_q.to(dtype)
    dz = torch.zeros_like(incoming) if rotate else incoming
    for q, (residual, code) in enumerate(residuals_and_codes(z, codebooks, indices)):
        if rotate:
            dz = dz + rotated_back(incoming, residual, code)
        dz = dz + scale[q] * (residual - code)
    return dz.to(z.dtype)


def _backward_fake(
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


def _why_not_backward(
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
    fake=_backward_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def _kept(codebooks: Tensor) -> Tensor:
    """A copy, because the codebooks may move before backward runs; a shared one is copied once."""
    if codebooks.stride(0) == 0:
        return codebooks[:1].clone().expand_as(codebooks)
    return codebooks.clone()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Do not make zeros for results without a gradient; indices never have one.
    ctx.set_materialize_grads(False)
    z, codebooks, ctx.rotate = inputs
    ctx.save_for_backward(z, _kept(codebooks), output[1])


def _backward(
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


def _fake(z: Tensor, codebooks: Tensor, rotate: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    quantizers = codebooks.shape[0]
    return (
        z.new_empty(z.shape),
        z.new_empty(z.shape[0], quantizers, dtype=torch.int64),
        z.new_empty(quantizers, dtype=torch.float32),
    )


def why_not(z: Tensor, codebooks: Tensor, *_: Any) -> str | None:
    return other_dtype(KERNEL_DTYPES, input=z, codebooks=codebooks)


RESIDUAL_NEAREST_CODE = register(
    "residual_nearest_code",
    "(Tensor z, Tensor codebooks, bool rotate=False) "
    "-> (Tensor z_q, Tensor indices, Tensor commitments)",
    reference=residual_nearest_code_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=why_not,
    gradient=(_setup_context, _backward),
)


def check_codebooks(z: Tensor, codebooks: Tensor) -> None:
    """z `[..., D]` against codebooks `[Q, K, D]`, Q, K and D at least 1."""
    check_floating(z=z, codebooks=codebooks)
    if codebooks.dim() != 3 or 0 in codebooks.shape:
        raise ValueError(
            f"expected codebooks [Q, K, D] with Q, K, D >= 1, got {described(codebooks)}."
        )
    check_codebook(z, codebooks[0])


def residual_nearest_code(
    z: Tensor, codebooks: Tensor, *, rotate: bool = False, num_active: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise each vector by several codebooks, one after the other: residual quantisation.

    r_0 = z, i_q = argmin_k ‖r_q − e_{q,k}‖ exactly as `nearest_code` finds it, r_{q+1} = r_q − e_q
    with e_q = codebooks[q, i_q], in float32, and z_q = e_0 + e_1 + … in this order (algorithm 1 of
    https://arxiv.org/abs/2107.03312).

    Args:
        z: Vectors, `[..., D]`, float32, bfloat16 or float16 (float64 runs on the reference, whose
            residuals are then float64).
        codebooks: `[Q, K, D]`. One codebook `[K, D]` that all quantisers share is
            `codebook.expand(Q, K, D)`, which is packed once. A codebook with fewer codes is filled
            up with NaN, which never wins.
        rotate: What gradient z_q passes to z. False: its own, straight through. True: the sum of
            what Q rotations pass (https://arxiv.org/abs/2410.06424), Σ_q λ_q R_qᵀ dz_q, where
            λ_q R_q takes r_q, held constant, to its code; so does `ResidualVQ` of
            vector-quantize-pytorch, which sums Q gradients.
        num_active: Use only this many of the quantisers, the first ones (quantiser dropout). The
            default is all.

    Returns:
        z_q: `[..., D]`, the sum of the codes, in z's dtype.
        indices: int64, `[..., Q]`; −1 for quantisers that are not active.
        commitments: float32, `[Q]`, `mean((r_q − sg[e_q])²)`, differentiable in z; 0 for
            quantisers that are not active.

    Raises:
        ValueError: Shapes that do not fit, an empty codebook, num_active outside 1..Q.
        TypeError: Not a tensor, or a dtype that is not floating.
        RuntimeError: Tensors on different devices.

    Note:
        No gradient flows to the codebooks or to indices: the codebooks learn by
        `residual_code_statistics` and `ema_update_`. They may change before backward runs.
    """
    check_codebooks(z, codebooks)
    quantizers = len(codebooks)
    active = quantizers
    if num_active is not None:
        active = checked_integer("num_active", num_active, 1, quantizers)
    flat = z.reshape(-1, z.shape[-1])  # [N, D]
    z_q, indices, commitments = RESIDUAL_NEAREST_CODE(flat, codebooks.detach()[:active], rotate)
    if active < quantizers:
        indices = F.pad(indices, (0, quantizers - active), value=-1)
        commitments = F.pad(commitments, (0, quantizers - active))
    return z_q.view(z.shape), indices.view(*z.shape[:-1], quantizers), commitments
