"""Entropies of the package's `LFQ`, with logarithms of at least 1e-5, without an N×K matrix.

A distribution over the K codes is the product of one table of the upper and one of the lower bits
(see `vqvae2_fast.modules.binary_entropy`); it is formed for a few vectors at a time. Only under a
transform of `torch.func` the N×K matrix is formed, because PyTorch then has to differentiate it.

Sizes: N vectors, H and L combinations of upper and lower bits, K = H·L codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqvae2_fast.modules.binary_entropy import entropy_of
from vqvae2_fast.modules.host import outside_graphs
from vqvae2_fast.ops._registry import transforms_are_active

__all__ = ["LEAST", "clamped_entropy"]

# The package's logarithms are of at least this.
LEAST = 1e-5
# Numbers of a part: 1 MiB, half of a core's second cache.
_PART = 2**18


@outside_graphs(
    "(Tensor high, Tensor low, *, bool slopes) -> (Tensor, Tensor, Tensor)",
    fake=lambda high, low, **_: (high.new_empty(()), torch.empty_like(high), torch.empty_like(low)),
)
def lucidrains_entropy(high: Tensor, low: Tensor, *, slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Σ over vectors and codes of −p·log max(p, LEAST), with p = high·low, and its two gradients.

    Args:
        slopes: Whether the gradients are wanted; without it they are not written.
    """
    total = high.new_zeros(())
    dhigh, dlow = torch.empty_like(high), torch.empty_like(low)
    step = max(1, _PART // (high.shape[1] * low.shape[1]))
    for start in range(0, len(high), step):
        part = slice(start, start + step)
        upper, lower = high[part], low[part]
        p = upper[:, :, None] * lower[:, None, :]  # [n, H, L]
        logs = p.clamp(min=LEAST).log_()
        total -= torch.dot(p.flatten(), logs.flatten())
        if slopes:
            slope = logs.add_(p >= LEAST).neg_()
            dhigh[part] = torch.bmm(slope, lower[:, :, None]).squeeze(2)
            dlow[part] = torch.bmm(upper[:, None, :], slope).squeeze(1)
    return total, dhigh, dlow


class _ClampedEntropy(torch.autograd.Function):
    """The first result of `lucidrains_entropy`, differentiable once."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, low: Tensor) -> Tensor:
        slopes = high.requires_grad or low.requires_grad
        total, dhigh, dlow = lucidrains_entropy(high, low, slopes=slopes)
        ctx.save_for_backward(dhigh, dlow)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, Tensor]:
        dhigh, dlow = ctx.saved_tensors
        return dtotal * dhigh, dtotal * dlow


def clamped_entropy(high: Tensor, low: Tensor) -> Tensor:
    """Mean over vectors of the entropy of high `[N, H]` × low `[N, L]`, in nats, 0-d; 0 of none."""
    total: Tensor
    if transforms_are_active():
        total = entropy_of(high[:, :, None] * low[:, None, :], LEAST).sum()
    else:
        total = _ClampedEntropy.apply(high, low)  # type: ignore[no-untyped-call]
    return total / max(len(high), 1)
