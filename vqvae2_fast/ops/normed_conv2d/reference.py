"""Reference of `normed_conv2d`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normed_conv2d_reference", "normed_weight"]


def normed_weight(weight_v: Tensor, weight_g: Tensor | None) -> Tensor:
    """`g · v / ‖v‖`, the norm over all dimensions but the first; v where g is None."""
    if weight_g is None:
        return weight_v
    norm = torch.linalg.vector_norm(weight_v, dim=(1, 2, 3), keepdim=True)  # [C_out, 1, 1, 1]
    return weight_v * (weight_g / norm)


def normed_conv2d_reference(
    x: Tensor, weight_v: Tensor, weight_g: Tensor | None, bias: Tensor | None,
    top: int, left: int, live: int,
) -> Tensor:  # fmt: skip
    height, width = weight_v.shape[2:]
    is_live = torch.ones(height, width, dtype=torch.bool, device=x.device)
    is_live[-1, live:] = False
    weight = normed_weight(weight_v.where(is_live, 0.0), weight_g)
    padded = F.pad(x, (left, width - 1 - left, top, height - 1 - top))
    return F.conv2d(padded, weight, bias)
