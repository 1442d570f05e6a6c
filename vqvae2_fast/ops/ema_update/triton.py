"""`ema_update_` in Triton: the counts and their total in one program, then rows in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["ema_update_triton", "examples"]


@triton.jit
def _ema_counts_kernel(counts_ptr, size_ptr, total_ptr, K, decay, gain, BLOCK_K: tl.constexpr):
    """N ← γN + (1−γ)n and ΣN in float64; reads 12 bytes per code, writes 4."""
    total = tl.zeros((BLOCK_K,), tl.float64)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        count = tl.load(counts_ptr + k, mask=k < K, other=0).to(tl.float32)
        size = tl.load(size_ptr + k, mask=k < K, other=0.0) * decay + count * gain
        tl.store(size_ptr + k, size, mask=k < K)
        total += size.to(tl.float64)
    tl.store(total_ptr, tl.sum(total).to(tl.float32))


@triton.jit
def _ema_rows_kernel(
    sums_ptr,
    size_ptr,
    total_ptr,
    average_ptr,
    codebook_ptr,
    size,
    K,
    D,
    decay,
    gain,
    epsilon,
    BLOCK: tl.constexpr,
):
    """m ← γm + (1−γ)Σz and e = m / N̂; reads 8 bytes per entry, writes 8."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < size
    total = tl.load(total_ptr)
    cluster = tl.load(size_ptr + entry // D, mask=inside, other=1.0)
    average = tl.load(average_ptr + entry, mask=inside, other=0.0) * decay
    average += tl.load(sums_ptr + entry, mask=inside, other=0.0) * gain
    smoothed = (cluster + epsilon) / (total + K * epsilon) * total
    tl.store(average_ptr + entry, average, mask=inside)
    if total > 0:  # before any vector was counted there is no mean to move to
        tl.store(codebook_ptr + entry, average / smoothed, mask=inside)


def ema_update_triton(
    counts: Tensor,
    sums: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    codebook: Tensor,
    decay: float,
    epsilon: float,
) -> None:
    num_embeddings, dimension = codebook.shape
    total = codebook.new_empty((), dtype=torch.float32)
    launch(
        _ema_counts_kernel,
        (1,),
        counts,
        cluster_size,
        total,
        num_embeddings,
        float(decay),
        1.0 - decay,
        **configuration("ema_counts", codebook.device),
    )
    config = configuration("ema_rows", codebook.device)
    launch(
        _ema_rows_kernel,
        (triton.cdiv(codebook.numel(), config["BLOCK"]),),
        sums,
        cluster_size,
        total,
        embed_avg,
        codebook,
        codebook.numel(),  # int64 if int32 does not hold it
        num_embeddings,
        dimension,
        float(decay),
        1.0 - decay,
        float(epsilon),
        **config,
    )


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    size, rows = torch.ones(512), torch.ones(512, 64)
    for dtype in (torch.int64, torch.float32):
        yield ema_update_triton, (size.to(dtype), rows, size, rows, rows, 0.99, 1e-5)
