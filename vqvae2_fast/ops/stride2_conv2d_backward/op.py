"""`stride2_conv2d_backward`: the gradients of `stride2_conv2d`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.stride2_conv2d_backward.reference import stride2_conv2d_backward_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STRIDE2_CONV2D_BACKWARD"]


def _fake(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1])
    return dx, weight.new_empty(weight.shape), weight.new_empty(dy.shape[1])


def _refusal(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> str | None:
    if dy.dtype != torch.float32:
        return f"{str(dy.dtype).removeprefix('torch.')} gradient"
    from vqvae2_fast.ops.stride2_conv2d.op import STRIDE2_CONV2D

    return STRIDE2_CONV2D.refusal(x, weight, None, transposed)


# Not public: `stride2_conv2d` calls it. dy, of the size of its result, and its arguments to dx,
# dweight and dbias.
STRIDE2_CONV2D_BACKWARD = register(
    "stride2_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight, bool transposed) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias)",
    reference=stride2_conv2d_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)
