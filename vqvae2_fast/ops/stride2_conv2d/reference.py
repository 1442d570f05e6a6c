"""References of `stride2_conv2d` and of its gradients."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

__all__ = ["stride2_conv2d_backward_reference", "stride2_conv2d_reference"]


def stride2_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x, weight, bias, stride=2, padding=1)


def stride2_conv2d_backward_reference(
    dy: Tensor, x: Tensor, weight: Tensor, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # A transposed convolution is the gradient of the direct one with respect to its input.
    small, large = (x, dy) if transposed else (dy, x)
    dweight = conv2d_weight(large, weight.shape, small, stride=2, padding=1)
    if transposed:
        dx = F.conv2d(dy, weight, stride=2, padding=1)
    else:
        dx = conv2d_input(x.shape, weight, dy, stride=2, padding=1)
    return dx, dweight, dy.sum((0, 2, 3))
