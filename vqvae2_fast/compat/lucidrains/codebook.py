"""The codebook of `compat.lucidrains`: the package's state dict, attributes and methods; and its
k-means start, moving averages and expiry, as the package computes them.

Letters: h codebooks (one, or one per head), N vectors, K codes, D dimension of a code.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.host import (
    Phase,
    has_started,
    has_values,
    inside_backward,
    outside_graphs,
    reading_synchronises,
    register_flag,
)
from vqvae2_fast.modules.quantizer_interface import perplexity
from vqvae2_fast.ops._registry import transforms_are_active

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vqvae2_fast.modules.host import LatestForward

__all__ = [
    "Codebook",
    "kmeans",
    "l2norm",
    "lucidrains_move_",
    "lucidrains_start_",
    "recomputable",
    "replace_codes_",
    "take_ratios_",
]


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
        means, counts = kmeans(rows, embed.shape[1], iterations, cosine, sync_choice)
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
    if not reading_synchronises(dead) and not bool(dead.any()):
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
            if limit < num_codes and (reading_synchronises(too_few) or bool(too_few)):
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


def kmeans(
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


class Codebook(nn.Module):
    """h codebooks `[h, K, D]` with moving averages; all its arithmetic is float32.

    Only the buffer `initted` decides whether k-means still has to start the codebook.

    Args:
        threshold_ema_dead_code: A code whose average count falls below it is replaced by a vector
            of the batch; 0 for never. It may be assigned later; as in the package, that has no
            effect on a codebook that was made with 0.
        use_ddp: Sum statistics over the processes of the default group.
        sync_kmeans: With `use_ddp`, let codes of k-means and replacements come from the vectors of
            all processes.
        manual_ema_update: Codes follow their averages only when `update_ema` is called.
        learnable: `embed` is a parameter.
        sample_codebook_temp, stochastic: In training draw codes by softmax(distance /
            sample_codebook_temp), with the package's noise; `stochastic` switches it on.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        *,
        kmeans_init: bool,
        kmeans_iters: int,
        decay: float,
        eps: float,
        threshold_ema_dead_code: float,
        use_cosine_sim: bool,
        use_ddp: bool,
        sync_kmeans: bool,
        ema_update: bool,
        manual_ema_update: bool = False,
        learnable: bool = False,
        sample_codebook_temp: float = 1.0,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.kmeans_iters = kmeans_iters
        self.decay = decay
        self.eps = eps
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.has_dead_code_replacement = threshold_ema_dead_code > 0
        self.reset_cluster_size = threshold_ema_dead_code
        self.use_cosine_sim = use_cosine_sim
        self.use_ddp = use_ddp
        self.sync_choice = use_ddp and sync_kmeans
        self.ema_update = ema_update
        self.manual_ema_update = manual_ema_update
        self.learnable_codebook = learnable
        self.sample_codebook_temp = sample_codebook_temp
        self.stochastic = stochastic
        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = l2norm(embed) if use_cosine_sim else embed
        register_flag(self, "initted", not kmeans_init)
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        self._phase = Phase()
        # What the host was told of `initted`, which a compiled graph could not read.
        self._may_start = kmeans_init
        self.register_load_state_dict_post_hook(_forget_start)  # type: ignore[no-untyped-call]

    def transform_input(self, x: Tensor) -> Tensor:
        """x `[..., D]` as the search takes it: with length one for cosine."""
        return l2norm(x) if self.use_cosine_sim else x

    def forward(
        self,
        x: Tensor,
        sample_codebook_temp: float | None = None,
        mask: Tensor | None = None,
        freeze_codebook: bool = False,
        *,
        ema_update: bool | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors as the package's codebook does, without a gradient.

        Unlike `VectorQuantize` this forms all the distances.

        Args:
            x: `[B, N, D]`, or `[h, B, N, D]`, as `transform_input` gives it.
            sample_codebook_temp: Accepted; nothing is sampled.
            mask: bool `[B, N]`, True where a vector counts.

        Returns:
            quantized: float32, x's shape.
            indices: int64, x's shape without D.
            distances: Minus the distances, or for cosine the products: `[h, B, N, K]`.
        """
        vectors = x.detach().float()
        vectors = vectors if x.dim() == 4 else vectors[None]  # [h, B, N, D]
        rows = vectors.flatten(1, 2)  # [h, B·N, D]
        row_mask = None if mask is None else mask.flatten().expand(len(rows), -1)
        self.start(rows, row_mask)
        codes = self.embed.clone().to(vectors.dtype)  # [h, K, D], before the update
        learning = self.training and not freeze_codebook
        quantized, indices = self.quantize(rows, row_mask, learning, ema_update)
        # [h, B·N, K]
        distances = rows @ codes.mT if self.use_cosine_sim else -torch.cdist(rows, codes)
        quantized, indices = quantized.view(vectors.shape), indices.view(vectors.shape[:-1])
        if x.dim() != 4:
            quantized, indices = quantized[0], indices[0]
        return quantized, indices, distances.view(*vectors.shape[:-1], self.codebook_size)

    def quantize(
        self, x: Tensor, mask: Tensor | None, learning: bool, ema_update: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Codes `[h, N, D]` and indices int64 `[h, N]` of x float32 `[h, N, D]`, then the update.

        Args:
            mask: bool `[h, N]`, the vectors that count; None for all.
            learning: Whether to update.
            ema_update: Whether codes follow their averages; None as the codebook was made.
        """
        self.start(x, mask)
        indices = self.search(x)
        quantized = self.lookup(indices).detach()
        if learning:
            self.update(x, indices, mask, ema_update)
        return quantized, indices

    def samples(self, temperature: float | None) -> bool:
        """Whether a forward draws its codes."""
        temperature = self.sample_codebook_temp if temperature is None else temperature
        return self.training and self.stochastic and temperature > 0

    def distances(self, x: Tensor) -> Tensor:
        """Minus the distances (for cosine the products) of x `[h, N, D]`: `[h, N, K]`."""
        # .data: the update writes the codes in place, and backward takes them as they are then, as
        # the package's does.
        moves = self.training and not self.learnable_codebook
        codes = self.embed.data if moves else self.embed
        codes = codes.to(x.dtype)
        products = x @ codes.mT
        if self.use_cosine_sim:
            return products
        squares = x.square().sum(-1)[..., None] + codes.square().sum(-1)[:, None]
        return -(squares - 2 * products).clamp(min=1e-8).sqrt()

    def choose(self, distances: Tensor, temperature: float | None, topk: int | None) -> Tensor:
        """Best codes by distances `[h, N, K]`, drawn where `samples`: int64 `[h, N]`, or k each."""
        scores = distances.detach()
        if self.samples(temperature):
            temperature = self.sample_codebook_temp if temperature is None else temperature
            noise = torch.zeros_like(scores).uniform_(0, 1)
            gumbel = -(-noise.clamp(min=1e-20).log()).clamp(min=1e-20).log()
            scores = scores / temperature + gumbel
        return scores.argmax(-1) if topk is None else scores.topk(topk, dim=-1).indices

    def nearest(self, x: Tensor, topk: int) -> Tensor:
        """The k nearest codes of x `[h, N, D]`, the one that `search` finds first: int64 `[h, N,
        k]`."""
        scores = self.distances(x.double()).detach()
        return scores.scatter(-1, self.search(x)[..., None], torch.inf).topk(topk, dim=-1).indices

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the codes to the ratio of their averages."""
        take_ratios_(
            self.embed.data, self.cluster_size, self.embed_avg, self.eps, self.use_cosine_sim
        )

    def search(self, x: Tensor) -> Tensor:
        """Nearest codes, or for cosine those of the largest product: `[h, N, D]` -> int64 `[h,
        N]`."""
        codebooks = self.embed.detach()
        if self.use_cosine_sim:
            # With a coordinate √(M − ‖e‖²) added, M = max ‖e‖², and 0 to x, the squared distance is
            # ‖x‖² + M − 2x·e. So the nearest code has the largest product, whatever the lengths of
            # the codes (an empty cluster of k-means is zero).
            norm = codebooks.square().sum(-1, keepdim=True)  # [h, K, 1]
            rest = (norm.amax(1, keepdim=True) - norm).clamp(min=0).sqrt()
            codebooks = torch.cat([codebooks, rest], dim=-1)  # [h, K, D + 1]
            x = F.pad(x, (0, 1))  # [h, N, D + 1]
        return ops.nearest_code(x, codebooks)[0]  # [h, N]

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 `[h, N]` (or `[h, N, k]`) -> a copy of the rows, `[h, N, D]`; with a gradient to a
        codebook that is a parameter."""
        each = zip(self.embed, indices, strict=True)
        return torch.stack([F.embedding(index, codes) for codes, index in each])

    def counts(self, indices: Tensor) -> Tensor:
        """How often each code occurs, float32 `[h, K]`; -1 counts for none."""
        counts = self.cluster_size.new_zeros(len(indices), self.codebook_size + 1)
        counts.scatter_add_(1, indices + 1, torch.ones_like(indices, dtype=counts.dtype))
        return counts[:, 1:]

    def perplexity(self, indices: Tensor) -> Tensor:
        """exp(entropy) of the use of codes, the mean over codebooks, 0-d."""
        return torch.stack([perplexity(counts) for counts in self.counts(indices)]).mean()

    def has_started(self) -> bool:
        """Whether the codebook has started; a GPU is waited for only until it has.

        In a compiled graph False may also mean that it is not known.
        """
        if torch.compiler.is_compiling():
            return not self._may_start
        return self._phase.has_started(self.initted)

    def start(self, x: Tensor, mask: Tensor | None) -> None:
        """Start by k-means on x `[h, N, D]`, unless the codebook has started."""
        if torch.compiler.is_exporting() and not self.training:
            return  # a program for other runtimes quantises by the codes that it was exported with
        self._phase.look_at(self.initted)
        lucidrains_start_(
            x,
            mask,
            self.embed.detach(),  # torch.export cannot follow .data
            self.cluster_size,
            self.embed_avg,
            self.initted,
            self._phase.settled,
            iterations=self.kmeans_iters,
            eps=self.eps,
            cosine=self.use_cosine_sim,
            sync_choice=self.sync_choice,
        )

    def moves(self, ema_update: bool | None = None) -> bool:
        """Whether an update changes anything."""
        follows = self.ema_update if ema_update is None else ema_update
        return follows or self.has_dead_code_replacement

    def update(
        self, x: Tensor, indices: Tensor, mask: Tensor | None, ema_update: bool | None = None
    ) -> None:
        """Move averages and codes by x `[h, N, D]`, indices `[h, N]`; then replace dead codes."""
        if not self.moves(ema_update):
            return
        follows = self.ema_update if ema_update is None else ema_update
        replaces = self.has_dead_code_replacement and self.training
        lucidrains_move_(
            x,
            indices,
            mask,
            self.embed.data,
            self.cluster_size,
            self.embed_avg,
            ema_update=follows and not self.manual_ema_update,
            decay=self.decay,
            eps=self.eps,
            cosine=self.use_cosine_sim,
            sync=self.use_ddp,
            sync_choice=self.sync_choice,
            threshold=self.threshold_ema_dead_code if replaces else None,
            reset_count=self.reset_cluster_size,
        )

    def expire_codes_(self, batch_samples: Tensor, seq_mask: Tensor | None = None) -> None:
        """Replace dead codes by vectors of `batch_samples` `[h, ..., D]`, in training only.

        One codebook takes all the vectors; the package's looks at the first sequence of a batch.
        """
        if self.has_dead_code_replacement and self.training:
            dead = self.cluster_size < self.threshold_ema_dead_code
            self.replace(batch_samples, dead, seq_mask)

    def replace(
        self, batch_samples: Tensor, batch_mask: Tensor, seq_mask: Tensor | None = None
    ) -> None:
        """Replace codes by vectors.

        Args:
            batch_samples: `[h, ..., D]`.
            batch_mask: bool `[h, K]`, True for the codes to replace.
            seq_mask: bool `[h, N]`, the vectors to take from.
        """
        dim = batch_samples.shape[-1]
        count = batch_samples.numel() // (self.num_codebooks * dim)
        replace_codes_(
            self.transform_input(batch_samples.float()).reshape(self.num_codebooks, count, dim),
            seq_mask,
            batch_mask,
            self.embed.data,
            self.cluster_size,
            self.embed_avg,
            self.reset_cluster_size,
            sync_choice=self.sync_choice,
        )


@contextmanager
def recomputable(latest: LatestForward | None, books: Iterable[Codebook]) -> Iterator[None]:
    """Keeps the state of codebooks that a forward moves, for a checkpoint's recomputation.

    That starts from this state again, so that it finds the same codes and draws the same numbers.
    What it moves is undone at its end, which may come early: a checkpoint stops its recomputation
    by an exception when it has what backward needs.
    """
    books = list(books)
    if latest is None or not books or torch.compiler.is_compiling() or transforms_are_active():
        yield
        return
    state = [
        tensor.data
        for book in books
        for tensor in (book.initted, book.cluster_size, book.embed_avg, book.embed)
    ]
    if not inside_backward():
        # Nothing else is recomputed; checkpoints with use_reentrant=True switch gradients off.
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        in_checkpoint = hooks is not None or not torch.is_grad_enabled()
        latest.keep(*state if in_checkpoint else ())
        yield
        return
    after = [tensor.clone() for tensor in state]
    _put_back(books, state, latest.recall("leave the quantiser out of the checkpoint"))
    try:
        yield
    finally:
        _put_back(books, state, after)


def _put_back(books: list[Codebook], state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)
    for book in books:
        book._phase.forget()


def _forget_start(module: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(module, Codebook)
    module._phase.forget()
    module._may_start = has_values(module.initted) and not module.initted
