"""The vectors that a codebook learns from, of this process and with those of all others.

Everything chosen among the N_global vectors of all processes (in the order of the ranks) is a
function of a seed, and every collective call has a fixed size, so each process comes to the same
codebook. Nothing here synchronises a GPU with its host.

Sizes: N vectors of this process, K codes, D embedding_dim.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.ops._batch_part import present_part
from vqvae2_fast.ops.gumbel_noise.op import PURPOSE_RESTART, random_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = [
    "NO_VECTORS",
    "Batch",
    "Span",
    "Vectors",
    "all_reduce_",
    "drop_non_finite_",
    "finite_rows",
    "is_distributed",
    "kmeans",
    "statistics_of",
    "words_of_step",
]

_LLOYD_ITERATIONS = 10

# The number of the first of some rows, counted over all processes, and the number of all rows.
Span = tuple[Tensor | int, Tensor | int]


def is_distributed() -> bool:
    """Whether there are other processes to sum with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_(tensor: Tensor) -> None:
    """Sum over the processes of the default group, in place; nothing without a group."""
    if is_distributed():
        dist.all_reduce(tensor)


def _span_of_ranks(own: Tensor) -> Span:
    """Number of this process's first row among those of all, and N_global; int64, 0-d."""
    if not is_distributed():
        return torch.zeros_like(own), own
    rank = dist.get_rank()
    counts = own.new_zeros(dist.get_world_size())
    counts[rank] = own
    dist.all_reduce(counts)
    return counts[:rank].sum(), counts.sum()


def words_of_step(numbers: Tensor, step: Tensor, *, seed: int, stream: int, purpose: int) -> Tensor:
    """Random words of a training step, one for each of int64 numbers; alike on all processes."""
    sample = torch.zeros_like(step)
    return random_words(numbers, step, sample, seed=seed, stream=stream, purpose=purpose)


class Vectors(NamedTuple):
    """Vectors of this process: of a forward, or of several parts of a batch.

    Attributes:
        rows: `[N, D]` each.
        masks: bool `[N]`, the rows that count, of the only part; [] if all count.
        firsts, total: Number of the first row of each part among those of all processes, and
            N_global; [] and -1 where the processes have to be asked.
    """

    rows: list[Tensor]
    masks: list[Tensor]
    firsts: list[int]
    total: int

    def and_part(self, z: Tensor, mask: Tensor | None, part: BatchPart | None) -> Vectors:
        """With z `[B, ..., D]` beside the other parts of its batch, or in place of all there was.

        How many rows a mask `[B, ...]` leaves is known only on the device: the processes are asked.
        """
        rows = z.detach().reshape(-1, z.shape[-1])
        if mask is not None:
            return Vectors([rows], [mask.reshape(-1)], [], -1)
        if part is None:
            return Vectors([rows], [], [], -1)
        each = math.prod(z.shape[1:-1])  # vectors of a sample
        return Vectors([*self.rows, rows], [], [*self.firsts, part.first * each], part.total * each)

    def spans(self) -> list[Span]:
        """The place of each part among the rows that count."""
        if self.total >= 0:
            return [(first, self.total) for first in self.firsts]
        rows = self.rows[0]
        if self.masks:
            return [_span_of_ranks(self.masks[0].sum())]
        return [_span_of_ranks(torch.full((), len(rows), dtype=torch.int64, device=rows.device))]

    def drawn(
        self, num_embeddings: int, spans: list[Span], step: Tensor, *, seed: int, stream: int
    ) -> Tensor:
        """Each code's vector of this step if this process has it, else zeros: `[K, D]` float32.

        Code k gets global row philox(seed, step, k) mod N_global (purpose "restart"): the sum over
        the processes holds all of them. With N_global = 0 all are zeros.

        Args:
            step: int64, 0-d: updates so far, counting the present one; 0 for the start of k-means.
            stream: Level of the codebook, 0 the coarsest.
        """
        codes = torch.arange(num_embeddings, device=step.device)
        words = words_of_step(codes, step, seed=seed, stream=stream, purpose=PURPOSE_RESTART)
        masks: Sequence[Tensor | None] = self.masks or [None] * len(self.rows)
        found = [
            _rows_at(rows, mask, words, span)
            for rows, mask, span in zip(self.rows, masks, spans, strict=True)
        ]
        return functools.reduce(torch.add, found)


NO_VECTORS = Vectors([], [], [], -1)


def _rows_at(rows: Tensor, mask: Tensor | None, words: Tensor, span: Span) -> Tensor:
    """The rows whose numbers words mod N_global are, zeros for those of others: `[K, D]`."""
    if len(rows) == 0:
        return rows.new_zeros(len(words), rows.shape[1], dtype=torch.float32)
    first, total = span
    if mask is None:
        number = words % total - first  # [K]
        inside = (number >= 0) & (number < len(rows))
    else:
        # Numbers are those of the rows that count. Row n stands where n + 1 of them are reached.
        assert isinstance(total, Tensor)
        reached = mask.cumsum(0)  # [N]
        number = words % total.clamp(min=1) - first
        inside = (number >= 0) & (number < reached[-1])
        number = torch.searchsorted(reached, number + 1)
    found = rows.index_select(0, number.clamp(0, len(rows) - 1)).float()  # [K, D]
    return found.masked_fill_(~inside[:, None], 0.0)


class Batch:
    """What training forwards leave for the next update of a codebook.

    These are no buffers: at each forward DistributedDataParallel would overwrite them with those of
    rank 0.

    Attributes:
        vectors: Of the latest forward, or of all parts of a batch (`batch_part`), for restarts.
        counts: int64, `[K]`: how often each code was used since the latest update.
        sums: `[K, D]`, of the vectors of each code, in the codebook's dtype.
    """

    def __init__(self, codebook: Tensor) -> None:
        self.vectors = NO_VECTORS
        self.counts = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
        # Not `zeros_like`, for which torch imports sympy on the meta device (0.4 s).
        self.sums = torch.zeros(codebook.shape, dtype=codebook.dtype, device=codebook.device)

    def apply_(self, function: Callable[[Tensor], Tensor]) -> None:
        """Convert or move them, as `nn.Module._apply` does with buffers."""
        self.counts, self.sums = function(self.counts), function(self.sums)

    def add_(self, counts: Tensor, sums: Tensor) -> None:
        # `fully_shard`, for one, moves a module's buffers without telling the module.
        if self.sums.device != sums.device:
            self.forget_(sums.device)
        self.counts.add_(counts)
        self.sums.add_(sums)

    def keep(self, z: Tensor, mask: Tensor | None) -> None:
        self.vectors = self.vectors.and_part(z, mask, present_part())

    def seen(self) -> Vectors:
        """The vectors, in one part at least."""
        if self.vectors.rows:
            return self.vectors
        return NO_VECTORS.and_part(self.sums[:0], None, None)

    def forget_(self, device: torch.device) -> None:
        """Start at zero, on the device."""
        self.vectors = NO_VECTORS
        if self.sums.device == device:
            self.counts.zero_()
            self.sums.zero_()
        else:
            self.counts = torch.zeros(self.counts.shape, dtype=torch.int64, device=device)
            self.sums = torch.zeros(self.sums.shape, dtype=self.sums.dtype, device=device)


def statistics_of(
    z: Tensor, indices: Tensor, mask: Tensor | None, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    """`ops.code_statistics` of the vectors that count: mask bool `[...]`, or None for all."""
    if mask is None:
        return ops.code_statistics(z, indices, num_embeddings)
    # The others are given to one code more, which is dropped.
    indices = indices.masked_fill(~mask, num_embeddings)
    counts, sums = ops.code_statistics(z, indices, num_embeddings + 1)
    return counts[:-1], sums[:-1]


def finite_rows(rows: Tensor) -> Tensor:
    """Which rows of `[K, D]` hold neither NaN nor infinity: bool `[K]`."""
    # The extremes of a row show them, without a second `[K, D]`. `isfinite().all(1)` takes 20 times
    # as long on 512×64 (two AVX2 cores).
    return rows.amax(1).isfinite() & rows.amin(1).isfinite()


def drop_non_finite_(counts: Tensor, sums: Tensor) -> None:
    """Set to 0 the statistics `[K]`, `[K, D]` of codes that took a vector with NaN or infinity.

    One such vector in a moving average would make its code NaN for good.
    """
    bad = ~finite_rows(sums)
    counts.masked_fill_(bad, 0)
    sums.masked_fill_(bad[:, None], 0)


def kmeans(
    vectors: Vectors, num_embeddings: int, spans: list[Span], *, seed: int, stream: int
) -> Tensor:
    """K means of the vectors of all processes, `[K, D]` float32, by ten Lloyd iterations.

    It starts from rows drawn with replacement (`Vectors.drawn`, step 0), so N_global < K is not a
    special case. A cluster without vectors keeps its mean. Vectors with NaN or infinity move none.
    """
    rows = vectors.rows
    start = torch.zeros((), dtype=torch.int64, device=rows[0].device)
    means = vectors.drawn(num_embeddings, spans, start, seed=seed, stream=stream)
    all_reduce_(means)
    means.masked_fill_(~finite_rows(means)[:, None], 0.0)
    masks: Sequence[Tensor | None] = vectors.masks or [None] * len(rows)
    for _ in range(_LLOYD_ITERATIONS):
        # All searches first and the rest in place: at K = 65,536 a `[K, D]` more counts.
        nearest = [ops.nearest_code(part, means)[0] for part in rows]
        each = zip(rows, nearest, masks, strict=True)
        counts, sums = statistics_of(*next(each), num_embeddings)
        for part in each:
            more_counts, more_sums = statistics_of(*part, num_embeddings)
            counts += more_counts
            sums += more_sums
        all_reduce_(counts)
        all_reduce_(sums)
        drop_non_finite_(counts, sums)
        sums /= counts[:, None].clamp(min=1)
        torch.where(counts[:, None] > 0, sums, means, out=means)
        del sums
    return means
