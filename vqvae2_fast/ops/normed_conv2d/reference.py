"""References of `normed_conv2d` and of its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops.causal_conv2d.reference import live_weight
from vqvae2_fast.ops.dropout_mask.reference import dropout_mask_reference

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "factor",
    "kept",
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
