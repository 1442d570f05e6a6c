"""The rule of a draw, checked once. What it does to logits is defined by `ops.draw_codes`:

logits → guidance → ÷ temperature → top-k → top-p → + Gumbel noise → argmax, lowest index on ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqvae2_fast.ops.draw_codes.op import DRAW_CODES, check_rule
from vqvae2_fast.ops.draw_codes.reference import drawn, filtered, guided, tempered

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.ops.draw_codes.reference import DrawScratch

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
        check_rule("sample_codes", self.temperature, self.top_k, self.top_p, self.guidance_scale)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return guided(conditional, unconditional, self.guidance_scale)

    def draw(
        self,
        logits: Tensor,
        noise: Tensor,
        unconditional: Tensor | None = None,
        *,
        known: Tensor | None = None,
    ) -> Tensor:
        """`ops.draw_codes` without its checks: codes int64 `[B]`."""
        codes, _ = DRAW_CODES(
            logits,
            unconditional,
            noise,
            known,
            self.temperature,
            self.top_k or 0,
            self.top_p or 1.0,
            self.guidance_scale,
            False,
        )
        return codes

    def draw_into(
        self,
        codes: Tensor,
        logits: Tensor,
        noise: Tensor,
        unconditional: Tensor | None,
        scratch: DrawScratch,
    ) -> None:
        """The same into `codes`, by the operator's owner or in the buffers of `scratch`."""
        if logits.device.type != "cpu":
            codes.copy_(self.draw(logits, noise, unconditional))
            return
        if unconditional is not None:
            logits = guided(logits, unconditional, self.guidance_scale, scratch)
        drawn(logits, noise, self.temperature, self.top_k or 0, self.top_p or 1.0, scratch, codes)

    def tempered(self, logits: Tensor) -> Tensor:
        return tempered(logits, self.temperature)

    def kept(self, logits: Tensor) -> Tensor:
        """The tempered logits `[B, K]` with −∞ for codes that the filters leave out."""
        return filtered(logits, self.top_k or 0, self.top_p or 1.0)
