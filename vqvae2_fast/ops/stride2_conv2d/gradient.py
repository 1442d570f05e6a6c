"""The gradients of `stride2_conv2d`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops.stride2_conv2d.reference import stride2_conv2d_backward_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["backward", "setup_context", "why_not"]

# Channels of a phase, which stands in a vector of its own.
_CHANNELS = 16


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> str | None:
    """Kernels take channels that fill whole vectors, and maps that can be halved evenly."""
    outputs, channels = weight.shape[:2]
    if min(outputs, channels) == 0 or outputs % _CHANNELS or channels % _CHANNELS:
        return BY_DESIGN
    if not transposed and (x.shape[2] % 2 or x.shape[3] % 2):
        return BY_DESIGN
    return other_dtype((torch.float32,), x=x, weight=weight, bias=bias)


def _why_not_backward(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> str | None:
    return why_not(x, weight, None, transposed) or other_dtype((torch.float32,), gradient=dy)


def _fake(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1])
    return dx, weight.new_empty(weight.shape), weight.new_empty(dy.shape[1])


# dy, of the size of the result, and the arguments of `stride2_conv2d` to dx, dweight and dbias.
STRIDE2_CONV2D_BACKWARD = register(
    "stride2_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight, bool transposed) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias)",
    reference=stride2_conv2d_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.transposed = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = STRIDE2_CONV2D_BACKWARD(dy, *ctx.saved_tensors, ctx.transposed)
    return dx, dweight, dbias if ctx.has_bias else None, None
