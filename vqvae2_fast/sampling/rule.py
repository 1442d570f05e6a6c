"""From logits to a code: guidance, temperature, filters, noise. Every engine draws by this file.

logits → guidance → ÷ temperature → top-k → top-p → + Gumbel noise → argmax, lowest index on ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DrawScratch", "DrawingRule"]


@dataclass(frozen=True)
class DrawScratch:
    """Where a draw puts what it computes: None for new tensors, or buffers that serve every draw.

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


@dataclass(frozen=True)
class DrawingRule:
    """How a code is drawn from logits.

    Args:
        temperature: Divides the logits; 0 takes the best code, whatever the noise.
        top_k: Keep the k best codes by (logit descending, index ascending); None for all.
        top_p: Of what top-k left, in that order, keep the shortest prefix whose cumulative float32
            probability is at least p, one code at least; None or 1 for all.
        guidance_scale: s in u + s·(c − u), c the logits with the class and u without (classifier-
            free guidance, https://arxiv.org/abs/2207.12598); 1 is no guidance.

    Raises:
        ValueError: A value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"sample_codes: expected temperature >= 0 and finite, got {self.temperature}."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"sample_codes: expected top_k >= 1 or None, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"sample_codes: expected top_p in (0, 1] or None, got {self.top_p}.")
        if not abs(self.guidance_scale) < float("inf"):
            raise ValueError(
                f"sample_codes: expected a finite guidance_scale, got {self.guidance_scale}."
            )

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    def guide(
        self, conditional: Tensor, unconditional: Tensor, scratch: DrawScratch = _NEW
    ) -> Tensor:
        difference = torch.sub(conditional, unconditional, out=scratch.guided)
        return difference.mul_(self.guidance_scale).add_(unconditional)

    def draw(
        self,
        logits: Tensor,
        noise: Tensor,
        scratch: DrawScratch = _NEW,
        out: Tensor | None = None,
    ) -> Tensor:
        """logits (guided) and noise `[B, K]`, float32 -> codes int64 `[B]`."""
        if self.temperature == 0:
            return torch.argmax(logits, dim=1, out=out)
        kept = self.kept(self.tempered(logits, scratch), scratch)
        return torch.argmax(torch.add(kept, noise, out=scratch.noisy), dim=1, out=out)

    def tempered(self, logits: Tensor, scratch: DrawScratch = _NEW) -> Tensor:
        if self.temperature == 1:
            return logits
        return torch.div(logits, self.temperature, out=scratch.tempered)

    def kept(self, logits: Tensor, scratch: DrawScratch = _NEW) -> Tensor:
        """The tempered logits `[B, K]` with −∞ for codes that the filters leave out."""
        top_k = min(self.top_k or logits.shape[1], logits.shape[1])
        top_p = self.top_p or 1.0
        if top_k == logits.shape[1] and top_p == 1.0:
            return logits
        # Stable: equal logits stay in the order of their index.
        buffers = None if scratch.ordered is None else (scratch.ordered, scratch.order)
        ordered, codes = torch.sort(logits, dim=1, descending=True, stable=True, out=buffers)
        ordered[:, top_k:].fill_(-torch.inf)
        if top_p < 1.0:
            probabilities = torch.softmax(ordered, dim=1, out=scratch.probabilities)
            cumulative = torch.cumsum(probabilities, dim=1, out=scratch.cumulative)
            # A code stays while those before it have less than p; the first always does.
            dropped = torch.ge(cumulative, top_p, out=scratch.dropped)
            ordered[:, 1:].masked_fill_(dropped[:, :-1], -torch.inf)
        kept = torch.empty_like(logits) if scratch.kept is None else scratch.kept
        return kept.scatter_(1, codes, ordered)
