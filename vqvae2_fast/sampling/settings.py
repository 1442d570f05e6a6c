"""The settings of a draw: one object, checked once, that travels from the caller to the engines.

What they do to logits is defined by `ops.draw_codes`:

logits → guidance → ÷ temperature → top-k → top-p → + Gumbel noise → argmax, lowest index on ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from vqvae2_fast.ops._checks import checked_integer
from vqvae2_fast.ops.draw_codes.op import (
    DRAW_CODES,
    check_rule,
    filtered,
    share_kept,
    tempered,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DrawSettings", "level_settings"]

_LARGEST = 2.0**127  # of float32, without its last binade


@dataclass(frozen=True)
class DrawSettings:
    """How the codes of one map are drawn.

    Args:
        temperature: Divides the logits; 0 takes the best code, whatever the noise.
        top_k: Keep the k best codes by (logit descending, index ascending); None keeps all.
        top_p: Of the codes that top-k left, in that order, keep the shortest prefix whose
            cumulative float32 probability is at least p, and at least one code; None or 1 keeps
            all.
        guidance_scale: s in u + s·(c − u), where c are the logits with the class and u those
            without it (classifier-free guidance, https://arxiv.org/abs/2207.12598); 1 is no
            guidance.
        seed: Key of the noise.
        engine: See `sample_codes`.

    Raises:
        ValueError: A value that is out of range or of the wrong type.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    seed: int = 0
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_rule(self.temperature, self.top_k, self.top_p, self.guidance_scale)
        # Make them plain numbers, whatever their type was, because they are written as JSON.
        plain = {
            "temperature": float(self.temperature),
            "top_k": None if self.top_k is None else int(self.top_k),
            "top_p": None if share_kept(self.top_p) == 1 else float(self.top_p or 1),
            "guidance_scale": float(self.guidance_scale),
            "seed": checked_integer("seed", self.seed, -(2**63), 2**64 - 1),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def largest_logit(self) -> float:
        """The absolute value up to which logits stay finite in float32 through a draw."""
        factor = 1 + 2 * abs(self.guidance_scale) if self.guided else 1.0
        return _LARGEST / (4 * factor) * min(self.temperature or 1.0, 1.0)

    def rule(self) -> DrawSettings:
        """The settings on which the steps of a draw depend, to compare draws."""
        return replace(self, seed=0, engine="auto")

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

    def tempered(self, logits: Tensor) -> Tensor:
        return tempered(logits, self.temperature)

    def kept(self, logits: Tensor) -> Tensor:
        """The tempered logits `[B, K]` with −∞ for codes that the filters leave out."""
        return filtered(logits, self.top_k or 0, self.top_p or 1.0)


def level_settings(num_levels: int, **settings: Any) -> tuple[DrawSettings, ...]:
    """The settings of each level, coarse to fine.

    Args:
        settings: Fields of `DrawSettings`, each one value or a list of one value per level; the
            seed is one for all levels, which draw different noise of it.

    Raises:
        ValueError: A value out of range, a list of another length, or a list of seeds.
        TypeError: A name that is not a setting.
    """
    names = [setting.name for setting in fields(DrawSettings)]
    for name, value in settings.items():
        if name not in names:
            raise TypeError(f"{name!r} is no setting; expected one of {', '.join(names)}.")
        if name == "seed" and _is_list(value):
            raise ValueError(
                f"expected seed to be one integer for all levels, got {value!r}: each "
                "level draws noise of its own from it."
            )
        if _is_list(value) and len(value) != num_levels:
            raise ValueError(
                f"expected {name} to be one value or {num_levels}, one per level "
                f"coarse to fine, got {len(value)}."
            )
    return tuple(
        DrawSettings(
            **{
                name: value[level] if _is_list(value) else value for name, value in settings.items()
            },
        )
        for level in range(num_levels)
    )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
