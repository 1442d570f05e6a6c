"""The kernels of `causal_attention` with dropout, which store no L×L matrix, and their gradients.

`dropped_attention` is C++ and float32; `causal_attention_fused` is Triton and drops only logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import KERNEL_DTYPES, other_dtype
from vqvae2_fast.ops._maps import new_heads
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.causal_attention.reference import (
    causal_attention_backward_reference,
    causal_attention_fused_reference,
    causal_attention_reference,
    dropped_attention_backward_reference,
)

__all__ = ["CAUSAL_ATTENTION_FUSED", "DROPPED_ATTENTION", "why_not_triton_kernel"]

# Widest heads that do not spill registers: see build_tools/compile_triton.py.
_WIDEST_HEAD = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}


def why_not_dropout(dropout_p: float) -> str | None:
    return "dropout_p that float32 rounds to 1" if dropout_p > 1 - 2**-24 else None


def why_not_triton_kernel(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> str | None:
    if other := other_dtype(KERNEL_DTYPES, input=q):
        return other
    if not q.dtype == k.dtype == v.dtype:
        return "inputs of several dtypes"
    widest = _WIDEST_HEAD[q.dtype]
    if not 0 < q.shape[3] <= widest or not 0 < v.shape[3] <= widest:
        return f"heads of {q.shape[3]} and {v.shape[3]} values, more than {widest} or none"
    return why_not_dropout(dropout_p)


def _dropped_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return new_heads(q, v.shape[3])


def _dropped_backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return new_heads(q, q.shape[3]), new_heads(q, q.shape[3]), new_heads(v, v.shape[3])


DROPPED_ATTENTION_BACKWARD = register(
    "dropped_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor seed) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    reference=dropped_attention_backward_reference,
    fake=_dropped_backward_fake,
    owners={"cpu": "cpu"},
    why_not=lambda dout, q, k, v, *_: other_dtype((torch.float32,), gradient=dout, q=q, k=k, v=v),
    is_gradient=True,
)


def _dropped_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.dropout_p, ctx.dropout_on, seed = inputs
    ctx.save_for_backward(q, k, v, seed)


def _dropped_backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, seed = ctx.saved_tensors
    gradients = DROPPED_ATTENTION_BACKWARD(dout, q, k, v, ctx.dropout_p, ctx.dropout_on, seed)
    return (*gradients, None, None, None)


DROPPED_ATTENTION = register(
    "dropped_attention",
    "(Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor seed) -> Tensor",
    reference=causal_attention_reference,
    fake=_dropped_fake,
    owners={"cpu": "cpu"},
    why_not=lambda q, k, v, *_: other_dtype((torch.float32,), q=q, k=k, v=v),
    gradient=(_dropped_setup_context, _dropped_backward),
    private=True,
)


def _fused_fake(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _fused_backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


CAUSAL_ATTENTION_BACKWARD = register(
    "causal_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum, float dropout_p, "
    "Tensor seed) -> (Tensor dq, Tensor dk, Tensor dv)",
    reference=causal_attention_backward_reference,
    fake=_fused_backward_fake,
    owners={"cuda": "triton"},
    why_not=lambda dout, q, k, v, out, log_sum, p, seed: why_not_triton_kernel(q, k, v, p),
    is_gradient=True,
)


def _fused_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.dropout_p, seed = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, seed)


def _fused_backward(ctx: Any, dout: Tensor, _dlog_sum: None) -> tuple[Tensor | None, ...]:
    q, k, v, out, log_sum, seed = ctx.saved_tensors
    gradients = CAUSAL_ATTENTION_BACKWARD(dout, q, k, v, out, log_sum, ctx.dropout_p, seed)
    return (*gradients, None, None)


CAUSAL_ATTENTION_FUSED = register(
    "causal_attention_fused",
    "(Tensor q, Tensor k, Tensor v, float dropout_p, Tensor seed) -> (Tensor out, Tensor log_sum)",
    reference=causal_attention_fused_reference,
    fake=_fused_fake,
    owners={"cuda": "triton"},
    why_not=lambda q, k, v, p, seed: why_not_triton_kernel(q, k, v, p),
    gradient=(_fused_setup_context, _fused_backward),
    private=True,
)
