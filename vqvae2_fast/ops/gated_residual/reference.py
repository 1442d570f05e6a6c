"""Reference of `gated_residual`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["gated_residual_reference"]


def gated_residual_reference(h: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
    if condition is not None:
        h = h + condition
    return F.glu(h, dim=1) + x
