"""`causal_attention`: each position attends to the positions before it, not to itself."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import (
    check_floating,
    check_number,
    check_same_device,
    check_seed,
    dtype_name,
    misfit,
    other_dtype,
)
from vqvae2_fast.ops._registry import BY_DESIGN, register
from vqvae2_fast.ops._triton import runs_triton
from vqvae2_fast.ops.causal_attention.gradient import (
    CAUSAL_ATTENTION_FUSED,
    DROPPED_ATTENTION,
    why_not_dropout,
    why_not_triton_kernel,
)
from vqvae2_fast.ops.causal_attention.reference import causal_attention_reference

__all__ = ["CAUSAL_ATTENTION", "causal_attention"]


def _why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    dropout_on: str = "logits",
    seed: Tensor | None = None,
) -> str | None:
    if dropout_p == 0:
        return BY_DESIGN  # PyTorch's fused attention
    if runs_triton(q):
        if dropout_on != "logits":
            return "dropout on probabilities"
        return why_not_triton_kernel(q, k, v, dropout_p)
    is_half = q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    other = None if is_half else other_dtype((torch.float32,), q=q, k=k, v=v)
    return other or why_not_dropout(dropout_p)


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> Tensor:
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
        not. PyTorch's fused attention, which computes calls without dropout, has no second
        derivatives outside `torch.func`: use `torch.nn.attention.sdpa_kernel` with
        `SDPBackend.MATH` if you need them.
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
