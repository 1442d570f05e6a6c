"""References of `vector_quantize`, from `nearest_code` and a gather, and of its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops.nearest_code.op import NEAREST_CODE

__all__ = [
    "straight_through",
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
