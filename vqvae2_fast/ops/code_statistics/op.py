"""`code_statistics`: how often each code was used, and the sum of its vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    assert_inside,
    check_floating,
    check_int64,
    check_same_device,
    checked_integer,
    described,
    other_dtype,
)
from vqvae2_fast.ops._registry import register

__all__ = ["CODE_STATISTICS", "code_statistics", "code_statistics_reference"]


def code_statistics_reference(
    z: Tensor, indices: Tensor, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    assert_inside(indices, 0, num_embeddings)
    counts = indices.new_zeros(num_embeddings)  # [K]
    counts.index_add_(0, indices, torch.ones_like(indices))
    sums = z.new_zeros(num_embeddings, z.shape[1], dtype=torch.float64)  # [K, D]
    sums.index_add_(0, indices, z.double())
    return counts, sums.float()


def _fake(z: Tensor, indices: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor]:
    return (
        indices.new_empty(num_embeddings),
        z.new_empty(num_embeddings, z.shape[1], dtype=torch.float32),
    )


def _why_not(z: Tensor, *_: Any) -> str | None:
    return other_dtype(KERNEL_DTYPES, input=z)


CODE_STATISTICS = register(
    "code_statistics",
    "(Tensor z, Tensor indices, int num_embeddings) -> (Tensor counts, Tensor sums)",
    reference=code_statistics_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
)


def code_statistics(z: Tensor, indices: Tensor, num_embeddings: int) -> tuple[Tensor, Tensor]:
    """Counts and sums per code, the inputs of the codebook's moving averages.

    `counts[k] = |{n : indices[n] = k}|`, `sums[k] = Σ_{n : indices[n] = k} z[n]` (n_i and Σ E(x) of
    section 3.1, https://arxiv.org/abs/1906.00446). The caller all-reduces them across ranks.

    Args:
        z: Vectors, `[..., D]`, floating; float64 runs on the reference.
        indices: int64, `[...]`, each in 0..K−1.
        num_embeddings: K.

    Returns:
        counts: int64, `[K]`.
        sums: float32, `[K, D]`, within 2 ulp of Σ|z|: accumulated in float64, rounded once.

    Raises:
        ValueError: Shapes that do not fit, D < 1, or num_embeddings not an integer >= 1.
        TypeError: Not a tensor, z not floating, or indices not int64.
        RuntimeError: Tensors on different devices, or an index outside 0..K−1.

    Note:
        Deterministic on the CPU for any number of threads. No gradient flows.
    """
    check_floating(z=z)
    check_int64("indices", indices)
    if z.dim() == 0 or indices.shape != z.shape[:-1]:
        raise ValueError(
            f"expected indices {list(z.shape[:-1])} for z {list(z.shape)}, "
            f"got {described(indices)}."
        )
    if z.shape[-1] < 1:
        raise ValueError(f"expected z [..., D] with D >= 1, got {described(z)}.")
    num_embeddings = checked_integer("num_embeddings", num_embeddings, 1)
    check_same_device(z=z, indices=indices)
    flat = z.detach().reshape(-1, z.shape[-1])  # [N, D]
    return CODE_STATISTICS(flat, indices.reshape(-1), num_embeddings)
