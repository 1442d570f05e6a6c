"""`causal_attention`: each position attends to the positions before it, not to itself."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import check_floating, check_same_device, described
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.causal_attention.fused import (
    fused_causal_attention,
    is_without_dropout,
    refusal,
)
from vqvae2_fast.ops.causal_attention.reference import causal_attention_reference
from vqvae2_fast.ops.dropped_attention.op import DROPPED_ATTENTION

__all__ = ["CAUSAL_ATTENTION", "causal_attention"]

CAUSAL_ATTENTION = register(
    "causal_attention",
    "(Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor? seed) -> Tensor",
    reference=causal_attention_reference,
    owners={"cuda": "triton"},
    refusal=refusal,
    by_design=is_without_dropout,
    fused=fused_causal_attention,
)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    dropout_on: str = "logits",
    seed: Tensor | None = None,
) -> Tensor:
    """Strictly causal attention: position p attends to positions < p; position 0 gives zeros.

    softmax(q·kᵀ/√d) v over the allowed keys. With `dropout_on="logits"` (section 3.2 of
    https://arxiv.org/abs/1906.00446) a dropped logit is 0 and kept ones are divided by 1−p, before
    the mask; with `"probabilities"` the dropout acts after the softmax.

    Args:
        q, k: `[B, heads, L, d]`, floating.
        v: `[B, heads, L, dv]`.
        dropout_p: Probability of dropping, in [0, 1). 0 outside training: the caller decides.
        seed: 0-d int64 tensor, needed with dropout; the mask is a function of it alone.

    Returns:
        `[B, heads, L, dv]`, differentiable in q, k and v.

    Raises:
        ValueError: Shapes that do not fit, dropout_p outside [0, 1), an unknown dropout_on, or
            dropout without a seed.
        TypeError: A dtype that is not floating, or seed not int64.
        RuntimeError: Tensors on different devices.

    Note:
        No L×L matrix is formed without dropout, nor with dropout on logits where Triton owns the
        call; the reference forms it with dropout.
    """
    check_floating("causal_attention", q=q, k=k, v=v)
    check_same_device("causal_attention", q=q, k=k, v=v)
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            "causal_attention: expected q, k [B, heads, L, d] and v [B, heads, L, dv], got q "
            f"{described(q)}, k {described(k)} and v {described(v)}."
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"causal_attention: expected dropout_p in [0, 1), got {dropout_p}.")
    if dropout_on not in ("logits", "probabilities"):
        raise ValueError(
            "causal_attention: expected dropout_on 'logits' or 'probabilities', "
            f"got {dropout_on!r}."
        )
    if dropout_p > 0:
        if seed is None:
            raise ValueError("causal_attention: dropout needs a seed (0-d int64), got None.")
        if seed.dtype != torch.int64:
            raise TypeError(f"causal_attention: expected seed int64, got {described(seed)}.")
        if seed.dim() != 0:
            raise ValueError(f"causal_attention: expected seed 0-d, got {described(seed)}.")
        if q.device.type == "cpu":
            return _dropped_on_cpu(q, k, v, dropout_p, dropout_on, seed)
    return CAUSAL_ATTENTION(q, k, v, dropout_p, dropout_on, seed)


def _dropped_on_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float,
    dropout_on: str,
    seed: torch.Tensor,
) -> torch.Tensor:
    """The kernel is float32: half precision is widened for it, so no L×L matrix is kept."""
    dtype = q.dtype
    if all(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in (q, k, v)):
        q, k, v = q.float(), k.float(), v.float()
    return DROPPED_ATTENTION(q, k, v, dropout_p, dropout_on, seed).to(dtype)
