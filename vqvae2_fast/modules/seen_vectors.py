"""The vectors of this process, with their place among those of all processes.

Sizes: N vectors, D embedding_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vqvae2_fast.modules.codebook import Span, spans_of
from vqvae2_fast.modules.outside_transforms import outside_transforms

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["SeenVectors"]


class SeenVectors:
    """The vectors of the latest forward, or of all parts of a batch.

    Attributes:
        rows: `[N, D]` each.
        firsts, total: Numbers of their first rows among those of all processes, and N_global;
            [] and -1 where the processes have to be asked.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.rows: list[Tensor] = []
        self.firsts: list[int] = []
        self.total = -1

    def keep(self, z: Tensor, part: BatchPart | None) -> None:
        """Take z `[B, ..., D]` in place of what was kept, or beside other parts of its batch."""
        rows = _rows(z)
        if part is None:
            self.rows, self.firsts, self.total = [rows], [], -1
            return
        each = math.prod(z.shape[1:-1])  # vectors of a sample
        self.rows = [*self.rows, rows]
        self.firsts = [*self.firsts, part.first * each]
        self.total = part.total * each

    def spans(self) -> list[Span]:
        """As `spans_of`."""
        return spans_of(self.rows, self.firsts, self.total)


@outside_transforms
def _rows(z: Tensor) -> Tensor:
    return z.detach().reshape(-1, z.shape[-1])
