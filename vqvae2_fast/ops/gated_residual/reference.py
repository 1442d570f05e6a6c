"""References of `gated_residual` and of its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gated_residual_backward_reference", "gated_residual_reference"]


def gated_residual_reference(h: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    if condition is not None:
        h = h + condition
    return F.glu(h, dim=1) + x


def gated_residual_backward_reference(dout: Tensor, h: Tensor, condition: Tensor | None) -> Tensor:
    if condition is not None:
        h = h + condition
    a, b = h.chunk(2, dim=1)
    gate = b.sigmoid()
    return torch.cat([dout * gate, dout * a * gate * (1 - gate)], dim=1)
