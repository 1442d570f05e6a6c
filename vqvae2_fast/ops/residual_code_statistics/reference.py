"""Reference of `residual_code_statistics`."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import assert_inside
from vqvae2_fast.ops.residual_nearest_code.reference import residual_type

__all__ = ["residual_code_statistics_reference"]


def residual_code_statistics_reference(
    z: Tensor, codebooks: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    quantizers, num_embeddings, dim = codebooks.shape
    assert_inside(indices, -1, num_embeddings)
    counts = indices.new_zeros(quantizers, num_embeddings)
    sums = z.new_zeros(quantizers, num_embeddings, dim, dtype=torch.float64)
    residual = z.to(residual_type(z, codebooks))  # [N, D]
    for q, index in enumerate(indices.unbind(1)):
        used, safe = index >= 0, index.clamp(min=0)
        counts[q].index_add_(0, safe, used.long())
        sums[q].index_add_(0, safe, torch.where(used[:, None], residual, 0).double())
        code = codebooks[q].to(residual.dtype)[safe]
        residual = torch.where(used[:, None], residual - code, residual)
    return counts, sums.float()
