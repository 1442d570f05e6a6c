"""Cross-entropy of codes straight from features: the logits of all positions never stand in memory.

Sizes: N positions, C channels, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops.code_cross_entropy.op import CODE_CROSS_ENTROPY

__all__ = ["code_cross_entropy"]


def code_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
    """Mean negative log-likelihood of the codes under logits `features weightᵀ + bias`.

    While training in float32 on a CPU a kernel takes the gradients on the way, and neither logits
    nor their gradient are kept: 2·N·K floats less. Elsewhere it is `F.cross_entropy`.

    Args:
        features: `[N, C]`.
        weight: `[K, C]`.
        bias: `[K]`.
        codes: int64 `[N]`, each in 0..K-1 (checked by the caller).

    Returns:
        0-d, float32, nats per code.
    """
    if _has_kernel(features, weight, bias, codes):
        loss: Tensor = CODE_CROSS_ENTROPY(features, weight, bias, codes)[0]
        return loss
    return F.cross_entropy(F.linear(features, weight, bias).float(), codes)


def _has_kernel(features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and features.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and CODE_CROSS_ENTROPY.owner(features, weight, bias, codes).startswith("cpu:")
    )
