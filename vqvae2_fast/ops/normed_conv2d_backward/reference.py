"""Reference of `normed_conv2d_backward`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

__all__ = ["normed_conv2d_backward_reference"]


def normed_conv2d_backward_reference(
    dy: Tensor, x: Tensor, weight_v: Tensor, weight_g: Tensor | None,
    top: int, left: int, live: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    height, width = weight_v.shape[2:]
    is_live = torch.ones(height, width, dtype=torch.bool, device=x.device)
    is_live[-1, live:] = False
    v, scale = weight_v.where(is_live, 0.0), None
    if weight_g is not None:
        norm = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)  # [C_out, 1, 1, 1]
        scale = weight_g / norm
    weight = v if scale is None else v * scale
    padding = (left, width - 1 - left, top, height - 1 - top)
    padded = F.pad(x, padding)
    dpadded = conv2d_input(padded.shape, weight, dy)
    dx = F.pad(dpadded, [-size for size in padding])
    dweight = conv2d_weight(padded, weight.shape, dy).where(is_live, 0.0)
    if scale is None:
        return dx, dweight, x.new_empty(0)
    dg = (dweight * v).sum((1, 2, 3), keepdim=True) / norm
    dv = scale * (dweight - v * (dg / norm))
    return dx, dv, dg.flatten()
