"""`causal_conv2d` as kernels over the live taps: the opaque operator and its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.ops._checks import KERNEL_DTYPES, beyond_int32, other_dtype
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.causal_conv2d.reference import (
    causal_conv2d_input_gradient_reference,
    causal_conv2d_reference,
    causal_conv2d_weight_gradient_reference,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CAUSAL_CONV2D_FUSED", "why_not"]


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any) -> str | None:
    if other := other_dtype(KERNEL_DTYPES, input=x):
        return other
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return "inputs of several dtypes"
    return beyond_int32(x.shape[0] * x.shape[2] * x.shape[3], "positions")


INPUT_GRADIENT = register(
    "causal_conv2d_input_gradient",
    "(Tensor dout, Tensor weight, str mask) -> Tensor",
    reference=causal_conv2d_input_gradient_reference,
    fake=lambda dout, weight, mask: new_channels_last(dout, weight.shape[1]),
    owners={"cuda": "triton"},
    why_not=lambda dout, weight, mask: why_not(dout, weight),
    is_gradient=True,
)
WEIGHT_GRADIENT = register(
    "causal_conv2d_weight_gradient",
    "(Tensor dout, Tensor x, int height, int width, str mask) -> Tensor",
    reference=causal_conv2d_weight_gradient_reference,
    fake=lambda dout, x, height, width, mask: x.new_empty(
        (dout.shape[1], x.shape[1], height, width)
    ),
    owners={"cuda": "triton"},
    why_not=lambda dout, x, height, width, mask: why_not(dout, x),
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.mask = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    dx = INPUT_GRADIENT(dout, weight, ctx.mask) if needs_x else None
    dweight = WEIGHT_GRADIENT(dout, x, *weight.shape[2:], ctx.mask) if needs_weight else None
    return dx, dweight, dout.sum((0, 2, 3)) if needs_bias else None, None


CAUSAL_CONV2D_FUSED = register(
    "causal_conv2d_fused",
    "(Tensor x, Tensor weight, Tensor? bias, str mask) -> Tensor",
    reference=causal_conv2d_reference,
    fake=lambda x, weight, bias, mask: new_channels_last(x, weight.shape[0]),
    owners={"cuda": "triton"},
    why_not=why_not,
    gradient=(_setup_context, _backward),
    private=True,
)
