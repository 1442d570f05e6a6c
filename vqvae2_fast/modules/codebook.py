"""What a codebook needs besides lookups: a start, vectors for restarts, its usage.

Sizes: N vectors of this process, K codes, D embedding_dim. Everything here is the same on every
process of a group: a choice among the N_global vectors of all processes (in the order of the ranks)
is a function of a seed, and every collective call has a fixed size. Nothing here synchronises a GPU
with its host.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.modules.outside_transforms import outside_transforms
from vqvae2_fast.ops.gumbel_noise.op import PURPOSE_RESTART, random_word, random_words

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Span",
    "all_reduce_",
    "drawn_rows",
    "drop_non_finite_",
    "finite_rows",
    "initial_codebook",
    "is_distributed",
    "kmeans",
    "perplexity",
    "rows_at",
    "span_of_ranks",
    "spans_of",
    "stacked_codebooks",
    "unpack",
]

_LLOYD_ITERATIONS = 10

# Number of the first of some rows among those of all processes, and how many all are.
Span = tuple[Tensor | int, Tensor | int]


def is_distributed() -> bool:
    """Whether there are other processes to sum with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_(tensor: Tensor) -> None:
    """Sum over the processes of the default group, in place; nothing without a group."""
    if is_distributed():
        dist.all_reduce(tensor)


def span_of_ranks(num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of this process's first row among those of all, and N_global; int64, 0-d."""
    total = torch.full((), num_rows, dtype=torch.int64, device=device)
    if not is_distributed():
        return torch.zeros_like(total), total
    rank = dist.get_rank()
    counts = total.new_zeros(dist.get_world_size())
    counts[rank] = num_rows
    dist.all_reduce(counts)
    return counts[:rank].sum(), counts.sum()


def rows_at(
    z: Tensor,
    num_embeddings: int,
    span: Span,
    step: Tensor,
    *,
    seed: int,
    stream: int,
) -> Tensor:
    """Each code's vector of this step if this process has it, else zeros: `[K, D]` float32.

    Code k gets global row philox(seed, step, k) mod N_global (purpose "restart"): the sum over the
    processes holds all of them. With N_global = 0 all are zeros.

    Args:
        z: Vectors of this process, `[N, D]`; N may be 0.
        span: From `span_of_ranks`.
        step: int64, 0-d: updates so far, counting the present one; 0 for the start of k-means.
        stream: Level of the codebook, 0 the coarsest.
    """
    num_rows, dim = z.shape
    if num_rows == 0:
        return z.new_zeros(num_embeddings, dim, dtype=torch.float32)
    first, total = span
    codes = torch.arange(num_embeddings, device=z.device)
    sample = torch.zeros_like(step)
    words = random_words(codes, step, sample, seed=seed, stream=stream, purpose=PURPOSE_RESTART)
    row = words % total - first  # [K]
    rows = z.index_select(0, row.clamp(0, num_rows - 1)).float()  # [K, D]
    return rows.masked_fill_(((row < 0) | (row >= num_rows))[:, None], 0.0)


def unpack(packed: Tensor, num_embeddings: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts `[K]`, sums `[K, D]` and the rest, from the flat buffer of one all-reduce."""
    size = num_embeddings * dim
    counts, sums, rest = packed.split([num_embeddings, size, len(packed) - num_embeddings - size])
    return counts, sums.view(num_embeddings, dim), rest


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


def initial_codebook(num_embeddings: int, dim: int, *, init: str, seed: int, stream: int) -> Tensor:
    """The codebook before any data, `[K, D]` float32: a function of only the seed and the
    stream."""
    # A word made from both, because the generator uses only 32 bits of its seed.
    word = random_word(seed=seed, stream=stream, purpose=PURPOSE_RESTART)
    generator = torch.Generator().manual_seed(word)
    shape, dtype = (num_embeddings, dim), torch.float32  # whatever torch's default is
    if init == "uniform":
        # VarianceScaling(distribution="uniform") of sonnet's VectorQuantizerEMA, fan-in D.
        limit = (3.0 / dim) ** 0.5
        codebook = torch.rand(shape, generator=generator, dtype=dtype, device="cpu")
        codebook = codebook * (2 * limit) - limit
    else:
        codebook = torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
    return codebook.to(torch.get_default_device())


def spans_of(rows: list[Tensor], firsts: list[int], total: int) -> list[Span]:
    """Of each part of the vectors: its first row among all of them, and N_global.

    Args:
        rows: Vectors of this process, `[N, D]` each.
        firsts, total: What is known of this, or [] and -1: then `rows` are one part, and the
            processes are asked.
    """
    if total < 0:
        return [span_of_ranks(len(rows[0]), rows[0].device)]
    return [(first, total) for first in firsts]


def drawn_rows(
    rows: list[Tensor],
    num_embeddings: int,
    spans: list[Span],
    step: Tensor,
    *,
    seed: int,
    stream: int,
) -> Tensor:
    """`rows_at` of several parts of this process's vectors."""
    found = [
        rows_at(part, num_embeddings, span, step, seed=seed, stream=stream)
        for part, span in zip(rows, spans, strict=True)
    ]
    return functools.reduce(torch.add, found)


def kmeans(
    rows: list[Tensor],
    num_embeddings: int,
    spans: list[Span],
    *,
    seed: int,
    stream: int,
) -> Tensor:
    """K means of the vectors of all processes, `[K, D]` float32, by ten Lloyd iterations.

    It starts from rows drawn with replacement (`rows_at`, step 0), so N_global < K is not a special
    case.
    A cluster without vectors keeps its mean. Vectors with NaN or infinity move no mean.

    Args:
        rows: Vectors of this process, `[N, D]`, in one part or several.
        spans: From `spans_of`.
    """
    start = torch.zeros((), dtype=torch.int64, device=rows[0].device)
    means = drawn_rows(rows, num_embeddings, spans, start, seed=seed, stream=stream)
    all_reduce_(means)
    means.masked_fill_(~finite_rows(means)[:, None], 0.0)
    for _ in range(_LLOYD_ITERATIONS):
        # All searches first and the rest in place: at K = 65,536 a `[K, D]` more counts.
        nearest = [ops.nearest_code(part, means)[0] for part in rows]
        each = map(ops.code_statistics, rows, nearest, itertools.repeat(num_embeddings))
        counts, sums = next(each)
        for more_counts, more_sums in each:
            counts += more_counts
            sums += more_sums
        all_reduce_(counts)
        all_reduce_(sums)
        drop_non_finite_(counts, sums)
        sums /= counts[:, None].clamp(min=1)
        torch.where(counts[:, None] > 0, sums, means, out=means)
        del sums
    return means


def stacked_codebooks(codebooks: Sequence[Tensor]) -> Tensor:
    """`[Q, K, D]` of codebooks `[K_q, D]`, the smaller ones filled up with NaN, which is nearest to
    nothing."""
    largest = max(map(len, codebooks))
    return torch.stack(
        [F.pad(book, (0, 0, 0, largest - len(book)), value=torch.nan) for book in codebooks]
    )


@outside_transforms
def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the use of codes, float32 0-d: K if all are used alike, 1 if only one is.

    This is the formula of sonnet's `VectorQuantizerEMA`. Without any vectors it is 1.
    """
    total = counts.sum()
    share = counts.float() / torch.where(total > 0, total, 1)  # [K]
    return torch.exp(-torch.sum(share * torch.log(share + 1e-10)))
