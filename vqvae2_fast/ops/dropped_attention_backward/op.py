"""`dropped_attention_backward`: the gradients of `dropped_attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.dropped_attention.blocks import dropped_attention_backward_blocks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DROPPED_ATTENTION_BACKWARD"]


def _fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


# Not public: `dropped_attention` calls it. dout `[B, heads, L, dv]` to dq, dk and dv.
DROPPED_ATTENTION_BACKWARD = register(
    "dropped_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor seed) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    reference=dropped_attention_backward_blocks,
    fake=_fake,
)
