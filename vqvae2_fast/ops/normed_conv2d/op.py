"""`normed_conv2d`: a weight-normalised convolution, masked or not, with kernels for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops import _native, _training
from vqvae2_fast.ops._batch_part import dropout_seed
from vqvae2_fast.ops._checks import other_dtype
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._training import new_channels_last
from vqvae2_fast.ops.causal_conv2d.op import causal_conv2d, live_weight, placement
from vqvae2_fast.ops.dropout_mask.op import DROPOUT_MASK, dropout_mask_reference
from vqvae2_fast.ops.patch_conv2d.op import PATCH_CONV2D

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LEAST_PRODUCTS",
    "NORMED_CONV2D",
    "factor",
    "kept",
    "normed_conv2d",
    "normed_conv2d_backward_reference",
    "normed_conv2d_reference",
    "normed_weight",
]


def normed_weight(weight_v: Tensor, weight_g: Tensor | None) -> Tensor:
    """`g · v / ‖v‖`, the norm over all dimensions but the first; v where g is None."""
    if weight_g is None:
        return weight_v
    norm = torch.linalg.vector_norm(weight_v, dim=(1, 2, 3), keepdim=True)  # [C_out, 1, 1, 1]
    return weight_v * (weight_g / norm)


def kept(mask: Callable[..., Tensor], x: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """What the dropout multiplies x `[B, C, H, W]` with, from `dropout_mask` or its reference."""
    batch, channels, height, width = x.shape
    keep = mask(seed, batch, height * width, channels, dropout_p)
    keep = keep.view(batch, height, width, channels).permute(0, 3, 1, 2)  # [B, C, H, W]
    return keep.to(x.dtype) / (1 - dropout_p)


def _kept(x: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor | float:
    if dropout_p == 0 or seed is None:
        return 1.0
    return kept(dropout_mask_reference, x, dropout_p, seed)


def factor(values: Tensor, rounded: bool) -> Tensor:
    """What a product multiplies: the values, rounded to bfloat16 or as they are."""
    return values.bfloat16().to(values.dtype) if rounded else values


def normed_conv2d_reference(
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
    rounded: bool = False,
) -> Tensor:
    height, width = weight_v.shape[2:]
    x = factor((F.elu(x) if elu else x) * _kept(x, dropout_p, seed), rounded)
    padded = F.pad(x, (left, width - 1 - left, top, height - 1 - top))
    weight = factor(normed_weight(live_weight(weight_v, live), weight_g), rounded)
    return F.conv2d(padded, weight, bias)


def normed_conv2d_backward_reference(
    dy: Tensor,
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None,
    top: int,
    left: int,
    live: int,
    elu: bool,
    dropout_p: float,
    seed: Tensor | None,
    rounded: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height, width = weight_v.shape[2:]
    v = live_weight(weight_v, live)
    padding = (left, width - 1 - left, top, height - 1 - top)
    kept = _kept(x, dropout_p, seed)
    weight = factor(normed_weight(v, weight_g), rounded)
    padded = F.pad(factor((F.elu(x) if elu else x) * kept, rounded), padding)
    above = factor(dy, rounded)
    dx = F.pad(conv2d_input(padded.shape, weight, above), [-size for size in padding]) * kept
    if elu:
        dx = dx * x.clamp(max=0).exp()  # ELU'(x) is exp(x) below 0 and 1 above
    dweight = live_weight(conv2d_weight(padded, weight.shape, above), live)
    dbias = dy.sum((0, 2, 3))
    if weight_g is None:
        return dx, dweight, x.new_empty(0), dbias
    norm = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)  # [C_out, 1, 1, 1]
    dg = (dweight * v).sum((1, 2, 3), keepdim=True) / norm
    dv = weight_g / norm * (dweight - v * (dg / norm))
    return dx, dv, dg.flatten(), dbias


# The tiles' vectors lie across channels, and half a vector is the least that pays.
_CHANNELS = 8


def _why_not_kernel(
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
    reason = _why_not_kernel(x, weight_v, weight_g, None, *rest)
    return reason or other_dtype((torch.float32,), gradient=dy)


def _backward_fake(
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
    fake=_backward_fake,
    owners={"cpu": "cpu"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight_v, weight_g, bias, *ctx.options, seed, ctx.rounded = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight_v, weight_g, seed)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_v, weight_g, seed = ctx.saved_tensors
    dx, dv, dg, dbias = NORMED_CONV2D_BACKWARD(
        dy, x, weight_v, weight_g, *ctx.options, seed, ctx.rounded
    )
    dg = None if weight_g is None else dg.view(weight_g.shape)
    return dx, dv, dg, dbias if ctx.has_bias else None, *(None,) * 7


# Products of a call, B·H·W · C_in · C_out, from which on tiles were measured to be faster than
# `patch_conv2d`, and the pointwise kernel than torch's convolution. `patch_conv2d` has the rest.
LEAST_PRODUCTS = 1 << 20
LEAST_POINTWISE_PRODUCTS = 1 << 16


def _why_not(
    x: Tensor,
    weight_v: Tensor,
    weight_g: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
) -> str | None:
    is_pointwise = weight_v.shape[2:] == (1, 1)
    least = LEAST_POINTWISE_PRODUCTS if is_pointwise else LEAST_PRODUCTS
    products = x.numel() * weight_v.shape[0]
    floats = (x, weight_v, weight_g, bias)
    trains = _training.is_training_call(*floats, products=products, least=least)
    return _why_not_kernel(*floats, *rest) if x.dim() == 4 and trains else BY_DESIGN


def rounds(weight_v: Tensor) -> bool:
    """Whether tiles multiply rounded factors: see the README for the sizes where that is faster."""
    return weight_v.shape[-1] == 3 and _training.rounds_convolutions()


NORMED_CONV2D = register(
    "normed_conv2d",
    "(Tensor x, Tensor weight_v, Tensor? weight_g, Tensor? bias, int top, int left, int live, "
    "bool elu, float dropout_p, Tensor? seed, bool rounded=False) -> Tensor",
    reference=normed_conv2d_reference,
    fake=lambda x, weight_v, *_: new_channels_last(x, weight_v.shape[0]),
    owners={"cpu": "cpu"},
    why_not=_why_not,
    gradient=(_setup_context, _backward),
    private=True,
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

    The norm goes over the live taps of an output channel. Private: the layers call it.

    Args:
        x: `[B, C_in, H, W]`.
        weight_v: `[C_out, C_in, kh, kw]`; dead taps are ignored and get zero gradient.
        weight_g: `[C_out, 1, 1, 1]`, or None for the weight v itself.
        bias: `[C_out]` or None.
        mask: As in `causal_conv2d`, or `same`: all around, for an odd kernel.
        live: Bool `[kh, kw]`, the mask's live taps; None if v is zero on the dead taps, or no tap
            is dead.
        elu: Convolve ELU(x).
        dropout_p: Probability of dropping a value before the convolution, by `dropout_mask` of
            (image, position, channel) with a seed from torch's generator.

    Returns:
        `[B, C_out, H, W]`.

    Note:
        Where a gradient is wanted, large float32 calls on a CPU use Winograd's tiles, and others
        `patch_conv2d`. The sums of tiles have another order, and the sum of a position may include
        later positions whose terms cancel up to rounding. Otherwise every position is summed
        separately.
    """
    # Drawn on x's device: the CPU kernel reads it from memory.
    seed = dropout_seed(x.device) if dropout_p > 0 else None
    where = placement(mask, *weight_v.shape[2:])
    if NORMED_CONV2D.takes(x, weight_v, weight_g, bias, *where):
        options = (elu, dropout_p, seed, rounds(weight_v))
        return NORMED_CONV2D.kernel(x, weight_v, weight_g, bias, *where, *options)
    x = _training.elu(x) if elu else x
    if seed is not None:
        x = x * kept(DROPOUT_MASK, x, dropout_p, seed)
    weight = normed_weight(weight_v if live is None else weight_v.where(live, 0.0), weight_g)
    if PATCH_CONV2D.takes(x, weight, bias, 1, *where, False):
        return PATCH_CONV2D.kernel(x, weight, bias, 1, *where, False)
    if mask == "same":
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    return causal_conv2d(x, weight, bias, mask)
