"""Reference of `dropped_attention_backward`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast.ops.causal_attention.reference import dropped_weights

__all__ = ["dropped_attention_backward_reference"]


def dropped_attention_backward_reference(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights, keep = dropped_weights(q, k, dropout_p, dropout_on, seed)
    kept_scale = keep / (1 - dropout_p)
    dout = F.pad(dout[:, :, 1:], (0, 0, 1, 0))  # position 0 gives zeros whatever comes in
    dweights, dropped = dout @ v.transpose(2, 3), weights  # [B, heads, L, L]
    if dropout_on == "probabilities":
        dweights, dropped = dweights * kept_scale, weights * kept_scale
    dlogits = weights * (dweights - (dweights * weights).sum(3, keepdim=True))
    if dropout_on == "logits":
        dlogits = dlogits * kept_scale
    dlogits = dlogits / q.shape[3] ** 0.5
    return dlogits @ k, dlogits.transpose(2, 3) @ q, dropped.transpose(2, 3) @ dout
