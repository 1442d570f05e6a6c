"""Reference of `draw_codes`, and its single steps from logits to a code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DrawScratch", "draw_codes_reference", "drawn", "filtered", "guided", "tempered"]


@dataclass(frozen=True)
class DrawScratch:
    """Where a draw writes its results: None for new tensors, or buffers that every draw reuses.

    Args:
        guided, tempered, ordered, probabilities, cumulative, kept, noisy: float32 `[B, K]`.
        order: int64 `[B, K]`.
        dropped: bool `[B, K]`.
    """

    guided: Tensor | None = None
    tempered: Tensor | None = None
    ordered: Tensor | None = None
    order: Tensor | None = None
    probabilities: Tensor | None = None
    cumulative: Tensor | None = None
    dropped: Tensor | None = None
    kept: Tensor | None = None
    noisy: Tensor | None = None

    @classmethod
    def like(cls, logits: Tensor) -> DrawScratch:
        """Buffers for logits `[B, K]`."""
        names = ("guided", "tempered", "ordered", "probabilities", "cumulative", "kept", "noisy")
        return cls(
            **{name: torch.empty_like(logits) for name in names},
            order=torch.empty_like(logits, dtype=torch.int64),
            dropped=torch.empty_like(logits, dtype=torch.bool),
        )


_NEW = DrawScratch()


def guided(
    conditional: Tensor, unconditional: Tensor, scale: float, scratch: DrawScratch = _NEW
) -> Tensor:
    """u + s·(c − u)."""
    difference = torch.sub(conditional, unconditional, out=scratch.guided)
    return difference.mul_(scale).add_(unconditional)


def tempered(logits: Tensor, temperature: float, scratch: DrawScratch = _NEW) -> Tensor:
    if temperature == 1:
        return logits
    return torch.div(logits, temperature, out=scratch.tempered)


def filtered(logits: Tensor, top_k: int, top_p: float, scratch: DrawScratch = _NEW) -> Tensor:
    """Tempered logits `[B, K]` with −∞ for codes that the filters leave out; top_k 0 keeps all."""
    top_k = min(top_k or logits.shape[1], logits.shape[1])
    if top_k == logits.shape[1] and top_p == 1.0:
        return logits
    # The sort is stable: equal logits stay in the order of their indices.
    buffers = None
    if scratch.ordered is not None and scratch.order is not None:
        buffers = (scratch.ordered, scratch.order)
    ordered, codes = torch.sort(logits, dim=1, descending=True, stable=True, out=buffers)
    ordered[:, top_k:].fill_(-torch.inf)
    if top_p < 1.0:
        probabilities = torch.softmax(ordered, dim=1, out=scratch.probabilities)
        cumulative = torch.cumsum(probabilities, dim=1, out=scratch.cumulative)
        # A code is kept if those before it have less than p in all; the first is always kept.
        dropped = torch.ge(cumulative, top_p, out=scratch.dropped)
        ordered[:, 1:].masked_fill_(dropped[:, :-1], -torch.inf)
    kept = torch.empty_like(logits) if scratch.kept is None else scratch.kept
    return kept.scatter_(1, codes, ordered)


def drawn(
    scores: Tensor,
    noise: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    scratch: DrawScratch = _NEW,
    out: Tensor | None = None,
) -> Tensor:
    """Codes int64 `[B]` of guided logits; `out` takes them."""
    if temperature > 0:
        kept = filtered(tempered(scores, temperature, scratch), top_k, top_p, scratch)
        scores = torch.add(kept, noise, out=scratch.noisy)
    return torch.argmax(scores, dim=1, out=out)


def draw_codes_reference(
    logits: Tensor,
    unconditional: Tensor | None,
    noise: Tensor,
    known: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    guidance_scale: float,
    log_prob: bool,
) -> tuple[Tensor, Tensor]:
    scores = logits if unconditional is None else guided(logits, unconditional, guidance_scale)
    codes = drawn(scores, noise, temperature, top_k, top_p)
    if known is not None:
        codes = torch.where(known >= 0, known, codes)
    if not log_prob:
        return codes, logits.new_empty(0)
    return codes, logits.log_softmax(dim=1).gather(1, codes[:, None])[:, 0]
