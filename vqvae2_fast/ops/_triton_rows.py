"""Rows sorted by their code, for kernels that sum over the rows of each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rows_by_code"]


def rows_by_code(indices: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes in order, the rows that have them, stably sorted, and where each code's rows begin.

    Uses PyTorch's radix sort; nothing waits for the device.

    Args:
        indices: int64 `[N]`; rows whose code is not in 0..K−1 lie outside all bounds.

    Returns:
        keys: int16, or int32 for many codes, `[N]`: the codes of the sorted rows.
        order: int64 `[N]`: the numbers of the sorted rows.
        bounds: int64 `[K + 1]`: rows of code k are `order[bounds[k] : bounds[k + 1]]`.
    """
    # The sort takes one pass per byte of its keys.
    keys = indices.clamp(-1, num_embeddings)
    keys = keys.to(torch.int16 if num_embeddings < 1 << 15 else torch.int32)
    keys, order = torch.sort(keys, stable=True)
    codes = torch.arange(num_embeddings + 1, device=indices.device, dtype=torch.int32)
    return keys, order, torch.searchsorted(keys, codes.to(keys.dtype), right=False)
