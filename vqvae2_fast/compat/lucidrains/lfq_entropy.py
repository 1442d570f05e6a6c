"""Entropies of the package's `LFQ`, with logarithms of at least 1e-5, without an N×K matrix.

A distribution over the K codes is the product of one table of the upper and one of the lower bits
(see `vqvae2_fast.modules.binary_entropy`); it is formed for a few vectors at a time.

Sizes: N vectors, H and L combinations of upper and lower bits, K = H·L codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["clamped_entropy"]

# Numbers of a part: 1 MiB, half of a core's second cache.
_PART = 2**18


class _ClampedEntropy(torch.autograd.Function):
    """Σ over vectors and codes of −p·log max(p, least), with p = high·low; differentiable once."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, low: Tensor, least: float) -> Tensor:
        total = high.new_zeros(())
        wants = high.requires_grad or low.requires_grad
        dhigh, dlow = (torch.empty_like(table) if wants else table for table in (high, low))
        step = max(1, _PART // (high.shape[1] * low.shape[1]))
        for start in range(0, len(high), step):
            part = slice(start, start + step)
            upper, lower = high[part], low[part]
            p = upper[:, :, None] * lower[:, None, :]  # [n, H, L]
            logs = p.clamp(min=least).log_()
            total -= torch.dot(p.flatten(), logs.flatten())
            if wants:
                slope = logs.add_(p >= least).neg_()
                dhigh[part] = torch.bmm(slope, lower[:, :, None]).squeeze(2)
                dlow[part] = torch.bmm(upper[:, None, :], slope).squeeze(1)
        ctx.save_for_backward(dhigh, dlow)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, Tensor, None]:
        dhigh, dlow = ctx.saved_tensors
        return dtotal * dhigh, dtotal * dlow, None


def clamped_entropy(high: Tensor, low: Tensor, least: float = 1e-5) -> Tensor:
    """Mean over vectors of the entropy of high `[N, H]` × low `[N, L]`, in nats, 0-d; 0 of none."""
    total: Tensor = _ClampedEntropy.apply(high, low, least)  # type: ignore[no-untyped-call]
    return total / max(len(high), 1)
