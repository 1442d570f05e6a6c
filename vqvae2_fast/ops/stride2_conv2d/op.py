"""`stride2_conv2d`: a 4×4 convolution of stride 2 or its transpose, while it trains on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops._checks import not_float32
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import LIBRARY, register
from vqvae2_fast.ops.normed_conv2d.op import CHANNELS, LEAST_PRODUCTS
from vqvae2_fast.ops.stride2_conv2d.reference import stride2_conv2d_reference
from vqvae2_fast.ops.stride2_conv2d_backward.op import STRIDE2_CONV2D_BACKWARD

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STRIDE2_CONV2D", "stride2_conv2d"]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    height, width = x.shape[2:]
    if transposed:
        return new_channels_last(x, weight.shape[1], (2 * height, 2 * width))
    return new_channels_last(x, weight.shape[0], (height // 2, width // 2))


def _refusal(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> str | None:
    if other := not_float32(x=x, weight=weight, bias=bias):
        return other
    if weight.shape[0] % CHANNELS or weight.shape[1] % CHANNELS:
        return f"a weight {list(weight.shape)}, its channels not multiples of {CHANNELS}"
    if not transposed and (x.shape[2] % 2 or x.shape[3] % 2):
        return f"a map of {x.shape[2]}×{x.shape[3]}, not even"
    return None


STRIDE2_CONV2D = register(
    "stride2_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor",
    reference=stride2_conv2d_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.transposed = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = STRIDE2_CONV2D_BACKWARD(dy, *ctx.saved_tensors, ctx.transposed)
    return dx, dweight, dbias if ctx.has_bias else None, None


torch.library.register_autograd(
    "vqvae2_fast::stride2_conv2d", _backward, setup_context=_setup_context, lib=LIBRARY
)


def stride2_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False
) -> Tensor:
    """`F.conv2d(x, weight, bias, stride=2, padding=1)`, or `F.conv_transpose2d` likewise.

    Not public: the encoders and decoders call it.

    Args:
        x: `[B, C, 2H, 2W]`; transposed `[B, O, H, W]`.
        weight: `[O, C, 4, 4]`.
        bias: `[O]`, transposed `[C]`, or None.

    Returns:
        `[B, O, H, W]`; transposed `[B, C, 2H, 2W]`.

    Note:
        Where a gradient is wanted, large float32 calls on a CPU go through Winograd's tiles, as in
        `normed_conv2d`. Without gradients every position is summed by itself.
    """
    if _has_kernels(x, weight, bias, transposed):
        return STRIDE2_CONV2D(x, weight, bias, transposed)
    return stride2_conv2d_reference(x, weight, bias, transposed)


def _has_kernels(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> bool:
    if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return False
    if x.device.type != "cpu" or weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    outputs = weight.shape[1] if transposed else weight.shape[0] // 4
    if x.dim() != 4 or x.numel() * outputs < LEAST_PRODUCTS:
        return False
    return STRIDE2_CONV2D.owner(x, weight, bias, transposed).startswith("cpu:")
