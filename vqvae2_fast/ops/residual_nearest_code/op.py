"""`residual_nearest_code`: several quantisers in a row, each of what the last has left over."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    check_codebook,
    check_tensors,
    checked_integer,
    described,
    other_dtype,
)
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.residual_nearest_code.gradient import backward, setup_context
from vqvae2_fast.ops.residual_nearest_code.reference import residual_nearest_code_reference

__all__ = ["RESIDUAL_NEAREST_CODE", "check_codebooks", "residual_nearest_code", "why_not"]


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
    gradient=(setup_context, backward),
)


def check_codebooks(z: Tensor, codebooks: Tensor) -> None:
    """z `[..., D]` against codebooks `[Q, K, D]`, Q, K and D at least 1."""
    check_tensors(z=z, codebooks=codebooks)
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
