"""Attention with dropout, block by block of queries, in plain tensor calls.

Sizes: G batch times heads, L positions, d and dv. The largest piece at a time is a block of
logits of `_BLOCK` elements and a bool mask [G, L, L]; nothing of either is kept for the gradient,
the mask is drawn again from its seed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.ops.dropout_mask.op import DROPOUT_MASK

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["dropped_attention_backward_blocks", "dropped_attention_blocks"]

# Logits of a block: 4 MiB in float32, about what a core's caches hold.
_BLOCK = 1 << 20
# Queries of a block: fewer would make small products, more would waste the logits of later keys.
_ROWS = 256


def _blocks(groups: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """Groups, queries and the keys that any of these queries sees."""
    for first in range(0, length, _ROWS):
        last = min(first + _ROWS, length)
        count = max(1, _BLOCK // ((last - first) * last))
        for group in range(0, groups, count):
            yield slice(group, group + count), slice(first, last), slice(0, last)


def _dropped(seed: Tensor, groups: int, length: int, dropout_p: float) -> Tensor:
    return DROPOUT_MASK(seed, groups, length, length, dropout_p).logical_not_()


def _future(rows: slice, device: torch.device) -> Tensor:
    """Bool `[rows, keys]`, True where a query does not see a key."""
    position = torch.arange(rows.stop, device=device)
    future = position >= position[rows, None]
    if rows.start == 0:
        future[0, 0] = False  # position 0 sees nothing: any finite row will do, it is zeroed
    return future


def _weights(q: Tensor, k: Tensor, scale: float, dropped: Tensor | None, future: Tensor) -> Tensor:
    logits = torch.bmm(q * scale, k.transpose(1, 2))
    if dropped is not None:
        logits.masked_fill_(dropped, 0)
    return logits.masked_fill_(future, -torch.inf).softmax(dim=2)


@contextmanager
def _as_given(device: torch.device) -> Iterator[None]:
    """Arithmetic in the dtypes that came in, also where the caller has autocast on."""
    with torch.autocast(device.type, enabled=False):
        yield


def dropped_attention_blocks(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> Tensor:
    batch, heads, length, dim = q.shape
    groups, on_logits = batch * heads, dropout_on == "logits"
    keep_scale = 1 / (1 - dropout_p)
    scale = dim**-0.5 * (keep_scale if on_logits else 1)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out = q.new_empty((groups, length, v.shape[2]))
    dropped = _dropped(seed, groups, length, dropout_p)
    with _as_given(q.device):
        for group, rows, keys in _blocks(groups, length):
            drop = dropped[group, rows, keys]
            weights = _weights(
                q[group, rows], k[group, keys], scale, drop if on_logits else None,
                _future(rows, q.device),
            )  # fmt: skip
            if not on_logits:
                weights = weights.masked_fill_(drop, 0).mul_(keep_scale)
            out[group, rows] = torch.bmm(weights, v[group, keys])
    out[:, :1] = 0
    return out.unflatten(0, (batch, heads))


def dropped_attention_backward_blocks(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_on: str, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, dim = q.shape
    groups, on_logits = batch * heads, dropout_on == "logits"
    keep_scale = 1 / (1 - dropout_p)
    scale = dim**-0.5 * (keep_scale if on_logits else 1)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    dout = dout.flatten(0, 1).clone()
    dout[:, :1] = 0
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    dropped = _dropped(seed, groups, length, dropout_p)
    with _as_given(q.device):
        for group, rows, keys in _blocks(groups, length):
            drop = dropped[group, rows, keys]
            weights = _weights(
                q[group, rows], k[group, keys], scale, drop if on_logits else None,
                _future(rows, q.device),
            )  # fmt: skip
            dweights = torch.bmm(dout[group, rows], v[group, keys].transpose(1, 2))
            kept = weights
            if not on_logits:
                kept = weights.masked_fill(drop, 0).mul_(keep_scale)
                dweights.masked_fill_(drop, 0).mul_(keep_scale)
            dv[group, keys] += torch.bmm(kept.transpose(1, 2), dout[group, rows])
            dlogits = torch._softmax_backward_data(dweights, weights, 2, weights.dtype)
            if on_logits:
                dlogits.masked_fill_(drop, 0)
            dlogits *= scale
            dq[group, rows] = torch.bmm(dlogits, k[group, keys])
            dk[group, keys] += torch.bmm(dlogits.transpose(1, 2), q[group, rows])
    shape = (batch, heads)
    return dq.unflatten(0, shape), dk.unflatten(0, shape), dv.unflatten(0, shape)
