"""Entropies of soft binary codes, without a matrix of vectors by codes.

A soft code of a vector is a product of d independent bits: softmax over all 2^d corners c of
−‖z − c‖²/τ, with c_i = ±s, is Π_i σ(±l_i), l_i = 4·s·z_i/τ. So its entropy is a sum over bits, and
the mean over vectors of such products is one product of two matrices `[N, 2^(d/2)]`.

Sizes: N vectors, d bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["entropy_of", "entropy_of_bits", "mean_of_codes", "tables_of_bits"]


def entropy_of_bits(logits: Tensor) -> Tensor:
    """Σ_i H(σ(l_i)), the entropy in nats of each soft code: `[..., d]` -> `[...]`."""
    # −p log p − q log q with p = σ(|l|): neither term cancels for a large |l|.
    size = logits.abs()
    return (F.softplus(-size) + size * torch.sigmoid(-size)).sum(-1)


def entropy_of(probabilities: Tensor, least: float = 1e-30) -> Tensor:
    """−p log p of each probability, in nats; the logarithm is of at least `least`.

    With it the derivative at 0 is finite.
    """
    return -probabilities * probabilities.clamp(min=least).log()


def tables_of_bits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Distributions over the upper ⌊d/2⌋ and the lower bits: `[N, d]` -> `[N, H]`, `[N, L]`.

    The first bit is the highest of a code's index, and p(code) is the product of the two.
    """
    ones, zeros = torch.sigmoid(logits), torch.sigmoid(-logits)
    middle = logits.shape[1] // 2
    high = _products(zeros[:, :middle], ones[:, :middle])
    return high, _products(zeros[:, middle:], ones[:, middle:])


def mean_of_codes(high: Tensor, low: Tensor) -> Tensor:
    """The mean over vectors of their distributions over all codes: `tables_of_bits` -> `[2^d]`.

    Zeros if there are no vectors.
    """
    return (high.T @ low).flatten() / max(len(high), 1)


def _products(zeros: Tensor, ones: Tensor) -> Tensor:
    """Products over bits for each combination of them: two `[N, d]` -> `[N, 2^d]`."""
    table = ones.new_ones(len(ones), 1)
    for zero, one in zip(zeros.unbind(1), ones.unbind(1), strict=True):
        table = torch.stack([table * zero[:, None], table * one[:, None]], dim=2).flatten(1)
    return table
