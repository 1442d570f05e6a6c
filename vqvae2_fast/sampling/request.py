"""The checked arguments of a draw, which every engine receives, its noise and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.modules.index_range import check_range
from vqvae2_fast.ops._checks import checked_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = ["DrawNoise", "DrawRequest", "Drawn", "EngineError", "beyond", "log_prob_of"]


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
class DrawNoise:
    """Standard Gumbel noise of a map: a given tensor, or a function of seed and sample number.

    Args:
        batch_size: B; row b of the batch is sample `first_sample + b`.
        width: W.
        stream: Number of the noise stream: that of the level, 0 for the coarsest.
        given: float32 `[B, H, W, K]`, or None: then the noise is `ops.gumbel_noise`.
        rows: int64 `[B, 2]`: the seed, as its 64 bits, and the sample number of each row of the
            batch, in place of `seed` and `first_sample`.

    Raises:
        ValueError: A stream or sample number that does not fit into Philox's counter.
    """

    batch_size: int
    width: int
    num_embeddings: int
    device: torch.device
    seed: int = 0
    first_sample: int = 0
    stream: int = 0
    given: Tensor | None = None
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        # The operator checks these too, but a compiled engine makes its noise without the operator.
        checked_integer("stream", self.stream, 0, 2**16 - 1)
        checked_integer("first_sample", self.first_sample, 0, 2**32 - self.batch_size)
        if self.rows is not None:
            check_range("the sample numbers in rows[:, 1]", self.rows[:, 1], 0, 2**32)

    def row(self, i: int) -> Tensor:
        """float32 `[B, W, K]`: the noise of map row i."""
        if self.given is not None:
            return self.given[:, i]
        positions = i * self.width + torch.arange(self.width, device=self.device)
        if self.rows is not None:
            made = [
                self._made(int(row[0]), row[1:].to(self.device), positions) for row in self.rows
            ]
            return torch.cat(made)
        samples = self.first_sample + torch.arange(self.batch_size, device=self.device)
        return self._made(self.seed, samples, positions)

    def table(self, height: int) -> Tensor | None:
        """float32 `[B, H, W, K]` for an engine that cannot make it; None where seed and first
        sample say it all."""
        if self.rows is None:
            return self.given
        return torch.stack([self.row(i) for i in range(height)], dim=1)

    def _made(self, seed: int, samples: Tensor, positions: Tensor) -> Tensor:
        return ops.gumbel_noise(
            samples, positions, self.num_embeddings, seed=seed, stream=self.stream
        )


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
