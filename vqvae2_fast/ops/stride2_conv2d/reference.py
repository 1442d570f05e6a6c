"""Reference of `stride2_conv2d`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["stride2_conv2d_reference"]


def stride2_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x, weight, bias, stride=2, padding=1)
