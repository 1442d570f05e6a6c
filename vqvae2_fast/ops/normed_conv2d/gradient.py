"""The gradients of `normed_conv2d`, for which it stores neither weight nor padded input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops.normed_conv2d.reference import normed_conv2d_backward_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["backward", "setup_context", "why_not"]

# The tiles' vectors lie across channels, and half a vector is the least that pays.
_CHANNELS = 8


def why_not(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    bias: Tensor | None = None,
    top: int = 0,
    left: int = 0,
    live: int = 1,
    elu: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    rounded: bool = False,
) -> str | None:
    """Kernels take sizes of 1×1, and of 3×3 and 5×5 if channels fill vectors or halves of them, as
    they need not for rounded factors."""
    outputs, inputs, height, width = weight_v.shape
    if height != width or height not in (1, 3, 5):
        return BY_DESIGN
    if height == 1 and (top, left, live) != (0, 0, 1):
        return BY_DESIGN  # such a kernel does not read the position itself
    if rounded and not _native.has_tiles():
        return BY_DESIGN
    fits_tiles = outputs % _CHANNELS == 0 and inputs % _CHANNELS == 0
    if height > 1 and (min(outputs, inputs) == 0 or not (fits_tiles or rounded)):
        return BY_DESIGN
    return other_dtype((torch.float32,), x=x, weight=weight_v, g=weight_g, bias=bias)


def _why_not_backward(
    dy: Tensor, x: Tensor, weight_v: Tensor, weight_g: Tensor | None, *rest: Any
) -> str | None:
    reason = why_not(x, weight_v, weight_g, None, *rest)
    return reason or other_dtype((torch.float32,), gradient=dy)


def _fake(
    dy: Tensor, x: Tensor, weight_v: Tensor, weight_g: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = new_channels_last(x, x.shape[1])
    outputs = weight_v.shape[0]
    dg = weight_v.new_empty(0 if weight_g is None else outputs)
    return dx, weight_v.new_empty(weight_v.shape), dg, weight_v.new_empty(outputs)


# dy `[B, C_out, H, W]` and the other arguments of `normed_conv2d` to dx, dv, dg `[C_out]`, which is
# empty without g, and dbias `[C_out]`.
NORMED_CONV2D_BACKWARD = register(
    "normed_conv2d_backward",
    "(Tensor dy, Tensor x, Tensor weight_v, Tensor? weight_g, int top, int left, int live, "
    "bool elu, float dropout_p, Tensor? seed, bool rounded=False) "
    "-> (Tensor dx, Tensor dv, Tensor dg, Tensor dbias)",
    reference=normed_conv2d_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight_v, weight_g, bias, *ctx.options, seed, ctx.rounded = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight_v, weight_g, seed)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_v, weight_g, seed = ctx.saved_tensors
    dx, dv, dg, dbias = NORMED_CONV2D_BACKWARD(
        dy, x, weight_v, weight_g, *ctx.options, seed, ctx.rounded
    )
    dg = None if weight_g is None else dg.view(weight_g.shape)
    return dx, dv, dg, dbias if ctx.has_bias else None, *(None,) * 7
