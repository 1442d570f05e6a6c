"""`residual_code_statistics`: `code_statistics` of all quantisers of a residual quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import assert_inside, check_int64, check_same_device, described
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.residual_nearest_code.op import check_codebooks, residual_type, why_not

__all__ = [
    "RESIDUAL_CODE_STATISTICS",
    "residual_code_statistics",
    "residual_code_statistics_reference",
]


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


def _fake(z: Tensor, codebooks: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    return (
        indices.new_empty(codebooks.shape[:2]),
        z.new_empty(codebooks.shape, dtype=torch.float32),
    )


RESIDUAL_CODE_STATISTICS = register(
    "residual_code_statistics",
    "(Tensor z, Tensor codebooks, Tensor indices) -> (Tensor counts, Tensor sums)",
    reference=residual_code_statistics_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=why_not,
)


def residual_code_statistics(
    z: Tensor, codebooks: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts and sums of residuals per code of each quantiser, for the codebooks' averages.

    With the residuals r_q of `residual_nearest_code`: `counts[q, k] = |{n : indices[n, q] = k}|`,
    `sums[q, k] = Σ_{n : indices[n, q] = k} r_q[n]`. The caller all-reduces them across ranks.

    Args:
        z: Vectors, `[..., D]`, floating; float64 runs on the reference.
        codebooks: `[Q, K, D]`, the values with which `residual_nearest_code` found the indices.
        indices: int64, `[..., Q]`, each in 0..K−1, or −1: a quantiser that did not take this
            vector, for instance by quantiser dropout or a mask; it counts nowhere and subtracts
            nothing.

    Returns:
        counts: int64, `[Q, K]`.
        sums: float32, `[Q, K, D]`: accumulated in float64 in the order of the vectors, rounded
            once.

    Raises:
        ValueError: Shapes that do not fit.
        TypeError: Not a tensor, z or codebooks not floating, or indices not int64.
        RuntimeError: Tensors on different devices, or an index outside −1..K−1.

    Note:
        Deterministic on the CPU for any number of threads. No gradient flows.
    """
    check_codebooks(z, codebooks)
    check_int64("indices", indices)
    expected = [*z.shape[:-1], len(codebooks)]
    if list(indices.shape) != expected:
        raise ValueError(
            f"expected indices {expected} for z {list(z.shape)} and "
            f"codebooks {list(codebooks.shape)}, got {described(indices)}."
        )
    check_same_device(z=z, indices=indices)
    flat = z.detach().reshape(-1, z.shape[-1])  # [N, D]
    return RESIDUAL_CODE_STATISTICS(flat, codebooks.detach(), indices.reshape(-1, len(codebooks)))
