"""Reference of `normed_conv2d`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops.dropout_mask.reference import dropout_mask_reference

__all__ = ["activation", "normed_conv2d_reference", "normed_weight"]


def normed_weight(weight_v: Tensor, weight_g: Tensor | None) -> Tensor:
    """`g · v / ‖v‖`, the norm over all dimensions but the first; v where g is None."""
    if weight_g is None:
        return weight_v
    norm = torch.linalg.vector_norm(weight_v, dim=(1, 2, 3), keepdim=True)  # [C_out, 1, 1, 1]
    return weight_v * (weight_g / norm)


def activation(x: Tensor, elu: bool, dropout_p: float, seed: Tensor | None) -> Tensor:
    """ELU of x `[B, C, H, W]` if wanted, then dropout by the mask of `seed`."""
    if elu:
        x = F.elu(x)
    if dropout_p == 0 or seed is None:
        return x
    batch, channels, height, width = x.shape
    keep = dropout_mask_reference(seed, batch, height * width, channels, dropout_p)
    keep = keep.view(batch, height, width, channels).permute(0, 3, 1, 2)  # [B, C, H, W]
    return x * keep / (1 - dropout_p)


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
) -> Tensor:
    height, width = weight_v.shape[2:]
    is_live = torch.ones(height, width, dtype=torch.bool, device=x.device)
    is_live[-1, live:] = False
    weight = normed_weight(weight_v.where(is_live, 0.0), weight_g)
    x = activation(x, elu, dropout_p, seed)
    padded = F.pad(x, (left, width - 1 - left, top, height - 1 - top))
    return F.conv2d(padded, weight, bias)
