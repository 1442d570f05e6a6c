"""Reference of `code_cross_entropy`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["code_cross_entropy_reference"]


def code_cross_entropy_reference(
    features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = F.linear(features, weight, bias)  # [N, K]
    loss = F.cross_entropy(logits, codes)
    # d nats / d logits = softmax - one-hot
    dlogits = torch.softmax(logits, dim=1)
    dlogits.scatter_add_(1, codes[:, None], dlogits.new_tensor(-1.0).expand(len(codes), 1))
    dlogits /= len(codes)
    return loss, dlogits @ weight, dlogits.t() @ features, dlogits.sum(0)
