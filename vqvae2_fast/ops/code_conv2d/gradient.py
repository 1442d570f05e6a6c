"""`code_conv2d` as kernels: the opaque operator and its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.ops._checks import KERNEL_DTYPES, beyond_int32, other_dtype
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.code_conv2d.reference import (
    code_conv2d_backward_reference,
    code_conv2d_reference,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODE_CONV2D_FUSED", "why_not"]


def why_not(codes: Tensor, table: Tensor, *_: Any) -> str | None:
    return beyond_int32(codes.numel(), "positions") or other_dtype(KERNEL_DTYPES, table=table)


CODE_CONV2D_BACKWARD = register(
    "code_conv2d_backward",
    "(Tensor dout, Tensor codes, int num_embeddings, int[] offsets) -> Tensor",
    reference=code_conv2d_backward_reference,
    fake=lambda dout, codes, num_embeddings, offsets: dout.new_empty(
        (len(offsets) // 2, num_embeddings, dout.shape[1])
    ),
    owners={"cuda": "triton"},
    why_not=lambda dout, codes, *_: why_not(codes, dout),
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, table, ctx.offsets = inputs
    ctx.num_embeddings = table.shape[1]
    ctx.save_for_backward(codes)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    (codes,) = ctx.saved_tensors
    return None, CODE_CONV2D_BACKWARD(dout, codes, ctx.num_embeddings, ctx.offsets), None


CODE_CONV2D_FUSED = register(
    "code_conv2d_fused",
    "(Tensor codes, Tensor table, int[] offsets) -> Tensor",
    reference=code_conv2d_reference,
    fake=lambda codes, table, offsets: table.new_empty((*codes.shape, table.shape[2])).permute(
        0, 3, 1, 2
    ),
    owners={"cuda": "triton"},
    why_not=why_not,
    gradient=(_setup_context, _backward),
    private=True,
)
