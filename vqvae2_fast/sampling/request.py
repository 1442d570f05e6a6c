"""The checked arguments of a draw, which every engine receives, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from vqvae2_fast.sampling.noise import DrawNoise
    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = ["DrawRequest", "Drawn", "EngineError", "beyond", "log_prob_of"]


class EngineError(RuntimeError, ValueError):
    """An engine that was asked for by name cannot draw what it was asked for."""

    @classmethod
    def refusing(cls, engine: str, reason: str, device: torch.device, needed: str) -> EngineError:
        """Why an engine for devices of the type `needed` does not draw from a prior on `device`,
        and what does."""
        others = "with engine='auto', which takes an engine that can"
        remedy = f"Draw {others}."
        if device.type != needed and (needed != "cuda" or torch.cuda.is_available()):
            remedy = f"Move it with device={needed}, or draw {others}."
        elif device.type != needed:
            reason += ", and PyTorch finds no GPU to move it to"
        return cls(f"engine {engine}: {reason}. {remedy}")


@dataclass(frozen=True)
class DrawRequest:
    """The checked arguments of a draw, all on the prior's device.

    Args:
        batch_size: B.
        maps: Coarser maps, int64 `[B, h, w]`, coarse to fine.
        labels: int64 `[B]`, or None for a prior without classes.
        known: int64 `[B, H, W]`, -1 where a code is to be drawn; None draws all.
        want_logits: Also return the raw logits of every position.
        progress: Called with (rows done, rows of the map) after each row.
        on_row: Called with (row, a copy of its codes, int64 `[B, W]`) after each row, before
            `progress`.
        want_intervals: Also return each code's interval for the entropy coder; only engine `cpu`.
        streams: For each sample, the int32 words of a range coder from which codes are read instead
            of being drawn; only engine `cpu`.
    """

    batch_size: int
    maps: list[Tensor]
    labels: Tensor | None
    known: Tensor | None
    noise: DrawNoise
    settings: DrawSettings
    want_log_prob: bool = False
    want_logits: bool = False
    progress: Callable[[int, int], None] | None = None
    on_row: Callable[[int, Tensor], None] | None = None
    want_intervals: bool = False
    streams: Sequence[Tensor] = ()

    @property
    def watched(self) -> bool:
        """Whether somebody waits for each row."""
        return self.progress is not None or self.on_row is not None

    def row_done(self, codes: Tensor, rows: int) -> None:
        """Engines call this when the first `rows` rows of codes `[B, H, W]` are drawn."""
        if self.on_row is not None:
            self.on_row(rows - 1, codes[:, rows - 1].clone())
        if self.progress is not None:
            self.progress(rows, codes.shape[1])


@dataclass(frozen=True)
class Drawn:
    """The result of a draw.

    Args:
        codes: int64 `[B, H, W]`.
        log_prob: float32 `[B, H, W]`, of the raw model: before guidance, temperature and filters.
        logits: float32 `[B, K, H, W]`, also of the raw model.
        intervals: int32 `[B, H, W, 2]`: the beginning of each code's interval in [0, 2²⁴) and its
            size.
        finished: Whether each stream ended where its encoder did.
        effective: float64 `[B]`: the effective number of candidates, see `draw_candidates`.
        clamped: Of engine `cpu_w8a8`: how many inputs were clamped to the
            calibration's ranges, and how many were rounded.
    """

    codes: Tensor
    log_prob: Tensor | None = None
    logits: Tensor | None = None
    intervals: Tensor | None = None
    finished: Sequence[bool] = ()
    effective: Tensor | None = None
    clamped: tuple[int, int] = (0, 0)


def beyond(logits: Tensor, settings: DrawSettings) -> Tensor:
    """Whether some logits are NaN or too large for a draw: a bool on their device."""
    return ~(logits.abs() <= settings.largest_logit).all()


def log_prob_of(logits: Tensor, codes: Tensor) -> Tensor:
    """logits `[..., K]`, codes `[...]` -> float32 `[...]`: log-probability of each code."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
