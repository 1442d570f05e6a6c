"""References of `patch_conv2d` and of its gradients."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from vqvae2_fast.ops.causal_conv2d.reference import live_weight

__all__ = ["patch_conv2d_backward_reference", "patch_conv2d_reference"]


def _padding(kernel: int, stride: int, top: int, left: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom, so that the large map is `stride` times as large as the small
    one. A negative size cuts."""
    both = kernel - stride
    return left, both - left, top, both - top


def patch_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
) -> Tensor:
    weight = live_weight(weight, live)
    padding = _padding(weight.shape[-1], stride, top, left)
    if not transposed:
        return F.conv2d(F.pad(x, padding), weight, bias, stride)
    y = F.pad(F.conv_transpose2d(x, weight, None, stride), [-size for size in padding])
    return y if bias is None else y + bias[:, None, None]


def patch_conv2d_backward_reference(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    top: int,
    left: int,
    live: int,
    transposed: bool,
    with_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # A transposed convolution is the gradient of the direct one with respect to its input.
    weight = live_weight(weight, live)
    small, large = (x, dy) if transposed else (dy, x)
    padding = _padding(weight.shape[-1], stride, top, left)
    padded = F.pad(large, padding)
    dweight = live_weight(conv2d_weight(padded, weight.shape, small, stride), live)
    if not with_dx:
        dx = x.new_empty(0)
    elif transposed:
        dx = F.conv2d(padded, weight, stride=stride)
    else:
        dx = F.pad(conv2d_input(padded.shape, weight, dy, stride), [-size for size in padding])
    return dx, dweight, dy.sum((0, 2, 3))
