"""Reference of `vector_quantize`, differentiable: from `nearest_code` and a gather."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops.nearest_code.op import NEAREST_CODE

__all__ = ["vector_quantize_reference"]


class _StraightThrough(torch.autograd.Function):
    """The code itself, not z + (code - z), which is off by an ulp; its gradient is z's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, code: Tensor) -> Tensor:
        return code.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, dz_q: Tensor) -> tuple[Tensor, None]:
        return dz_q, None


def vector_quantize_reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    indices, _ = NEAREST_CODE(z.detach(), codebook.detach())
    code = codebook.detach()[indices]  # [N, D]
    z_q = _StraightThrough.apply(z, code)  # type: ignore[no-untyped-call]
    commitment = (z.double() - code.double()).square().sum() / max(z.numel(), 1)
    return z_q, indices, commitment.float()
