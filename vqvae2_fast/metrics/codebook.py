"""How much of a codebook its codes use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CodebookUse", "codebook_use"]


@dataclass(frozen=True)
class CodebookUse:
    """Codes that occur at all, their share of the codebook, and the perplexity of their use."""

    used: int
    share: float
    perplexity: float


def codebook_use(codes: Tensor, num_embeddings: int) -> CodebookUse:
    """Use of a codebook of `num_embeddings` by a set of codes, any shape, int64.

    Perplexity is 2 to the entropy of the histogram in bits: `num_embeddings` if all are used
    equally, 1 if one is used alone (sonnet `vqvae.py`, `perplexity`).
    """
    counts = torch.bincount(codes.flatten(), minlength=num_embeddings).double()
    shares = counts[counts > 0] / counts.sum()
    used = int((counts > 0).sum())
    entropy = float(-(shares * shares.log2()).sum())
    return CodebookUse(used, used / num_embeddings, 2.0**entropy)
