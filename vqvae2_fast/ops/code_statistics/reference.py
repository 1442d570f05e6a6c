"""Reference of `code_statistics`."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import assert_inside

__all__ = ["code_statistics_reference"]


def code_statistics_reference(
    z: Tensor, indices: Tensor, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    assert_inside(indices, 0, num_embeddings)
    counts = indices.new_zeros(num_embeddings)  # [K]
    counts.index_add_(0, indices, torch.ones_like(indices))
    sums = z.new_zeros(num_embeddings, z.shape[1], dtype=torch.float64)  # [K, D]
    sums.index_add_(0, indices, z.double())
    return counts, sums.float()
