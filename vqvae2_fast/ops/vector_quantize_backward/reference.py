"""Reference of `vector_quantize_backward`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["vector_quantize_backward_reference"]


def vector_quantize_backward_reference(
    dz_q: Tensor, dcommitment: Tensor, z: Tensor, z_q: Tensor
) -> Tensor:
    scale = dcommitment * (2.0 / max(z.numel(), 1))
    return dz_q + (scale * (z - z_q)).to(z.dtype)
