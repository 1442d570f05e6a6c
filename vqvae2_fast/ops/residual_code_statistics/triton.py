"""`residual_code_statistics` in Triton: the statistics of one quantiser after the other.

Between them one pass of `residual_nearest_code`'s kernel subtracts the codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import assert_inside
from vqvae2_fast.ops.code_statistics.triton import code_statistics_triton
from vqvae2_fast.ops.residual_nearest_code.triton import take_codes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["examples", "residual_code_statistics_triton"]


def residual_code_statistics_triton(
    z: Tensor, codebooks: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    num_embeddings = codebooks.shape[1]
    assert_inside(indices, -1, num_embeddings)
    counts, sums = [], []
    rows, residual = z, z.new_empty(z.shape, dtype=torch.float32)
    for codebook, index in zip(codebooks.unbind(), indices.unbind(1), strict=True):
        # One more code takes the rows that have none.
        codes = torch.where(index < 0, num_embeddings, index)
        count, total = code_statistics_triton(rows, codes, num_embeddings + 1)
        counts.append(count[:-1])
        sums.append(total[:-1])
        take_codes(rows, codebook, index, residual)
        rows = residual
    return torch.stack(counts), torch.stack(sums)


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """No kernels beyond those of `code_statistics` and `residual_nearest_code`."""
    yield from ()
