"""References of `causal_attention`, of its kernels with dropout and of their gradients."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqvae2_fast.ops._registry import transforms_are_active
from vqvae2_fast.ops.dropout_mask.op import DROPOUT_MASK

__all__ = [
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
