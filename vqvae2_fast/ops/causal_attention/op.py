"""`causal_attention`: each position attends to the positions before it, not to itself.

Two kernels compute it with dropout and store no L×L matrix: `dropped_attention` is C++ and float32,
`causal_attention_fused` is Triton and drops only logits. The first one also trains without dropout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqvae2_fast.ops._checks import (
    KERNEL_DTYPES,
    check_floating,
    check_number,
    check_same_device,
    check_seed,
    dtype_name,
    misfit,
    other_dtype,
)
from vqvae2_fast.ops._registry import BY_DESIGN, register, transforms_are_active
from vqvae2_fast.ops._training import new_heads
from vqvae2_fast.ops._triton import runs_triton
from vqvae2_fast.ops.dropout_mask.op import DROPOUT_MASK

__all__ = [
    "CAUSAL_ATTENTION",
    "CAUSAL_ATTENTION_FUSED",
    "DROPPED_ATTENTION",
    "causal_attention",
    "causal_attention_backward_reference",
    "causal_attention_fused_reference",
    "causal_attention_reference",
    "dropped_attention_backward_reference",
]


def causal_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor | None
) -> Tensor:
    if dropout_p == 0:
        return _without_dropout(q, k, v)
    assert seed is not None
    weights, keep = _dropped_weights(q, k, dropout_p, dropout_on, seed)
    if dropout_on == "probabilities":
        weights = torch.where(keep, weights / (1 - dropout_p), 0.0)
    return F.pad(weights[:, :, 1:] @ v, (0, 0, 1, 0))[:, :, : q.shape[2]]


def _without_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Strictly causal attention, as causal attention of queries one position ahead of the keys."""
    shifted = (q[:, :, 1:], k[:, :, :-1], v[:, :, :-1])
    if transforms_are_active():
        # The other backends have no forward-mode and no second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(*shifted, is_causal=True)
    else:
        out = F.scaled_dot_product_attention(*shifted, is_causal=True)
    return F.pad(out, (0, 0, 1, 0))[:, :, : q.shape[2]]  # of no position, nothing


def _dropped_logits(
    q: Tensor, k: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits, −∞ for keys that a query does not see, and the mask of what dropout keeps.

    `[B, heads, L, L]` both. Position 0 sees nothing: its row is finite and never read.
    """
    batch, heads, length, _ = q.shape
    if seed.dim():  # a sample of the mask is a head
        seed = torch.stack([seed[0], seed[1] * heads])
    keep = DROPOUT_MASK(seed, batch * heads, length, length, dropout_p)
    keep = keep.view(batch, heads, length, length)
    logits = q @ k.transpose(2, 3) / max(q.shape[3], 1) ** 0.5  # [B, heads, L, L]
    if dropout_on == "logits":
        logits = torch.where(keep, logits / (1 - dropout_p), 0.0)
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu()
    future[:1] = False
    return logits.masked_fill(future, -torch.inf), keep


def _dropped_weights(
    q: Tensor, k: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """The softmax of the logits, and the mask of what dropout keeps: both `[B, heads, L, L]`."""
    logits, keep = _dropped_logits(q, k, dropout_p, dropout_on, seed)
    return logits.softmax(dim=3), keep


def dropped_attention_backward_reference(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights, keep = _dropped_weights(q, k, dropout_p, dropout_on, seed)
    kept_scale = keep.to(weights.dtype) / (1 - dropout_p)
    # Position 0 gives zeros, whatever its inputs.
    dout = F.pad(dout[:, :, 1:], (0, 0, 1, 0))[:, :, : q.shape[2]]
    dweights, dropped = dout @ v.transpose(2, 3), weights  # [B, heads, L, L]
    if dropout_on == "probabilities":
        dweights, dropped = dweights * kept_scale, weights * kept_scale
    dlogits = weights * (dweights - (dweights * weights).sum(3, keepdim=True))
    if dropout_on == "logits":
        dlogits = dlogits * kept_scale
    dlogits = dlogits / max(q.shape[3], 1) ** 0.5
    return dlogits @ k, dlogits.transpose(2, 3) @ q, dropped.transpose(2, 3) @ dout


def causal_attention_fused_reference(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """Dropout on the logits; log_sum is log₂ Σ exp(logit) of each row, 0 for the first.

    No gradient flows from log_sum, which only the backward uses.
    """
    logits, _ = _dropped_logits(q, k, dropout_p, "logits", seed)
    log_sum = logits.detach()[:, :, 1:].logsumexp(dim=3) / math.log(2)
    out = logits.softmax(dim=3)[:, :, 1:] @ v
    length = q.shape[2]
    out, log_sum = F.pad(out, (0, 0, 1, 0)), F.pad(log_sum, (1, 0)).float()
    return out[:, :, :length], log_sum[:, :, :length]


def causal_attention_backward_reference(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`out` and `log_sum` are for the kernel, which need not compute them again."""
    return dropped_attention_backward_reference(dout, q, k, v, dropout_p, "logits", seed)


# Widest heads that do not spill registers: see build_tools/compile_triton.py.
_WIDEST_HEAD = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}


def _why_not_dropout(dropout_p: float) -> str | None:
    return "dropout_p that float32 rounds to 1" if dropout_p > 1 - 2**-24 else None


def _why_not_triton_kernel(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> str | None:
    if other := other_dtype(KERNEL_DTYPES, input=q):
        return other
    if not q.dtype == k.dtype == v.dtype:
        return "inputs of several dtypes"
    widest = _WIDEST_HEAD[q.dtype]
    if not 0 < q.shape[3] <= widest or not 0 < v.shape[3] <= widest:
        return f"heads of {q.shape[3]} and {v.shape[3]} values, more than {widest} or none"
    return _why_not_dropout(dropout_p)


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
    why_not=lambda dout, q, k, v, out, log_sum, p, seed: _why_not_triton_kernel(q, k, v, p),
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
    why_not=lambda q, k, v, p, seed: _why_not_triton_kernel(q, k, v, p),
    gradient=(_fused_setup_context, _fused_backward),
    private=True,
)


def _trains_on_cpu(*tensors: Tensor) -> bool:
    """Whether the C++ kernel takes a call without dropout.

    It does where a gradient is needed. That of PyTorch's fused attention is exp(logit − log_sum),
    whose logit is computed again and may be rounded otherwise: infinite for logits of 1e9.
    """
    return (
        torch.is_grad_enabled()
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
        and any(tensor.requires_grad for tensor in tensors)
    )


def _why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    dropout_on: str = "logits",
    seed: Tensor | None = None,
) -> str | None:
    if dropout_p == 0 and not _trains_on_cpu(q, k, v):
        return BY_DESIGN  # PyTorch's fused attention
    if runs_triton(q):
        if dropout_on != "logits":
            return "dropout on probabilities"
        return _why_not_triton_kernel(q, k, v, dropout_p)
    is_half = q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    other = None if is_half else other_dtype((torch.float32,), q=q, k=k, v=v)
    return other or _why_not_dropout(dropout_p)


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor | None
) -> Tensor:
    if seed is None:  # nothing is dropped
        seed = torch.zeros((), dtype=torch.int64, device=q.device)
    if runs_triton(q):
        out: Tensor = CAUSAL_ATTENTION_FUSED.kernel(q, k, v, dropout_p, seed)[0]
        return out
    # The kernel takes float32: half precision is widened for it, so that no L×L matrix is stored.
    dtype = q.dtype
    if dtype != torch.float32:
        q, k, v = q.float(), k.float(), v.float()
    return DROPPED_ATTENTION.kernel(q, k, v, dropout_p, dropout_on, seed).to(dtype)


CAUSAL_ATTENTION = register(
    "causal_attention",
    "(Tensor q, Tensor k, Tensor v, float dropout_p, str dropout_on, Tensor? seed) -> Tensor",
    reference=causal_attention_reference,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    kernel=_kernel,
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
    the mask; with `"probabilities"` dropout is applied after the softmax.

    Args:
        q, k: `[B, heads, L, d]`, floating.
        v: `[B, heads, L, dv]`.
        dropout_p: Probability of dropping, in [0, 1). The caller passes 0 outside training.
        seed: int64 tensor as in `dropout_mask`, needed with dropout; the mask is a function of it.

    Returns:
        `[B, heads, L, dv]`, differentiable in q, k and v.

    Raises:
        ValueError: Shapes that do not fit, dropout_p not a number in [0, 1), an unknown dropout_on,
            or dropout without a seed.
        TypeError: Not a tensor, a dtype that is not floating, q, k and v of several outside
            autocast, or seed not int64.
        RuntimeError: Tensors on different devices.

    Note:
        Only the reference with dropout forms an L×L matrix; calls without dropout and kernels do
        not. PyTorch's fused attention computes calls without dropout, except where a float32
        gradient is needed on the CPU. It has no second derivatives outside `torch.func`: use
        `torch.nn.attention.sdpa_kernel` with `SDPBackend.MATH` if you need them.
    """
    check_floating(q=q, k=k, v=v)
    check_same_device(q=q, k=k, v=v)
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        expected = "q, k [B, heads, L, d] and v [B, heads, L, dv]"
        raise misfit(expected, q=q, k=k, v=v)
    one_dtype = q.dtype == k.dtype == v.dtype
    if not one_dtype and not torch.is_autocast_enabled(q.device.type):  # `meta` has none
        raise TypeError(
            f"expected q, k and v of one dtype, got {dtype_name(q.dtype)}, "
            f"{dtype_name(k.dtype)} and {dtype_name(v.dtype)}."
        )
    check_number("dropout_p", dropout_p)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"expected dropout_p in [0, 1), got {dropout_p}.")
    if dropout_on not in ("logits", "probabilities"):
        raise ValueError(f"expected dropout_on 'logits' or 'probabilities', got {dropout_on!r}.")
    if dropout_p > 0:
        if seed is None:
            raise ValueError("dropout needs a seed (int64), got None.")
        check_seed(seed)
        check_same_device(q=q, seed=seed)
    return CAUSAL_ATTENTION(q, k, v, dropout_p, dropout_on, seed)
