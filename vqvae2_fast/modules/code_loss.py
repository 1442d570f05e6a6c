"""Cross-entropy of codes straight from features: the logits of all positions never stand in memory.

Sizes: N positions, C channels, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["code_cross_entropy"]

# Logits that stand at a time, so that they stay in the second-level cache.
_CHUNK = 1 << 18


class _CodeCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, chunk by chunk, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
        num_positions, num_codes = len(features), len(weight)
        rows = max(1, _CHUNK // num_codes)
        dfeatures = torch.empty_like(features)
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(bias)
        total = 0.0
        for first in range(0, num_positions, rows):
            part, target = features[first : first + rows], codes[first : first + rows, None]
            logits = torch.addmm(bias, part, weight.t())  # [rows, K]
            log_sum = logits.logsumexp(1, keepdim=True)  # [rows, 1]
            total += float((log_sum - logits.gather(1, target)).sum(dtype=torch.float64))
            # d nats / d logits = softmax - one-hot, in place of the logits
            logits.sub_(log_sum).exp_()
            logits.scatter_add_(1, target, logits.new_full((1, 1), -1.0).expand(len(target), 1))
            torch.mm(logits, weight, out=dfeatures[first : first + rows])
            dweight.addmm_(logits.t(), part)
            dbias.add_(logits.sum(0))
        for gradient in (dfeatures, dweight, dbias):
            gradient.div_(num_positions)
        ctx.save_for_backward(dfeatures, dweight, dbias)
        return features.new_tensor(total / num_positions)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dfeatures, dweight, dbias = ctx.saved_tensors
        return dfeatures * dloss, dweight * dloss, dbias * dloss, None


def code_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
    """Mean negative log-likelihood of the codes under logits `features weightᵀ + bias`.

    While training in float32 on a CPU the gradients are taken on the way, and neither logits nor
    their gradient are kept: 2·N·K floats less. Elsewhere it is `F.cross_entropy`.

    Args:
        features: `[N, C]`.
        weight: `[K, C]`.
        bias: `[K]`.
        codes: int64 `[N]`, each in 0..K-1 (checked by the caller).

    Returns:
        0-d, float32, nats per code.
    """
    if _in_chunks(features, weight):
        return _CodeCrossEntropy.apply(features, weight, bias, codes)  # type: ignore[no-any-return]
    return F.cross_entropy(F.linear(features, weight, bias).float(), codes)


def _in_chunks(features: Tensor, weight: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and features.device.type == "cpu"
        and features.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and len(features) > 0
    )
