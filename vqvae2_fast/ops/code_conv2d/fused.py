"""`code_conv2d` as kernels, where Triton owns it: schemas and gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import LIBRARY, define_triton

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fused_code_conv2d", "refusal"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(codes: Tensor, table: Tensor, offsets: Sequence[int] = ()) -> str | None:
    """Why the kernels do not take these, or None."""
    if table.dtype not in _DTYPES:
        return f"{str(table.dtype).removeprefix('torch.')} table"
    if codes.numel() >= 1 << 31:
        return "2³¹ positions or more"
    return None


def _fake(codes: Tensor, table: Tensor, offsets: Sequence[int]) -> Tensor:
    return table.new_empty((*codes.shape, table.shape[2])).permute(0, 3, 1, 2)


def _fake_backward(
    dout: Tensor, codes: Tensor, num_embeddings: int, offsets: Sequence[int]
) -> Tensor:
    return dout.new_empty((len(offsets) // 2, num_embeddings, dout.shape[1]))


FUSED = define_triton(
    "code_conv2d",
    "code_conv2d_fused",
    "(Tensor codes, Tensor table, int[] offsets) -> Tensor",
    fake=_fake,
)
BACKWARD = define_triton(
    "code_conv2d",
    "code_conv2d_backward",
    "(Tensor dout, Tensor codes, int num_embeddings, int[] offsets) -> Tensor",
    fake=_fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, table, ctx.offsets = inputs
    ctx.num_embeddings = table.shape[1]
    ctx.save_for_backward(codes)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    (codes,) = ctx.saved_tensors
    return None, BACKWARD(dout, codes, ctx.num_embeddings, ctx.offsets), None


torch.library.register_autograd(
    "vqvae2_fast::code_conv2d_fused", _backward, setup_context=_setup_context, lib=LIBRARY
)


def fused_code_conv2d(codes: Tensor, table: Tensor, offsets: Sequence[int]) -> Tensor:
    return FUSED(codes, table, offsets)
