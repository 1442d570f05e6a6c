"""From logits to a code: guidance, temperature, filters, noise. Every engine draws by this file.

logits → guidance → ÷ temperature → top-k → top-p → + Gumbel noise → argmax, lowest index on ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DrawingRule"]


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

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """logits (guided) and noise `[B, K]`, float32 -> codes int64 `[B]`."""
        if self.temperature == 0:
            return logits.argmax(dim=1)
        return (self.kept(self.tempered(logits)) + noise).argmax(dim=1)

    def tempered(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature

    def kept(self, logits: Tensor) -> Tensor:
        """The tempered logits `[B, K]` with −∞ for codes that the filters leave out."""
        top_k = min(self.top_k or logits.shape[1], logits.shape[1])
        top_p = self.top_p or 1.0
        if top_k == logits.shape[1] and top_p == 1.0:
            return logits
        # Stable: equal logits stay in the order of their index.
        ordered, codes = logits.sort(dim=1, descending=True, stable=True)
        ordered, codes = ordered[:, :top_k], codes[:, :top_k]
        if top_p < 1.0:
            cumulative = ordered.softmax(dim=1).cumsum(dim=1)
            # A code stays while those before it have less than p; the first always does.
            dropped = torch.zeros_like(cumulative, dtype=torch.bool)
            dropped[:, 1:] = cumulative[:, :-1] >= top_p
            ordered = ordered.masked_fill(dropped, -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter(1, codes, ordered)
