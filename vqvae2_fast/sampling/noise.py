"""The noise of a draw, made row by row of the map to save memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.modules.index_range import check_range
from vqvae2_fast.ops._checks import checked_integer

__all__ = ["DrawNoise"]


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
