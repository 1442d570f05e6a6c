"""`stride2_conv2d`: a 4×4 convolution of stride 2 or its transpose, with kernels for training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops import _training
from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._training import new_channels_last
from vqvae2_fast.ops.normed_conv2d.op import LEAST_PRODUCTS
from vqvae2_fast.ops.patch_conv2d.op import PATCH_CONV2D

__all__ = [
    "STRIDE2_CONV2D",
    "stride2_conv2d",
    "stride2_conv2d_backward_reference",
    "stride2_conv2d_reference",
]


def stride2_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x, weight, bias, stride=2, padding=1)


def stride2_conv2d_backward_reference(
    dy: Tensor, x: Tensor, weight: Tensor, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # A transposed convolution is the gradient of the direct one with respect to its input.
    small, large = (x, dy) if transposed else (dy, x)
    dweight = conv2d_weight(large, weight.shape, small, stride=2, padding=1)
    if transposed:
        dx = F.conv2d(dy, weight, stride=2, padding=1)
    else:
        dx = conv2d_input(x.shape, weight, dy, stride=2, padding=1)
    return dx, dweight, dy.sum((0, 2, 3))


# Channels of a phase, which stands in a vector of its own.
_CHANNELS = 16


def _why_not_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> str | None:
    """Kernels take channels that fill whole vectors, and maps that can be halved evenly."""
    outputs, channels = weight.shape[:2]
    if min(outputs, channels) == 0 or outputs % _CHANNELS or channels % _CHANNELS:
        return BY_DESIGN
    if not transposed and (x.shape[2] % 2 or x.shape[3] % 2):
        return BY_DESIGN
    return other_dtype((torch.float32,), x=x, weight=weight, bias=bias)


def _why_not_backward(dy: Tensor, x: Tensor, weight: Tensor, transposed: bool) -> str | None:
    return _why_not_kernel(x, weight, None, transposed) or other_dtype(
        (torch.float32,), gradient=dy
    )


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1])
    return dx, weight.new_empty(weight.shape), weight.new_empty(dy.shape[1])


# dy, of the size of the result, and the arguments of `stride2_conv2d` to dx, dweight and dbias.
STRIDE2_CONV2D_BACKWARD = register(
    "stride2_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight, bool transposed) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias)",
    reference=stride2_conv2d_backward_reference,
    fake=_backward_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.transposed = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = STRIDE2_CONV2D_BACKWARD(dy, *ctx.saved_tensors, ctx.transposed)
    return dx, dweight, dbias if ctx.has_bias else None, None


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    height, width = x.shape[2:]
    if transposed:
        return new_channels_last(x, weight.shape[1], (2 * height, 2 * width))
    return new_channels_last(x, weight.shape[0], (height // 2, width // 2))


def _why_not(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> str | None:
    products = x.numel() * (weight.shape[1] if transposed else weight.shape[0] // 4)
    trains = _training.is_training_call(x, weight, bias, products=products, least=LEAST_PRODUCTS)
    if x.dim() != 4 or not trains:
        return BY_DESIGN
    return _why_not_kernel(x, weight, bias, transposed)


STRIDE2_CONV2D = register(
    "stride2_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor",
    reference=stride2_conv2d_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not,
    gradient=(_setup_context, _backward),
    private=True,
)


def stride2_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False
) -> Tensor:
    """`F.conv2d(x, weight, bias, stride=2, padding=1)`, or `F.conv_transpose2d` in the same way.

    Private: the encoders and decoders call it.

    Args:
        x: `[B, C, 2H, 2W]`; transposed `[B, O, H, W]`.
        weight: `[O, C, 4, 4]`.
        bias: `[O]`, transposed `[C]`, or None.

    Returns:
        `[B, O, H, W]`; transposed `[B, C, 2H, 2W]`.

    Note:
        Where a gradient is wanted, large float32 calls on a CPU use Winograd's tiles, as in
        `normed_conv2d`, and others `patch_conv2d`. Without gradients every position is summed
        separately.
    """
    if not STRIDE2_CONV2D.takes(x, weight, bias, transposed):
        options = (2, 1, 1, 4, transposed)  # stride, top, left, live
        if PATCH_CONV2D.takes(x, weight, bias, *options):
            return PATCH_CONV2D.kernel(x, weight, bias, *options)
    return STRIDE2_CONV2D(x, weight, bias, transposed)
