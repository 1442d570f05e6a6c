"""The codebook of `compat.lucidrains`: state-dict layout, k-means start, averages, expiry.

Letters: h codebooks (one, or one a head), N vectors, K codes, D dimension of a code.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.codebook import perplexity

__all__ = ["Codebook", "l2norm"]


def l2norm(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=1e-6)


class Codebook(nn.Module):
    """h codebooks `[h, K, D]` with moving averages; all its arithmetic is float32.

    Args:
        threshold: A code whose average count falls below it is replaced by a vector of the batch;
            0 for never.
        sync: Sum statistics over the processes of the default group.
        sync_choice: Let codes of k-means and expiry come from the vectors of all processes.
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
        threshold: float,
        cosine: bool,
        sync: bool,
        sync_choice: bool,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.kmeans_iters = kmeans_iters
        self.decay = decay
        self.eps = eps
        self.threshold = threshold
        self.cosine = cosine
        self.sync = sync
        self.sync_choice = sync and sync_choice
        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = l2norm(embed) if cosine else embed
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        self.register_buffer("embed", embed)
        # `initted` as the host knows it: reading the buffer synchronises a GPU.
        self._is_initted = not kmeans_init
        self.register_load_state_dict_post_hook(_read_initted)  # type: ignore[no-untyped-call]

    def search(self, x: Tensor) -> Tensor:
        """Nearest codes, or for cosine of the largest product: `[h, N, D]` -> int64 `[h, N]`."""
        codebooks = self.embed
        if self.cosine:
            # With a coordinate √(M − ‖e‖²) added, M = max ‖e‖², and 0 to x, the squared distance is
            # ‖x‖² + M − 2x·e: nearest is largest product, for codes of any length (an empty
            # cluster of k-means is zero).
            norm = codebooks.square().sum(-1, keepdim=True)  # [h, K, 1]
            rest = (norm.amax(1, keepdim=True) - norm).clamp(min=0).sqrt()
            codebooks = torch.cat([codebooks, rest], dim=-1)  # [h, K, D + 1]
            x = F.pad(x, (0, 1))  # [h, N, D + 1]
        return ops.nearest_code(x, codebooks)[0]  # [h, N]

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 `[h, N]` -> a copy of the rows, `[h, N, D]`."""
        rows = [codes[index] for codes, index in zip(self.embed, indices, strict=True)]
        return torch.stack(rows)

    def counts(self, indices: Tensor) -> Tensor:
        """How often each code occurs, float32 `[h, K]`; -1 counts for none."""
        counts = self.cluster_size.new_zeros(len(indices), self.codebook_size + 1)
        counts.scatter_add_(1, indices + 1, torch.ones_like(indices, dtype=counts.dtype))
        return counts[:, 1:]

    def perplexity(self, indices: Tensor) -> Tensor:
        """exp(entropy) of the use of codes, the mean over codebooks, 0-d."""
        return torch.stack([perplexity(counts) for counts in self.counts(indices)]).mean()

    @torch.no_grad()
    def initialise(self, x: Tensor, mask: Tensor | None) -> None:
        """Start by k-means on the first batch, in training or evaluation; later nothing.

        As in the package the codes are averages weighted by their counts: a cluster without
        vectors ends as a code of zero.
        """
        if self._is_initted:
            return
        for codebook, rows in enumerate(_compressed(x, mask)):
            means, counts = self._kmeans(rows)
            self.cluster_size[codebook] = counts
            self.embed_avg[codebook] = means * counts[:, None]
            still = (torch.zeros_like(counts), torch.zeros_like(means))
            self._take_ratio(codebook, *still, decay=1.0)
        self.initted.fill_(True)
        self._is_initted = True

    @torch.no_grad()
    def update(self, x: Tensor, indices: Tensor, mask: Tensor | None, ema_update: bool) -> None:
        """Move the averages by a batch, then the codes to their ratio, then expire dead codes.

        Args:
            x: `[h, N, D]`.
            indices: int64 `[h, N]`.
            mask: bool `[h, N]`, the vectors that count.
            ema_update: Whether codes follow their averages; without it only expiry moves them.
        """
        if not ema_update and not self.threshold:
            return
        kept_rows, kept_indices = _compressed(x, mask), _compressed(indices, mask)
        for codebook, (rows, index) in enumerate(zip(kept_rows, kept_indices, strict=True)):
            counts, sums = ops.code_statistics(rows, index, self.codebook_size)
            counts = counts.to(sums.dtype)
            self._all_reduce(counts, sums)
            if ema_update:
                self._take_ratio(codebook, counts, sums, decay=self.decay)
            else:
                self.cluster_size[codebook].lerp_(counts, 1 - self.decay)
                self.embed_avg[codebook].lerp_(sums, 1 - self.decay)
        self.expire(x, mask)

    @torch.no_grad()
    def expire(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Replace codes whose average count is below the threshold by vectors of x `[h, N, D]`.

        Takes no look at the counts on the host. Distinct vectors are taken while there are enough,
        the same ones as the package takes at an equal state of torch's generator. If there are
        more dead codes than vectors a random choice of them is replaced and the rest waits.
        """
        if not self.threshold or not self.training:
            return
        for codebook, rows in enumerate(_compressed(x, mask)):
            if not self.sync_choice and not len(rows):
                continue
            dead = self.cluster_size[codebook] < self.threshold  # [K]
            limit = len(rows)
            order = torch.randperm(limit, device=rows.device)
            rank = dead.cumsum(0) - 1  # the how-manieth dead code it is
            if self.sync_choice:
                candidates = self._row_of_some_rank(rows[order], rank)
            else:
                if limit < self.codebook_size:
                    key = torch.rand(self.codebook_size, device=rows.device)
                    key = key.masked_fill(~dead, 2.0)  # the dead ones first, in random order
                    rank = torch.where(dead, key.argsort().argsort(), rank)
                    dead = dead & (rank < limit)
                candidates = rows[order[rank.clamp(0, limit - 1)]]  # [K, D]
            column = dead[:, None]
            count = self.cluster_size[codebook]
            count.copy_(torch.where(dead, self.threshold, count))
            average = self.embed_avg[codebook]
            average.copy_(torch.where(column, candidates * self.threshold, average))
            codes = self.embed[codebook]
            codes.copy_(torch.where(column, candidates, codes))

    def _take_ratio(self, codebook: int, counts: Tensor, sums: Tensor, decay: float) -> None:
        codes = self.embed[codebook]
        averages = (self.cluster_size[codebook], self.embed_avg[codebook])
        ops.ema_update_(counts, sums, *averages, codes, decay, self.eps)
        if self.cosine:
            codes.copy_(l2norm(codes))

    def _kmeans(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Lloyd's iterations from distinct rows `[N, D]`: means `[K, D]` and counts `[K]`."""
        num_codes, num_rows = self.codebook_size, len(rows)
        if self.sync_choice:
            order = torch.randperm(num_rows, device=rows.device)
            ranks = torch.arange(num_codes, device=rows.device)
            means = self._row_of_some_rank(rows[order], ranks)
        elif num_rows >= num_codes:
            means = rows[torch.randperm(num_rows, device=rows.device)[:num_codes]]
        else:
            means = rows[torch.randint(num_rows, (num_codes,), device=rows.device)]
        counts = means.new_zeros(num_codes)
        for _ in range(self.kmeans_iters):
            # Means of cosine codebooks have length one or are zero: nearest is largest product.
            index = ops.nearest_code(rows, means)[0]
            drawn, sums = ops.code_statistics(rows, index, num_codes)
            counts = drawn.to(sums.dtype)
            if self.sync_choice:
                self._all_reduce(counts, sums)
            new = sums / counts.clamp(min=1)[:, None]
            new = l2norm(new) if self.cosine else new
            means = torch.where(counts[:, None] > 0, new, means)
        return means, counts

    def _row_of_some_rank(self, rows: Tensor, place: Tensor) -> Tensor:
        """Rows `[K, D]` at `place`, dealt out over the processes in turn; the same on all."""
        world, rank = dist.get_world_size(), dist.get_rank()
        own = place.remainder(world) == rank
        if len(rows):
            taken = rows[place.div(world, rounding_mode="floor").remainder(len(rows))]
        else:
            taken = rows.new_zeros(len(place), rows.shape[1])
        taken = torch.where(own[:, None], taken, 0.0)
        self._all_reduce(taken)
        return taken

    def _all_reduce(self, *tensors: Tensor) -> None:
        if not self.sync:
            return
        if not dist.is_initialized():
            raise RuntimeError(
                "VectorQuantize: sync_codebook=True, but there is no process group. Call "
                "torch.distributed.init_process_group first, or leave sync_codebook out."
            )
        for tensor in tensors:
            dist.all_reduce(tensor)


def _compressed(x: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each codebook's entries `[N, ...]` where mask `[h, N]` is True: with a mask, a GPU waits."""
    if mask is None:
        return list(x)
    return [entries[kept] for entries, kept in zip(x, mask, strict=True)]


def _read_initted(module: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(module, Codebook)
    module._is_initted = bool(module.initted)
