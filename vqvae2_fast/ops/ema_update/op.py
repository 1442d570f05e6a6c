"""`ema_update_`: one step of the codebook's exponential moving averages, in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import (
    check_floating,
    check_number,
    check_same_device,
    check_tensor,
    described,
    other_dtype,
)
from vqvae2_fast.ops._registry import register

__all__ = ["EMA_UPDATE_", "ema_update_", "ema_update_reference"]


def ema_update_reference(
    counts: Tensor,
    sums: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    codebook: Tensor,
    decay: float,
    epsilon: float,
) -> None:
    cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
    embed_avg.mul_(decay).add_(sums, alpha=1 - decay)
    total = cluster_size.sum()
    smoothed = (cluster_size + epsilon) / (total + len(cluster_size) * epsilon) * total  # [K]
    # Before any vector was counted there is no mean to move to.
    codebook.copy_(torch.where(total > 0, embed_avg / smoothed[:, None], codebook))


def _fake(*_: object) -> None:
    return None


def _why_not(counts: Tensor, *rest: Any) -> str | None:
    averages = rest[:4]  # the remaining arguments are numbers
    for tensor in averages:
        if other := other_dtype((torch.float32,), averages=tensor):
            return other
    if not all(tensor.is_contiguous() for tensor in (counts, *averages)):
        return "strided averages"
    return other_dtype((torch.int64, torch.float32), counts=counts)


EMA_UPDATE_ = register(
    "ema_update_",
    "(Tensor counts, Tensor sums, Tensor(a!) cluster_size, Tensor(b!) embed_avg, "
    "Tensor(c!) codebook, float decay, float epsilon) -> ()",
    reference=ema_update_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
)


def ema_update_(
    counts: Tensor,
    sums: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    codebook: Tensor,
    decay: float = 0.99,
    epsilon: float = 1e-5,
) -> None:
    """Move the averages towards this step's statistics and set the codebook to their ratio.

    N ← γN + (1−γ)n, m ← γm + (1−γ)Σz (section 3.1 of https://arxiv.org/abs/1906.00446), then
    e = m / ((N + ε) / (ΣN + Kε) · ΣN), the Laplace smoothing of sonnet's `VectorQuantizerEMA`.
    While ΣN is 0 the codebook stays as it is.

    Args:
        counts: n, `[K]`, int64 or floating.
        sums: Σz, `[K, D]`, floating.
        cluster_size: N, `[K]`, floating, updated in place.
        embed_avg: m, `[K, D]`, updated in place.
        codebook: e, `[K, D]`, overwritten.
        decay: γ, in [0, 1].
        epsilon: ε, in counts.

    Raises:
        ValueError: Shapes that do not fit, decay or epsilon not a number, decay outside [0, 1], or
            epsilon negative or infinite.
        TypeError: Not a tensor; sums, cluster_size, embed_avg or codebook not floating.
        RuntimeError: Tensors on different devices, or one to update that was made in
            `torch.inference_mode`, outside of it.

    Note:
        No gradient flows, and codebooks that are parameters are written too.
    """
    written = {"cluster_size": cluster_size, "embed_avg": embed_avg, "codebook": codebook}
    check_tensor("counts", counts)
    check_floating(sums=sums, **written)
    if codebook.dim() != 2 or codebook.shape[0] == 0:
        raise ValueError(f"expected codebook [K, D] with K >= 1, got {described(codebook)}.")
    expected = {
        "counts": (counts, codebook.shape[:1]),
        "sums": (sums, codebook.shape),
        "cluster_size": (cluster_size, codebook.shape[:1]),
        "embed_avg": (embed_avg, codebook.shape),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"expected {name} {list(shape)} for codebook {list(codebook.shape)}, "
                f"got {described(tensor)}."
            )
    check_number("decay", decay)
    check_number("epsilon", epsilon)
    if not 0 <= decay <= 1:
        raise ValueError(f"expected decay in [0, 1], got {decay}.")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"expected epsilon >= 0 and finite, got {epsilon}.")
    check_same_device(counts=counts, sums=sums, **written)
    if not torch.compiler.is_compiling():
        _check_ordinary(written)
    # The reference would record its writes for autograd, and refuse those to a parameter.
    with torch.no_grad():
        EMA_UPDATE_(counts, sums, cluster_size, embed_avg, codebook, decay, epsilon)
    if not torch.compiler.is_compiling():
        # Autograd does not see the writes of the compiled kernel.
        torch.autograd.graph.increment_version(tuple(written.values()))


def _check_ordinary(written: dict[str, Tensor]) -> None:
    """The compiled kernel would write where torch's operators refuse to."""
    for name, tensor in written.items():
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"expected {name} to be an ordinary tensor, got one that was made in "
                "torch.inference_mode and can be changed only there; pass a clone."
            )
