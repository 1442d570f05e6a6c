"""`dropped_attention`: `causal_attention` with dropout in float32, keeping no L×L matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.ops._checks import not_float32
from vqvae2_fast.ops._maps import new_heads
from vqvae2_fast.ops._registry import LIBRARY, register
from vqvae2_fast.ops.causal_attention.reference import causal_attention_reference
from vqvae2_fast.ops.dropped_attention_backward.op import DROPPED_ATTENTION_BACKWARD

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DROPPED_ATTENTION"]


def _fake(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> Tensor:
    return new_heads(q, v.shape[3])


def _refusal(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> str | None:
    return not_float32(q=q, k=k, v=v)


# Not public: `causal_attention` calls it on CPUs. Arguments and result are its own.
DROPPED_ATTENTION = register(
    "dropped_attention",
    "(Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor seed) -> Tensor",
    reference=causal_attention_reference,
    fake=_fake,
    owners={"cpu": "cpu"},
    refusal=_refusal,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.dropout_p, ctx.dropout_on, seed = inputs
    ctx.save_for_backward(q, k, v, seed)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, seed = ctx.saved_tensors
    gradients = DROPPED_ATTENTION_BACKWARD(dout, q, k, v, ctx.dropout_p, ctx.dropout_on, seed)
    return (*gradients, None, None, None)


torch.library.register_autograd(
    "vqvae2_fast::dropped_attention", _backward, setup_context=_setup_context, lib=LIBRARY
)
