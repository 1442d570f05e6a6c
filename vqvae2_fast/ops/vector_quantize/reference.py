"""Reference of `vector_quantize`: forward and backward, from `nearest_code` and a gather."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops.nearest_code.op import NEAREST_CODE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["vector_quantize_backward", "vector_quantize_reference"]


def vector_quantize_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    indices, sqdist = NEAREST_CODE(z, codebook)
    z_q = codebook[indices].to(z.dtype)  # [N, D]
    commitment = sqdist.double().sum().div(max(z.numel(), 1)).float()
    return z_q, indices, commitment


def vector_quantize_backward(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Straight through, plus the gradient of the mean squared error to the fixed code."""
    scale = dcommitment * (2.0 / max(z.numel(), 1))
    return dz_q + (scale * (z - codebook[indices])).to(z.dtype)
