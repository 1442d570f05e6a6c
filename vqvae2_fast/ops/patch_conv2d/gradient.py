"""The gradients of `patch_conv2d`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops.patch_conv2d.reference import patch_conv2d_backward_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST_WEIGHTS", "backward", "setup_context", "why_not"]

# Values of a weight; with more, torch's convolution was faster: see the README.
MOST_WEIGHTS = 1 << 18


def why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
) -> str | None:
    """The kernels take square weights that are not too large, and maps whose sides are multiples
    of the stride."""
    outputs, channels, height, width = weight.shape
    if (
        height != width
        or weight.numel() > MOST_WEIGHTS
        or 0 in (outputs, channels, height * (height - 1) + live, x.numel())
    ):
        return BY_DESIGN
    if not transposed and (x.shape[2] % stride or x.shape[3] % stride):
        return BY_DESIGN
    return other_dtype((torch.float32,), x=x, weight=weight, bias=bias)


def _why_not_backward(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> str | None:
    reason = why_not(x, weight, None, *options[:-1])
    return reason or other_dtype((torch.float32,), gradient=dy)


def _fake(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1]) if options[-1] else x.new_empty(0)
    return dx, weight.new_empty(weight.shape), weight.new_empty(dy.shape[1])


# dy, of the size of the result, and the arguments of `patch_conv2d` to dx, dweight and dbias.
# Without `with_dx`, as for an image, dx is empty.
PATCH_CONV2D_BACKWARD = register(
    "patch_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight, int stride, int top, int left, int live, "
    "bool transposed, bool with_dx) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=patch_conv2d_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    with_dx = ctx.needs_input_grad[0]
    dx, dweight, dbias = PATCH_CONV2D_BACKWARD(dy, *ctx.saved_tensors, *ctx.options, with_dx)
    return dx if with_dx else None, dweight, dbias if ctx.has_bias else None, *(None,) * 5
