"""`causal_attention` with dropout on the logits as kernels, where Triton owns it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import LIBRARY, define_triton

__all__ = ["fused_causal_attention", "is_without_dropout", "refusal"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Heads that fit in registers without spilling, see build_tools/compile_triton.py.
_WIDEST_HEAD = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}


def is_without_dropout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    dropout_on: str = "logits",
    seed: Tensor | None = None,
) -> bool:
    """PyTorch's fused attention computes these calls: nothing faster is claimed."""
    return dropout_p == 0


def refusal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    dropout_on: str = "logits",
    seed: Tensor | None = None,
) -> str | None:
    """Why the kernels do not take these, or None."""
    if dropout_on != "logits":
        return "dropout on probabilities"
    if q.dtype not in _DTYPES:
        return f"{str(q.dtype).removeprefix('torch.')} input"
    if not q.dtype == k.dtype == v.dtype:
        return "inputs of several dtypes"
    widest = _WIDEST_HEAD[q.dtype]
    if not 0 < q.shape[3] <= widest or not 0 < v.shape[3] <= widest:
        return f"heads of {q.shape[3]} and {v.shape[3]} values, more than {widest} or none"
    if dropout_p > 1 - 2**-24:
        return "dropout_p that float32 rounds to 1"
    return None


def _fake(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


FUSED = define_triton(
    "causal_attention",
    "causal_attention_fused",
    "(Tensor q, Tensor k, Tensor v, float dropout_p, Tensor seed) -> (Tensor out, Tensor log_sum)",
    fake=_fake,
)
BACKWARD = define_triton(
    "causal_attention",
    "causal_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum, float dropout_p, "
    "Tensor seed) -> (Tensor dq, Tensor dk, Tensor dv)",
    fake=_fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, seed)


def _backward(ctx: Any, dout: Tensor, _dlog_sum: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, log_sum, seed = ctx.saved_tensors
    gradients = BACKWARD(dout, q, k, v, out, log_sum, ctx.dropout_p, seed)
    return (*gradients, None, None)


torch.library.register_autograd(
    "vqvae2_fast::causal_attention_fused", _backward, setup_context=_setup_context, lib=LIBRARY
)


def fused_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> Tensor:
    out: Tensor = FUSED(q, k, v, dropout_p, seed)[0]
    return out
