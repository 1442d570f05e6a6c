"""Reference of `normed_conv2d_backward`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops.normed_conv2d.reference import activation

__all__ = ["normed_conv2d_backward_reference"]


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height, width = weight_v.shape[2:]
    is_live = torch.ones(height, width, dtype=torch.bool, device=x.device)
    is_live[-1, live:] = False
    v, scale = weight_v.where(is_live, 0.0), None
    if weight_g is not None:
        norm = torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)  # [C_out, 1, 1, 1]
        scale = weight_g / norm
    weight = v if scale is None else v * scale
    padding = (left, width - 1 - left, top, height - 1 - top)
    with torch.enable_grad():
        before = x.detach().requires_grad_()
        after = activation(before, elu, dropout_p, seed)
    padded = F.pad(after.detach(), padding)
    dpadded = conv2d_input(padded.shape, weight, dy)
    dx = F.pad(dpadded, [-size for size in padding])
    if after is not before:
        (dx,) = torch.autograd.grad(after, before, dx)
    dweight = conv2d_weight(padded, weight.shape, dy).where(is_live, 0.0)
    dbias = dy.sum((0, 2, 3))
    if scale is None:
        return dx, dweight, x.new_empty(0), dbias
    dg = (dweight * v).sum((1, 2, 3), keepdim=True) / norm
    dv = scale * (dweight - v * (dg / norm))
    return dx, dv, dg.flatten(), dbias
