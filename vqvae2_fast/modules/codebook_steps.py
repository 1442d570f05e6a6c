"""The start and the update of a codebook, two steps that are opaque to a compiled graph.

Both read values on the host and choose vectors by Philox words, which are hundreds of integer
operations that Inductor would nest into one kernel (a training step did not compile in 24 minutes).

Sizes: N vectors of this process, K codes, D embedding_dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.modules.codebook import (
    Span,
    all_reduce_,
    drawn_rows,
    drop_non_finite_,
    finite_rows,
    is_distributed,
    kmeans,
    spans_of,
    unpack,
)
from vqvae2_fast.modules.outside_graphs import has_started, outside_graphs, reading_waits

__all__ = [
    "move_codebook_",
    "packed_statistics",
    "start_averages_",
    "start_codebook_",
    "start_residual_codebooks_",
]


@torch.no_grad()
def start_averages_(
    codebook: Tensor, cluster_size: Tensor, embed_avg: Tensor, ema_start: str
) -> None:
    """Set the averages to what `ema_start` says for a codebook `[K, D]` that starts."""
    cluster_size.fill_(1.0 if ema_start == "one" else 0.0)
    if ema_start == "debiased":
        # Both start at zero. The weights of debiased averages depend on the number of updates, also
        # of those while quantisation waits; the ratio of two that start at zero does not.
        embed_avg.zero_()
    else:
        embed_avg.copy_(codebook)


@outside_graphs(
    "(Tensor[] rows, int[] firsts, int total, Tensor(a!) codebook, Tensor(b!) cluster_size, "
    "Tensor(c!) embed_avg, Tensor(d!) initialised, Tensor(e!) settled, *, str ema_start, "
    "bool cosine, int seed, int stream) -> ()",
    fake=lambda *_, **__: None,
)
@torch.no_grad()
def start_codebook_(
    rows: list[Tensor],
    firsts: list[int],
    total: int,
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    initialised: Tensor,
    settled: Tensor,
    *,
    ema_start: str,
    cosine: bool,
    seed: int,
    stream: int,
) -> None:
    """Start the codebook by k-means if it has not started and any process has vectors.

    Args:
        rows, firsts, total: Vectors of this process, `[N, D]`, as in `spans_of`.
        ema_start: Averages at the start, as of `VectorQuantizerEMA`.
        cosine: Divide the codes by their length.
    """
    if has_started(initialised, settled):
        return
    spans = spans_of(rows, firsts, total)
    if int(spans[0][1]) == 0:
        return
    means = kmeans(rows, len(codebook), spans, seed=seed, stream=stream)
    codebook.copy_(F.normalize(means, dim=-1) if cosine else means)
    start_averages_(codebook, cluster_size, embed_avg, ema_start)
    initialised.fill_(True)
    settled.fill_(True)


@outside_graphs(
    "(Tensor z, Tensor(a!)[] codebooks, Tensor(b!)[] cluster_sizes, Tensor(c!)[] embed_avgs, "
    "Tensor(d!)[] initialised, Tensor(e!)[] settled, *, str ema_start, int seed, "
    "int[] streams) -> ()",
    fake=lambda *_, **__: None,
)
@torch.no_grad()
def start_residual_codebooks_(
    z: Tensor,
    codebooks: list[Tensor],
    cluster_sizes: list[Tensor],
    embed_avgs: list[Tensor],
    initialised: list[Tensor],
    settled: list[Tensor],
    *,
    ema_start: str,
    seed: int,
    streams: list[int],
) -> None:
    """`start_codebook_` of several codebooks, each on what the ones before leave over.

    Args:
        z: Vectors of this process, `[N, D]`.
    """
    if all(map(has_started, initialised, settled)):
        return
    residual = z.to(torch.promote_types(z.dtype, torch.float32))
    each = zip(codebooks, cluster_sizes, embed_avgs, initialised, settled, streams, strict=True)
    for codebook, cluster_size, embed_avg, flag, flag_on_host, stream in each:
        start_codebook_(
            [residual],
            [],
            -1,
            codebook,
            cluster_size,
            embed_avg,
            flag,
            flag_on_host,
            ema_start=ema_start,
            cosine=False,
            seed=seed,
            stream=stream,
        )
        residual = residual - codebook[ops.nearest_code(residual, codebook)[0]]


def packed_statistics(
    rows: list[Tensor],
    spans: list[Span],
    counts: Tensor,
    sums: Tensor,
    steps: Tensor,
    *,
    restart: float,
    seed: int,
    stream: int,
) -> Tensor:
    """What an update sums over the processes: `[K + K·D]`, and K·D more for restarts in a group.

    Args:
        steps: Updates, the coming one among them.
    """
    # Counts travel as float32: exact to 2²⁴ vectors of one code in one step.
    parts = [counts.float(), sums.flatten()]
    if restart and is_distributed():
        parts.append(
            drawn_rows(rows, len(counts), spans, steps, seed=seed, stream=stream).flatten()
        )
    return torch.cat(parts)


@outside_graphs(
    "(Tensor[] rows, int[] firsts, int total, Tensor? statistics, Tensor counts, Tensor sums, "
    "Tensor(a!) codebook, Tensor(b!) cluster_size, Tensor(c!) embed_avg, Tensor(d!) steps, "
    "Tensor initialised, Tensor(e!) settled, *, float decay, float epsilon, "
    "float restart, bool debiased, bool cosine, "
    "int seed, int stream) -> Tensor",
    fake=lambda rows, firsts, total, statistics, counts, sums, *_, **__: sums.new_empty(()),
)
@torch.no_grad()
def move_codebook_(
    rows: list[Tensor],
    firsts: list[int],
    total: int,
    statistics: Tensor | None,
    counts: Tensor,
    sums: Tensor,
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    steps: Tensor,
    initialised: Tensor,
    settled: Tensor,
    *,
    decay: float,
    epsilon: float,
    restart: float,
    debiased: bool,
    cosine: bool,
    seed: int,
    stream: int,
) -> Tensor:
    """Move a codebook that has started by the pending statistics of all processes.

    One all-reduce of [counts | sums | vectors for restarts], after a tiny one of the numbers of
    vectors where these are not known.

    Args:
        rows, firsts, total: Vectors of this process that codes may restart from, as in `spans_of`.
        statistics: `packed_statistics` if the caller has summed them over the processes.
        counts, sums: The pending statistics of this process, `[K]` and `[K, D]`.
        restart: A code whose count is below this fraction of the mean starts again; 0: none.

    Returns:
        The share of the codes that had a vector, float32, 0-d.
    """
    if not has_started(initialised, settled):
        return codebook.new_zeros(())
    steps += 1
    num_embeddings, dim = codebook.shape
    spans = spans_of(rows, firsts, total) if restart else []
    if statistics is None:
        statistics = packed_statistics(
            rows, spans, counts, sums, steps, seed=seed, stream=stream, restart=restart
        )
        all_reduce_(statistics)
    all_counts, all_sums, rest = unpack(statistics, num_embeddings, dim)
    drop_non_finite_(all_counts, all_sums)
    if debiased:
        # An average from zero divided by 1 − γᵗ is one of weight (1−γ)/(1−γᵗ), 1 at t = 1: move it
        # here, and let the operator (decay 1) only take the ratio.
        power = steps * math.log(decay) if decay else steps * -math.inf  # log γᵗ
        weight = (1 - decay) / -torch.expm1(power)
        cluster_size.lerp_(all_counts, weight)
        embed_avg.lerp_(all_sums, weight)
        decay = 1.0
    ops.ema_update_(all_counts, all_sums, cluster_size, embed_avg, codebook, decay, epsilon)
    if cosine:
        codebook.copy_(F.normalize(codebook, dim=-1))
    if spans:
        # In the steady state the mean count is N_global / K; in the first steps of ema_start "one"
        # it is nearer to 1, and with N_global / K itself every code would restart at once.
        mean = cluster_size.mean()
        unused = (cluster_size < restart * mean) & (spans[0][1] > 0)  # [K]
        # Drawing the vectors takes longer than everything else here, and most steps need none.
        if is_distributed() or reading_waits(unused) or bool(unused.any()):
            if is_distributed():
                vectors = rest.view(num_embeddings, dim)
            else:
                vectors = drawn_rows(rows, num_embeddings, spans, steps, seed=seed, stream=stream)
            unused &= finite_rows(vectors)
            column = unused[:, None]
            cluster_size.copy_(torch.where(unused, mean, cluster_size))
            embed_avg.copy_(torch.where(column, vectors * mean, embed_avg))
            codebook.copy_(torch.where(column, vectors, codebook))
    return (all_counts > 0).float().mean()
