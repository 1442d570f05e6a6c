"""K-means start, moving averages and expiry of `compat.lucidrains`, as the package computes them.

Letters: h codebooks (one, or one per head), N vectors, K codes, D dimension of a code.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.modules.host import has_started, outside_graphs, reading_waits

__all__ = ["l2norm", "lucidrains_move_", "lucidrains_start_", "replace_codes_", "take_ratios_"]


def l2norm(x: Tensor) -> Tensor:
    """Vectors `[..., D]` divided by their length, in the package's way."""
    return F.normalize(x, dim=-1, eps=1e-6)


@outside_graphs(
    "(Tensor x, Tensor? mask, Tensor(a!) embed, Tensor(b!) cluster_size, Tensor(c!) embed_avg, "
    "Tensor(d!) initted, Tensor(e!) settled, *, int iterations, float eps, bool cosine, "
    "bool sync_choice) -> ()",
    fake=lambda *_, **__: None,
)
@torch.no_grad()
def lucidrains_start_(
    x: Tensor,
    mask: Tensor | None,
    embed: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    initted: Tensor,
    settled: Tensor,
    *,
    iterations: int,
    eps: float,
    cosine: bool,
    sync_choice: bool,
) -> None:
    """Start by k-means on the first vectors, in training or evaluation; later do nothing.

    As in the package the codes are averages weighted by their counts: a cluster without vectors
    ends as a code of zero.

    Args:
        x: `[h, N, D]`.
        mask: bool `[h, N]`, the vectors that count; None for all.
        sync_choice: The vectors are those of all processes.
    """
    if has_started(initted, settled):
        return
    rows_of = _compressed(x, mask)
    if not sync_choice and len(rows_of[0]) == 0:  # all codebooks have the same mask
        return
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "a trace would run k-means at every call. Start the codebook by a "
            "forward before torch.jit.trace."
        )
    for codebook, rows in enumerate(rows_of):
        means, counts = _kmeans(rows, embed.shape[1], iterations, cosine, sync_choice)
        cluster_size[codebook] = counts
        embed_avg[codebook] = means * counts[:, None]
    take_ratios_(embed, cluster_size, embed_avg, eps, cosine)
    initted.fill_(True)
    settled.fill_(True)


@outside_graphs(
    "(Tensor x, Tensor indices, Tensor? mask, Tensor(a!) embed, Tensor(b!) cluster_size, "
    "Tensor(c!) embed_avg, *, bool ema_update, float decay, float eps, bool cosine, bool sync, "
    "bool sync_choice, float? threshold, float reset_count) -> ()",
    fake=lambda *_, **__: None,
)
@torch.no_grad()
def lucidrains_move_(
    x: Tensor,
    indices: Tensor,
    mask: Tensor | None,
    embed: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    *,
    ema_update: bool,
    decay: float,
    eps: float,
    cosine: bool,
    sync: bool,
    sync_choice: bool,
    threshold: float | None,
    reset_count: float,
) -> None:
    """Move the averages by a batch, then the codes to their ratio, then replace dead codes.

    Args:
        x: `[h, N, D]`.
        indices: int64 `[h, N]`.
        mask: bool `[h, N]`, the vectors that count; None for all.
        ema_update: Codes follow their averages; without it only the replacement moves them.
        sync: Sum the statistics over the processes of the default group.
        sync_choice: New codes come from the vectors of all processes.
        threshold: A code whose average count is below it is dead; None replaces none.
        reset_count: Count of a code that was replaced.
    """
    rows_of, indices_of = _compressed(x, mask), _compressed(indices, mask)
    for codebook, (rows, index) in enumerate(zip(rows_of, indices_of, strict=True)):
        counts, sums = ops.code_statistics(rows, index, embed.shape[1])
        counts = counts.to(sums.dtype)
        if sync:
            _all_reduce_(counts, sums)
        averages = (cluster_size[codebook], embed_avg[codebook])
        if ema_update:
            _take_ratio_(counts, sums, *averages, embed[codebook], decay, eps, cosine)
        else:
            averages[0].lerp_(counts.to(averages[0].dtype), 1 - decay)
            averages[1].lerp_(sums.to(averages[1].dtype), 1 - decay)
    if threshold is not None:
        dead = cluster_size < threshold  # [h, K]
        replace_codes_(
            x, mask, dead, embed, cluster_size, embed_avg, reset_count, sync_choice=sync_choice
        )


@torch.no_grad()
def replace_codes_(
    x: Tensor,
    mask: Tensor | None,
    dead: Tensor,
    embed: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    reset_count: float,
    *,
    sync_choice: bool,
) -> None:
    """Replace the codes where `dead` `[h, K]` is True by vectors of x `[h, N, D]`.

    No host waits for a GPU. If there are enough vectors, distinct ones are taken, the same ones
    that the package takes at an equal state of torch's generator (on a GPU if at each call some
    code is dead and there are as many vectors as codes, since it draws in any case). If there are
    more dead codes than vectors, a random choice of them is replaced and the others stay dead until
    a later batch.
    """
    # The package draws nothing where no code is dead.
    if not reading_waits(dead) and not bool(dead.any()):
        return
    num_codes = embed.shape[1]
    for codebook, rows in enumerate(_compressed(x, mask)):
        limit, gone = len(rows), dead[codebook]
        if not sync_choice and not limit:
            continue
        order = torch.randperm(limit, device=rows.device)
        rank = gone.cumsum(0) - 1  # the dead codes, numbered
        if sync_choice:
            candidates = _row_of_some_rank(rows[order], rank)
        else:
            too_few = gone.sum() > limit
            # The package draws for a choice of codes only where it needs one.
            if limit < num_codes and (reading_waits(too_few) or bool(too_few)):
                key = torch.rand(num_codes, device=rows.device, dtype=torch.float32)
                key = key.masked_fill(~gone, 2.0)  # the dead ones first, in random order
                rank = torch.where(gone & too_few, key.argsort().argsort(), rank)
                gone = gone & (rank < limit)
            candidates = rows[order[rank.clamp(0, limit - 1)]]  # [K, D]
        column = gone[:, None]
        count, average, codes = (t[codebook] for t in (cluster_size, embed_avg, embed))
        count.copy_(torch.where(gone, reset_count, count))
        average.copy_(torch.where(column, candidates * reset_count, average))
        codes.copy_(torch.where(column, candidates, codes))


def take_ratios_(
    embed: Tensor, cluster_size: Tensor, embed_avg: Tensor, eps: float, cosine: bool
) -> None:
    """Set the codes `[h, K, D]` to the ratio of their averages, which stay as they are."""
    for codes, counts, sums in zip(embed, cluster_size, embed_avg, strict=True):
        still = (torch.zeros_like(counts), torch.zeros_like(sums))
        _take_ratio_(*still, counts, sums, codes, 1.0, eps, cosine)


def _take_ratio_(
    counts: Tensor,
    sums: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    codes: Tensor,
    decay: float,
    eps: float,
    cosine: bool,
) -> None:
    ops.ema_update_(counts, sums, cluster_size, embed_avg, codes, decay, eps)
    if cosine:
        codes.copy_(l2norm(codes))


def _kmeans(
    rows: Tensor, num_codes: int, iterations: int, cosine: bool, sync_choice: bool
) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from distinct rows `[N, D]`: means `[K, D]` and counts `[K]`."""
    num_rows = len(rows)
    if sync_choice:
        order = torch.randperm(num_rows, device=rows.device)
        ranks = torch.arange(num_codes, device=rows.device)
        means = _row_of_some_rank(rows[order], ranks)
    elif num_rows >= num_codes:
        means = rows[torch.randperm(num_rows, device=rows.device)[:num_codes]]
    else:
        means = rows[torch.randint(num_rows, (num_codes,), device=rows.device)]
    counts = means.new_zeros(num_codes)
    for _ in range(iterations):
        # Means of cosine codebooks have length one or are zero, so the nearest has the largest
        # product.
        index = ops.nearest_code(rows, means)[0]
        drawn, sums = ops.code_statistics(rows, index, num_codes)
        counts = drawn.to(sums.dtype)
        if sync_choice:
            _all_reduce_(counts, sums)
        new = sums / counts.clamp(min=1)[:, None]
        new = l2norm(new) if cosine else new
        means = torch.where(counts[:, None] > 0, new, means)
    return means, counts


def _row_of_some_rank(rows: Tensor, place: Tensor) -> Tensor:
    """Rows `[K, D]` at `place`, taken from the processes in turn; the same on all of them."""
    world, rank = dist.get_world_size(), dist.get_rank()
    own = place.remainder(world) == rank
    if len(rows):
        taken = rows[place.div(world, rounding_mode="floor").remainder(len(rows))]
    else:
        taken = rows.new_zeros(len(place), rows.shape[1])
    taken = torch.where(own[:, None], taken, 0.0)
    _all_reduce_(taken)
    return taken


def _all_reduce_(*tensors: Tensor) -> None:
    """Sum over the processes of the default group, which must exist."""
    if not dist.is_initialized():
        raise RuntimeError(
            "sync_codebook=True, but there is no process group. Call "
            "torch.distributed.init_process_group first, or leave sync_codebook out."
        )
    for tensor in tensors:
        dist.all_reduce(tensor)


def _compressed(x: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each codebook's entries `[N, ...]` where mask `[h, N]` is True. A mask makes the host wait
    for a GPU."""
    if mask is None:
        return list(x)
    return [entries[kept] for entries, kept in zip(x, mask, strict=True)]
