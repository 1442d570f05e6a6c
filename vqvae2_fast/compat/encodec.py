"""facebookresearch/encodec's `ResidualVectorQuantizer`: change the import and keep checkpoints.

    from vqvae2_fast.compat.encodec import ResidualVectorQuantizer

Starts, averages, losses and gradients are the original's, also where it departs from what was meant
(https://github.com/facebookresearch/encodec/issues/25): the losses of all quantisers but the first
have no gradient, and expired codes are drawn but written over by the averages at once, so that only
torch's generator shows them. What differs:

- The search is exact, and `quantized` is the sum of the codes, from which the original's
  straight-through values differ by a rounding error.
- With several processes the statistics are summed, so that all hold the same codes. In the original
  each follows its own, and copies those of rank 0 when a code of its own expires.
- Training inside an activation checkpoint is refused. The original moves its codes twice there.
- `torch.compile` makes one graph of it. An exported program keeps the codes of its export.

Letters: B batch, D dimension, T positions, Q quantisers, K codes, N = B·T vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.compat.lucidrains.codebook import kmeans
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.host import inside_backward, outside_graphs
from vqvae2_fast.ops.vector_quantize.op import straight_through

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EuclideanCodebook",
    "QuantizedResult",
    "ResidualVectorQuantization",
    "ResidualVectorQuantizer",
    "VectorQuantization",
]


class EuclideanCodebook(nn.Module):
    """The state of one codebook; `encodec_step_` starts, searches and moves it."""

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        threshold_ema_dead_code: float = 2,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.kmeans_iters = kmeans_iters
        self.decay = decay
        self.epsilon = epsilon
        self.threshold_ema_dead_code = threshold_ema_dead_code
        embed = torch.zeros(codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
        self.register_buffer("inited", torch.tensor([float(not kmeans_init)]))
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())


class VectorQuantization(nn.Module):
    """One codebook of a `ResidualVectorQuantization`.

    Args:
        dim: D.
        codebook_size: K.
        codebook_dim: D or None; projections to another size are not supported.
        decay, epsilon: γ and ε of the moving averages.
        kmeans_init, kmeans_iters: Start from k-means on the first batch.
        threshold_ema_dead_code: A code with a smaller average count expires.
        commitment_weight: Factor of the loss.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        threshold_ema_dead_code: float = 2,
        commitment_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if codebook_dim not in (None, dim):
            raise NotImplementedError(
                f"expected codebook_dim=None or {dim}, the dim, got {codebook_dim}. encodec's own "
                "models have no projections; put linear layers around the quantiser."
            )
        self.commitment_weight = commitment_weight
        self.codebook_size = codebook_size
        self._codebook = EuclideanCodebook(
            dim,
            codebook_size,
            kmeans_init,
            kmeans_iters,
            decay,
            epsilon,
            threshold_ema_dead_code,
        )

    @property
    def codebook(self) -> Tensor:
        return self._codebook.embed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, D, T]` -> quantised `[B, D, T]`, codes `[B, T]`, loss `[1]`."""
        quantized, codes, losses = _quantize([self], x)
        return quantized, codes[0], losses[0]

    def encode(self, x: Tensor) -> Tensor:
        """`[B, D, T]` -> int64 `[B, T]`."""
        return _encode([self], x)[0]

    def decode(self, embed_ind: Tensor) -> Tensor:
        """int64 `[B, T]` -> `[B, D, T]`."""
        return F.embedding(embed_ind, self.codebook).transpose(1, 2)


class ResidualVectorQuantization(nn.Module):
    """Quantisers in a row, algorithm 1 of https://arxiv.org/abs/2107.03312.

    Args:
        num_quantizers: Q.
        others: As of `VectorQuantization`.
    """

    def __init__(self, *, num_quantizers: int, **others: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantization(**others) for _ in range(num_quantizers))

    def forward(self, x: Tensor, n_q: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise by the first n_q (or all) codebooks, and in training move them.

        Args:
            x: `[B, D, T]`, floating.

        Returns:
            quantized: `[B, D, T]`, float32 (float64 if x is), straight through to x in training.
            codes: int64 `[n_q, B, T]`.
            losses: `[n_q, 1]`, 0 in evaluation.
        """
        return _quantize(self._first(n_q), x)

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        """`[B, D, T]` -> int64 `[n_q, B, T]`."""
        return _encode(self._first(n_q), x)

    def decode(self, q_indices: Tensor) -> Tensor:
        """int64 `[q, B, T]` of the first q codebooks -> the sums of their codes, `[B, D, T]`."""
        books = self._first(len(q_indices))
        codes = (F.embedding(i, book.codebook) for i, book in zip(q_indices, books, strict=True))
        nothing = torch.zeros((), dtype=torch.float32, device=q_indices.device)
        return sum(codes, nothing).transpose(1, 2)

    def _first(self, count: int | None) -> list[VectorQuantization]:
        return [*self.layers][: count or len(self.layers)]


def _rows(x: Tensor, books: Sequence[VectorQuantization]) -> Tensor:
    """`[B, D, T]` -> vectors `[N, D]`, float32 or float64."""
    dim = books[0].codebook.shape[1]
    if x.dim() != 3 or x.shape[1] != dim:
        raise ValueError(f"expected x [B, {dim}, T], got {list(x.shape)}.")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.transpose(1, 2).reshape(-1, x.shape[1])


def _codebooks(books: Sequence[VectorQuantization]) -> Tensor:
    """`[Q, K, D]`, a copy."""
    return torch.stack([book.codebook for book in books])


@torch.no_grad()
def _encode(books: Sequence[VectorQuantization], x: Tensor) -> Tensor:
    with without_autocast(x.device):
        indices = ops.residual_nearest_code(_rows(x, books), _codebooks(books))[1]  # [N, Q]
    return indices.T.reshape(len(books), x.shape[0], x.shape[2])


def _quantize(books: Sequence[VectorQuantization], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    training = books[0].training
    if training and inside_backward():
        raise RuntimeError(
            "the codebooks have moved since the forward that this checkpoint recomputes. "
            "Leave the quantiser out of the checkpoint."
        )
    with without_autocast(x.device):
        rows = _rows(x, books)  # [N, D]
        if torch.compiler.is_exporting() and not training:
            # A program for other runtimes quantises by the codes that it was exported with.
            quantized, indices, losses = ops.residual_nearest_code(rows, _codebooks(books))
        else:
            state = [book._codebook for book in books]
            first, quantized, indices, losses = encodec_step_(
                rows.detach(),
                [book.inited for book in state],
                [book.cluster_size for book in state],
                [book.embed for book in state],
                [book.embed_avg for book in state],
                training=training,
                iterations=state[0].kmeans_iters,
                decay=state[0].decay,
                epsilon=state[0].epsilon,
                threshold=state[0].threshold_ema_dead_code,
            )
        losses = losses.to(rows.dtype)  # [Q]
        if training:
            # Straight through, x - quantized has no gradient: all losses but the first are numbers.
            losses = torch.cat([F.mse_loss(first, rows)[None], losses[1:]])
            losses = losses * losses.new_tensor([book.commitment_weight for book in books])
            quantized = straight_through(rows, quantized)
        else:
            losses = torch.zeros_like(losses)
    batch, dim, length = x.shape
    quantized = quantized.view(batch, length, dim).transpose(1, 2)
    codes = indices.T.reshape(len(books), batch, length)
    return quantized, codes, losses[:, None]


def _shapes(rows: Tensor, inited: list[Tensor], *_: Any, **__: Any) -> tuple[Tensor, ...]:
    indices = rows.new_empty(len(rows), len(inited), dtype=torch.int64)
    losses = rows.new_empty(len(inited), dtype=torch.float32)
    return torch.empty_like(rows), torch.empty_like(rows), indices, losses


@outside_graphs(
    "(Tensor rows, Tensor(a!)[] inited, Tensor(b!)[] cluster_size, Tensor(c!)[] embed, "
    "Tensor(d!)[] embed_avg, *, bool training, int iterations, float decay, float epsilon, "
    "float threshold) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_shapes,
)
@torch.no_grad()
def encodec_step_(
    rows: Tensor,
    inited: list[Tensor],
    cluster_size: list[Tensor],
    embed: list[Tensor],
    embed_avg: list[Tensor],
    *,
    training: bool,
    iterations: int,
    decay: float,
    epsilon: float,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantise vectors `[N, D]` and, in training, let Q codebooks follow them.

    Returns:
        The first codes `[N, D]`, the sums of all codes `[N, D]`, indices int64 `[N, Q]`, and the
        mean square of what each codebook leaves over, float32 `[Q]`.
    """
    books = list(zip(inited, cluster_size, embed, embed_avg, strict=True))
    # A codebook starts from what those before it leave over: one after another, once.
    started = bool(torch.stack(inited).all())
    parts = [books] if started else [[book] for book in books]
    residual, quantized = rows, torch.zeros_like(rows)
    first: Tensor | None = None
    indices: list[Tensor] = []
    losses: list[Tensor] = []
    for part in parts:
        if not started and not part[0][0]:
            _start(residual, *part[0], iterations)
        codebooks = torch.stack([codes for _, _, codes, _ in part])  # [q, K, D], a copy
        codes, index, loss = ops.residual_nearest_code(residual, codebooks)
        if training:
            statistics = ops.residual_code_statistics(residual, codebooks, index)
            for (_, sizes, book, sums), count, total in zip(part, *statistics, strict=True):
                if bool((sizes < threshold).any()):
                    _draw_rows(len(rows), len(book), rows.device)
                if dist.is_initialized():
                    dist.all_reduce(count)
                    dist.all_reduce(total)
                ops.ema_update_(count, total, sizes, sums, book, decay, epsilon)
        if first is None:
            first = codebooks[0][index[:, 0]].to(rows.dtype)
        residual, quantized = residual - codes, quantized + codes
        indices.append(index)
        losses.append(loss)
    assert first is not None
    return first, quantized, torch.cat(indices, 1), torch.cat(losses)


def _start(
    rows: Tensor, inited: Tensor, sizes: Tensor, embed: Tensor, sums: Tensor, iterations: int
) -> None:
    """Start a codebook by k-means on vectors `[N, D]`, the same codes on all processes."""
    means, counts = kmeans(rows, len(embed), iterations, False, False)
    embed.copy_(means)
    sums.copy_(means)
    sizes.copy_(counts)
    inited.fill_(1)
    if dist.is_initialized():
        for buffer in (inited, sizes, embed, sums):
            dist.broadcast(buffer, src=0)


def _draw_rows(num_rows: int, count: int, device: torch.device) -> None:
    """Draw as the original draws the vectors that replace expired codes."""
    if num_rows >= count:
        torch.randperm(num_rows, device=device)
    else:
        torch.randint(num_rows, (count,), device=device)


@dataclass
class QuantizedResult:
    """`quantized` `[B, D, T]`, `codes` int64 `[n_q, B, T]`, `bandwidth` in kb/s ×1000, 0-d, and
    `penalty`, the mean of the losses, 0-d."""

    quantized: Tensor
    codes: Tensor
    bandwidth: Tensor
    penalty: Tensor | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


class ResidualVectorQuantizer(nn.Module):
    """The quantiser of an `EncodecModel`: as many codebooks as a bandwidth allows.

    Args:
        dimension: D.
        n_q: Q.
        bins: K.
        decay, kmeans_init, kmeans_iters, threshold_ema_dead_code: As of `VectorQuantization`.
    """

    def __init__(
        self,
        dimension: int = 256,
        n_q: int = 8,
        bins: int = 1024,
        decay: float = 0.99,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        threshold_ema_dead_code: float = 2,
    ) -> None:
        super().__init__()
        self.n_q = n_q
        self.dimension = dimension
        self.bins = bins
        self.decay = decay
        self.kmeans_init = kmeans_init
        self.kmeans_iters = kmeans_iters
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.vq = ResidualVectorQuantization(
            dim=dimension,
            codebook_size=bins,
            num_quantizers=n_q,
            decay=decay,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            threshold_ema_dead_code=threshold_ema_dead_code,
        )

    def forward(
        self, x: Tensor, frame_rate: int, bandwidth: float | None = None
    ) -> QuantizedResult:
        """Quantise `[B, D, T]` of `frame_rate` positions a second at most at `bandwidth` kb/s."""
        n_q = self.get_num_quantizers_for_bandwidth(frame_rate, bandwidth)
        quantized, codes, losses = self.vq(x, n_q=n_q)
        rate = x.new_tensor(n_q * self.get_bandwidth_per_quantizer(frame_rate))
        return QuantizedResult(quantized, codes, rate, penalty=losses.mean())

    def get_num_quantizers_for_bandwidth(
        self, frame_rate: int, bandwidth: float | None = None
    ) -> int:
        """As many quantisers as `bandwidth` kb/s hold, at least one; without it all."""
        if not bandwidth or bandwidth <= 0:
            return self.n_q
        return max(1, math.floor(bandwidth * 1000 / self.get_bandwidth_per_quantizer(frame_rate)))

    def get_bandwidth_per_quantizer(self, frame_rate: int) -> float:
        """Bits a second of one quantiser."""
        return math.log2(self.bins) * frame_rate

    def encode(self, x: Tensor, frame_rate: int, bandwidth: float | None = None) -> Tensor:
        """`[B, D, T]` -> int64 `[n_q, B, T]`."""
        n_q = self.get_num_quantizers_for_bandwidth(frame_rate, bandwidth)
        return self.vq.encode(x, n_q=n_q)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 `[q, B, T]` -> `[B, D, T]`."""
        return self.vq.decode(codes)
