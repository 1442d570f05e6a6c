"""References of `residual_nearest_code`, a loop of `nearest_code`, and of its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.ops._rotation import rotated, rotated_back
from vqvae2_fast.ops.nearest_code.op import NEAREST_CODE
from vqvae2_fast.ops.vector_quantize.reference import straight_through

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "residual_nearest_code_backward_reference",
    "residual_nearest_code_reference",
    "residual_type",
    "residuals_and_codes",
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
