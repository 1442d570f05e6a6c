"""`dropped_attention_backward`: the gradients of `dropped_attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops._maps import new_heads
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.dropped_attention_backward.reference import (
    dropped_attention_backward_reference,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DROPPED_ATTENTION_BACKWARD"]


def _fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return new_heads(q, q.shape[3]), new_heads(q, q.shape[3]), new_heads(v, v.shape[3])


def _refusal(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> str | None:
    from vqvae2_fast.ops.dropped_attention.op import DROPPED_ATTENTION

    return DROPPED_ATTENTION.refusal(q, k, v, dropout_p, dropout_on, seed)


# Not public: `dropped_attention` calls it. dout `[B, heads, L, dv]` to dq, dk and dv.
DROPPED_ATTENTION_BACKWARD = register(
    "dropped_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor seed) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    reference=dropped_attention_backward_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)
