"""Reference of `causal_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops.dropout_mask.op import DROPOUT_MASK

__all__ = ["causal_attention_reference", "dropped_weights"]


def causal_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor | None
) -> Tensor:
    if dropout_p == 0:
        # Strictly causal is causal with queries one position ahead of keys; nothing of size L×L.
        out = F.scaled_dot_product_attention(
            q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], is_causal=True
        )
        return F.pad(out, (0, 0, 1, 0))
    assert seed is not None
    weights, keep = dropped_weights(q, k, dropout_p, dropout_on, seed)
    if dropout_on == "probabilities":
        weights = torch.where(keep, weights / (1 - dropout_p), 0.0)
    return F.pad(weights[:, :, 1:] @ v, (0, 0, 1, 0))


def dropped_weights(
    q: Tensor, k: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """The softmax of the logits, and what the dropout keeps: `[B, heads, L, L]` both."""
    batch, heads, length, _ = q.shape
    keep = DROPOUT_MASK(seed, batch * heads, length, length, dropout_p)
    keep = keep.view(batch, heads, length, length)
    logits = q @ k.transpose(2, 3) / q.shape[3] ** 0.5  # [B, heads, L, L]
    if dropout_on == "logits":
        logits = torch.where(keep, logits / (1 - dropout_p), 0.0)
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu()
    future[0] = False  # position 0 attends to nothing: any finite row will do, it gives zeros
    return logits.masked_fill(future, -torch.inf).softmax(dim=3), keep
