"""`normed_conv2d`: a weight-normalised convolution, masked or not, that keeps neither weight nor
padded input for its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vqvae2_fast.ops._checks import not_float32
from vqvae2_fast.ops._maps import new_channels_last
from vqvae2_fast.ops._registry import LIBRARY, register
from vqvae2_fast.ops.causal_conv2d.op import causal_conv2d, placement
from vqvae2_fast.ops.normed_conv2d.reference import normed_conv2d_reference, normed_weight
from vqvae2_fast.ops.normed_conv2d_backward.op import NORMED_CONV2D_BACKWARD

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NORMED_CONV2D", "normed_conv2d"]

# The tiles' vectors lie across channels.
CHANNELS = 16
# Products of a call, B·H·W · C_in · C_out, below which direct sums beat tiles, and a convolution
# of torch a pointwise layer: see the README.
LEAST_PRODUCTS = 1 << 22
LEAST_POINTWISE_PRODUCTS = 1 << 16
# Seeds of the dropout are drawn below this; any int64 would do.
_SEED_END = 2**62


def _fake(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    bias: Tensor | None,
    top: int,
    left: int,
    live: int,
    elu: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    return new_channels_last(x, weight_v.shape[0])


def _refusal(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None = None,
    bias: Tensor | None = None,
    top: int = 0,
    left: int = 0,
    live: int = 0,
    elu: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> str | None:
    outputs, inputs, height, width = weight_v.shape
    if other := not_float32(x=x, weight=weight_v, g=weight_g, bias=bias):
        return other
    if height != width or height not in (1, 3, 5):
        return f"a kernel of {height}×{width}"
    if height > 1 and (outputs % CHANNELS or inputs % CHANNELS):
        return f"channels {inputs} and {outputs}, not multiples of {CHANNELS}"
    return None


NORMED_CONV2D = register(
    "normed_conv2d",
    "(Tensor x, Tensor weight_v, Tensor? weight_g, Tensor? bias, int top, int left, int live, "
    "bool elu, float dropout_p, Tensor? seed) -> Tensor",
    reference=normed_conv2d_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight_v, weight_g, bias, *ctx.options, seed = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight_v, weight_g, seed)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_v, weight_g, seed = ctx.saved_tensors
    dx, dv, dg, dbias = NORMED_CONV2D_BACKWARD(dy, x, weight_v, weight_g, *ctx.options, seed)
    dg = None if weight_g is None else dg.view(weight_g.shape)
    return dx, dv, dg, dbias if ctx.has_bias else None, *(None,) * 6


torch.library.register_autograd(
    "vqvae2_fast::normed_conv2d", _backward, setup_context=_setup_context, lib=LIBRARY
)


def normed_conv2d(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    bias: Tensor | None,
    mask: str,
    live: Tensor | None = None,
    *,
    elu: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Convolution with the weight `g · v / ‖v‖` (eq. 2 of https://arxiv.org/abs/1602.07868).

    The norm goes over the live taps of an output channel. Not public: the layers of the priors
    call it.

    Args:
        x: `[B, C_in, H, W]`.
        weight_v: `[C_out, C_in, kh, kw]`; dead taps are ignored and get zero gradient.
        weight_g: `[C_out, 1, 1, 1]`, or None for the weight v itself.
        bias: `[C_out]` or None.
        mask: As in `causal_conv2d`, or `same`: all around, for an odd kernel.
        live: Bool `[kh, kw]`, the mask's live taps; None where v is zero on the dead ones, or none
            is.
        elu: Convolve ELU(x).
        dropout_p: Drop what is convolved, by torch's generator.

    Returns:
        `[B, C_out, H, W]`.

    Note:
        Where a gradient is wanted, large float32 calls on a CPU go through Winograd's tiles: sums
        in another order, of which a position's may touch later ones whose parts cancel up to
        rounding. Without gradients every position is summed by itself.
    """
    if _has_kernels(x, weight_v, weight_g, bias):
        # The seed comes from torch's generator, so `torch.manual_seed` fixes the dropout.
        seed = torch.randint(_SEED_END, ()) if dropout_p > 0 else None
        where = placement(mask, *weight_v.shape[2:])
        return NORMED_CONV2D(x, weight_v, weight_g, bias, *where, elu, dropout_p, seed)
    x = F.dropout(F.elu(x) if elu else x, dropout_p)
    weight = normed_weight(weight_v if live is None else weight_v.where(live, 0.0), weight_g)
    if mask == "same":
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    return causal_conv2d(x, weight, bias, mask)


def _has_kernels(x: Tensor, weight_v: Tensor, weight_g: Tensor | None, bias: Tensor | None) -> bool:
    if not (torch.is_grad_enabled() and (x.requires_grad or weight_v.requires_grad)):
        return False
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    is_pointwise = weight_v.shape[2:] == (1, 1)
    least = LEAST_POINTWISE_PRODUCTS if is_pointwise else LEAST_PRODUCTS
    if x.numel() * weight_v.shape[0] < least or weight_v.device.type != "cpu":
        return False
    return NORMED_CONV2D.owner(x, weight_v, weight_g, bias).startswith("cpu:")
