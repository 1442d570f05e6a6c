"""Quantisers whose codes are learnt by gradient descent.

Sizes: K codes, D embedding_dim.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting

from vqvae2_fast import ops
from vqvae2_fast.files.kinds import check_fields, number, one_of
from vqvae2_fast.modules.averages import initial_codebook
from vqvae2_fast.modules.batch import all_reduce_
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_codebook_fields,
    check_mask,
    check_vectors,
    filled,
    linear_of,
    mean_square_error,
    wide,
    with_masked,
)
from vqvae2_fast.ops._checks import checked_integer
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

__all__ = ["IBQ", "SimVQ", "VQBridge", "VectorQuantizer"]

Gradient = Literal["straight_through", "rotation"]
Metric = Literal["euclidean", "cosine", "direction"]

# Logits that IBQ holds at once for the entropies: 1 MiB stays in a CPU's cache, and 64 MiB are few
# launches, or few pieces in a compiled program.
_LOGITS_IN_CACHE, _MOST_LOGITS = 1 << 18, 1 << 24


class _LearntCodes(Quantizer):
    """Nearest code of a codebook `codes()` that has a gradient."""

    metric: Metric = "euclidean"

    def __init__(
        self, num_embeddings: int, embedding_dim: int, commitment_cost: float, gradient: Gradient
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.gradient = gradient
        check_codebook_fields(self)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, commitment_cost={self.commitment_cost}, "
            f"gradient={self.gradient!r}"
        )

    def codes(self) -> Tensor:
        """The codebook `[K, D]`."""
        raise NotImplementedError

    def _nearest(self, z: Tensor, codes: Tensor) -> Tensor:
        if self.metric == "direction":
            z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
        return ops.nearest_code(z, codes)[0]

    def _on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.metric == "cosine" else x

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype: the codebook's rows, with the chosen gradient to z and none
                to the codebook, which the loss moves.
            indices: int64 `[...]`, the nearest codes, exactly as `ops.nearest_code` finds them.
            loss: float32, 0-d: mean((sg[z] − e)²) + commitment_cost × mean((z − sg[e])²), with
                metric "cosine" of z / ‖z‖.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        with without_autocast(z.device):
            given, z = z, self._on_sphere(filled(z, mask))
            codes = self.codes()
            indices = self._nearest(z.detach(), codes.detach())
            rows = F.embedding(indices, codes)
            numbers = wide(z)
            loss = mean_square_error(rows, numbers.detach().to(rows.dtype), mask)
            loss = loss + self.commitment_cost * mean_square_error(
                numbers, rows.detach().to(numbers.dtype), mask
            )
            z_q = rows.detach().to(z.dtype)
            rotates = self.gradient == "rotation"
            z_q = rotate_gradient(z, z_q) if rotates else z_q + (z - z.detach())
        z_q, indices = with_masked(z_q, indices, given, mask)
        self.note_use(indices)
        return z_q, indices, loss.float()

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return self._nearest(self._on_sphere(z), self.codes())

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_embeddings)
        return F.embedding(indices, self.codes())


class VectorQuantizer(_LearntCodes):
    """The codebook of eq. 3 of https://arxiv.org/abs/1711.00937, learnt by its gradient.

    It has no restarts: codes that no vector is nearest to stay where they are.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        commitment_cost: β.
        gradient: How the gradient passes from z_q to z, as in `VectorQuantizerEMA`.
        seed, stream: Of the codebook's start, as in `VectorQuantizerEMA`.
        metric: "euclidean". "cosine": vectors and codes are divided by their length first, through
            which their gradients pass, as in LlamaGen's `l2_norm`. "direction": the code of largest
            cosine is chosen, and z_q and the loss are of codes and vectors as they are, as in
            Descript's audio codec.

    Raises:
        ValueError: K or D below 1, a commitment_cost that is negative or infinite, or an unknown
            gradient or metric.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        gradient: Gradient = "straight_through",
        seed: int = 0,
        stream: int = 0,
        metric: Metric = "euclidean",
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, commitment_cost, gradient)
        self.metric = metric
        check_fields(self, metric=one_of(get_args(Metric)))
        self.codebook = nn.Parameter(
            initial_codebook(
                num_embeddings, embedding_dim, init="uniform", seed=seed, stream=stream
            )
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, metric={self.metric!r}"

    def codes(self) -> Tensor:
        return self._on_sphere(self.codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_embeddings)
        with without_autocast(indices.device):
            return self._on_sphere(F.embedding(indices, self.codebook))


class SimVQ(_LearntCodes):
    """Codes C·Wᵀ of a fixed random C and one learnt matrix W: https://arxiv.org/abs/2411.02038.

    Every step moves all codes through W, so none is left behind.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        commitment_cost: β of eq. 3 of https://arxiv.org/abs/1711.00937, which is the loss.
        gradient: How the gradient passes from z_q to z, as in `VectorQuantizerEMA`.
        seed, stream: Of C ~ N(0, 1/D), as in `VectorQuantizerEMA`; W starts by torch's default.

    Raises:
        ValueError: K or D below 1, a commitment_cost that is negative or infinite, or an unknown
            gradient.
    """

    frozen_codebook: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        gradient: Gradient = "straight_through",
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, commitment_cost, gradient)
        frozen = initial_codebook(
            num_embeddings, embedding_dim, init="normal", seed=seed, stream=stream
        )
        self.register_buffer("frozen_codebook", frozen * embedding_dim**-0.5)
        self.code_transform = nn.Linear(
            embedding_dim, embedding_dim, bias=False, dtype=frozen.dtype
        )

    def codes(self) -> Tensor:
        return linear_of(self.code_transform, self.frozen_codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_embeddings)
        with without_autocast(indices.device):
            codes: Tensor = self.code_transform(F.embedding(indices, self.frozen_codebook))
        return codes


class VQBridge(_LearntCodes):
    """Codes that a transformer makes of a learnt codebook: https://arxiv.org/abs/2509.10140.

    The transformer reads `codes_per_token` codes in a row as one token, so the gradient of the few
    codes that a batch chooses reaches all codes. It is needed in training alone: `folded` gives
    the quantiser with the codes that it has made.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        commitment_cost: β of eq. 3 of https://arxiv.org/abs/1711.00937, which is the loss.
        gradient: How the gradient passes from z_q to z, as in `VectorQuantizerEMA`.
        codes_per_token: A divisor of K. Attention costs (K / codes_per_token)² a step.
        hidden_dim: Width of the transformer, a multiple of its 4 heads.
        depth: Its blocks.
        seed, stream: Of the codebook's start, as in `VectorQuantizerEMA`; the transformer starts
            by torch's default and its last layer at zero.

    Raises:
        ValueError: K or D below 1, a commitment_cost that is negative or infinite, an unknown
            gradient, or codes_per_token, hidden_dim or depth that do not fit.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        gradient: Gradient = "straight_through",
        codes_per_token: int = 16,
        hidden_dim: int = 256,
        depth: int = 2,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, commitment_cost, gradient)
        checked_integer("codes_per_token", codes_per_token, 1)
        checked_integer("hidden_dim", hidden_dim, 1)
        checked_integer("depth", depth, 1)
        if num_embeddings % codes_per_token:
            raise ValueError(
                f"expected codes_per_token to divide the num_embeddings {num_embeddings}, "
                f"got {codes_per_token}."
            )
        if hidden_dim % 4:
            raise ValueError(f"expected hidden_dim to be a multiple of 4, got {hidden_dim}.")
        self.seed, self.stream = seed, stream
        self.codebook = nn.Parameter(
            initial_codebook(
                num_embeddings, embedding_dim, init="uniform", seed=seed, stream=stream
            )
        )
        token_dim = codes_per_token * embedding_dim
        tokens = num_embeddings // codes_per_token
        dtype = self.codebook.dtype
        self.compress = nn.Linear(token_dim, hidden_dim, dtype=dtype)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, hidden_dim, dtype=dtype))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_dim,
                nhead=4,
                dim_feedforward=2 * hidden_dim,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
                dtype=dtype,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_dim, dtype=dtype)
        self.recover = nn.Linear(hidden_dim, token_dim, dtype=dtype)
        nn.init.zeros_(self.recover.weight)
        nn.init.zeros_(self.recover.bias)

    def codes(self) -> Tensor:
        tokens = self.codebook.view(1, *self.positions.shape[:1], -1)  # [1, K/c, c·D]
        x = self.compress(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        codes: Tensor = self.recover(self.norm(x)).view_as(self.codebook)
        return codes

    @torch.no_grad()
    def folded(self) -> VectorQuantizer:
        """A `VectorQuantizer` with the codes as they are now, without the transformer."""
        folded = VectorQuantizer(
            self.num_embeddings,
            self.embedding_dim,
            self.commitment_cost,
            self.gradient,
            seed=self.seed,
            stream=self.stream,
        ).to(self.codebook.device)
        with without_autocast(self.codebook.device):
            folded.codebook.data = self.codes()
        return folded.train(self.training)


class IBQ(Quantizer):
    """Index backpropagation: every code gets a gradient, https://arxiv.org/abs/2412.02692.

    The code of a vector is the one of largest inner product, z_q = hard·C + p·C − sg[p·C] with
    p = softmax(z·Cᵀ). The softmax is attention of the vectors to the codes, so that no matrix of
    N×K is stored: memory grows as N + K.

    The loss is mean((z_q − z)²) + mean((z − sg[e])²) + commitment_cost × mean((e − sg[z])²) with
    e = hard·C, as in the authors' code. To it comes entropy_weight × (the mean entropy of p_τ minus
    the entropy of the mean p_τ) with p_τ = softmax(z·Cᵀ / temperature).

    Args:
        num_embeddings: K.
        embedding_dim: D.
        commitment_cost: β.
        entropy_weight: Of the entropies, in nats; 0 leaves them out, which takes a third of the
            time.
        temperature: τ of the entropies.
        seed, stream: Of the codes' start, N(0, 1), as in `VectorQuantizerEMA`.

    Raises:
        ValueError: K or D below 1, a commitment_cost or entropy_weight that is negative or
            infinite, or a temperature that is not positive.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.05,
        temperature: float = 0.01,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        super().__init__()
        self.num_embeddings = checked_integer("num_embeddings", num_embeddings, 1)
        self.embedding_dim = checked_integer("embedding_dim", embedding_dim, 1)
        self.commitment_cost = commitment_cost
        self.entropy_weight = entropy_weight
        self.temperature = temperature
        check_fields(
            self,
            commitment_cost=number(0),
            entropy_weight=number(0),
            temperature=number(above=0),
        )
        self.codebook = nn.Parameter(
            initial_codebook(num_embeddings, embedding_dim, init="normal", seed=seed, stream=stream)
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, commitment_cost={self.commitment_cost}, "
            f"entropy_weight={self.entropy_weight}, temperature={self.temperature}"
        )

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype: the codebook's rows, with gradients to z and to all codes.
            indices: int64 `[...]`, the codes of largest inner product.
            loss: float32, 0-d. With entropies it may be negative.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        given = z
        with without_autocast(z.device):
            numbers = filled(z, mask).to(self.codebook.dtype)
            rows = numbers.reshape(-1, self.embedding_dim)  # [N, D]
            indices = self._largest_product(numbers)
            codes = F.embedding(indices, self.codebook)
            soft = _soft_codes(rows, self.codebook, self.codebook.detach(), 1.0).view_as(numbers)
            z_q = codes + (soft - soft.detach())
            loss = mean_square_error(z_q, numbers, mask)
            loss = loss + mean_square_error(numbers, codes.detach(), mask)
            loss = loss + self.commitment_cost * mean_square_error(codes, numbers.detach(), mask)
            if self.entropy_weight:
                counts = None if mask is None else mask.reshape(-1)
                loss = loss + self.entropy_weight * self._entropies(rows, counts)
        z_q, indices = with_masked(z_q.to(given.dtype), indices, given, mask)
        self.note_use(indices)
        return z_q, indices, loss.float()

    def _largest_product(self, z: Tensor) -> Tensor:
        """argmax of z·Cᵀ by the exact search: `[..., D]` -> int64 `[...]`.

        One more number gives all codes the length of the longest, and z has 0 there, so that the
        nearest code is the one of largest product.
        """
        codes = self.codebook.detach()
        squares = codes.square().sum(1)
        rest = (squares.max() - squares).sqrt()
        return ops.nearest_code(F.pad(z, (0, 1)), torch.cat([codes, rest[:, None]], 1))[0]

    def _entropies(self, z: Tensor, counts: Tensor | None) -> Tensor:
        """Mean entropy of p_τ minus the entropy of the mean p_τ, in nats, of rows z `[N, D]`.

        Their gradients to the logits l are those of attention to fixed values:
        −p_k (l_k − Σ_j p_j l_j) for the entropy of a row, and p_k (w_k − Σ_j p_j w_j) / N with
        w = −log p̄ for that of the mean p̄. The sums of rows and columns have no gradient.

        Args:
            counts: bool `[N]`, True for the rows that count.
        """
        codes, inverse = self.codebook, 1.0 / self.temperature
        # `len` would fix N in a program for any N, which cannot loop over pieces either.
        weights = z.new_ones(z.shape[0]) if counts is None else counts.to(z.dtype)
        count = weights.sum().clamp(min=1)
        with torch.no_grad():
            mean = z.new_zeros(len(codes))
            log_sums = []
            pieces = [(z, weights)]
            if not is_exporting():
                in_cache = z.device.type == "cpu" and not is_compiling()
                most = max(1, (_LOGITS_IN_CACHE if in_cache else _MOST_LOGITS) // len(codes))
                pieces = list(zip(z.split(most), weights.split(most), strict=True))
            for piece, weight in pieces:
                logits = piece @ codes.t() * inverse  # [n, K]
                soft = logits.softmax(1)
                # The largest p is exp(its logit − log Σ exp).
                log_sums.append(logits.amax(1) - soft.amax(1).log())
                mean += weight @ soft
            # Of all processes, as if they were one; each gives its rows' part of the gradient.
            total = torch.cat([mean, count[None]])
            all_reduce_(total)
            mean = total[:-1] / total[-1]
            log_sum = torch.cat(log_sums)
            log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        values = torch.cat([codes.detach(), -log_mean[:, None]], 1)
        soft = _soft_codes(F.pad(z, (0, 1)), F.pad(codes, (0, 1)), values, self.temperature)
        products = (z.detach() * soft[:, :-1]).sum(1) * inverse
        of_rows = log_sum - products  # lse − Σ p l
        return (weights * (of_rows - soft[:, -1])).sum() / count

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return self._largest_product(z.to(self.codebook.dtype))

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_embeddings)
        return F.embedding(indices, self.codebook)


def _soft_codes(z: Tensor, codes: Tensor, values: Tensor, temperature: float) -> Tensor:
    """softmax(z·codesᵀ / temperature)·values: z `[N, D]`, codes and values `[K, D]` -> `[N, D]`."""
    # On a CPU the backward of PyTorch's attention gives a thread one entry of the batch, and takes
    # twice as long with fewer than 768 rows in it. Their number does not depend on the threads, so
    # that the sums of the codes' gradient have one order.
    pieces = 1
    if not is_exporting():
        pieces = math.gcd(len(z), 1 << min(3, max(1, len(z) // 768).bit_length() - 1))
    batch = z.view(pieces, 1, -1, z.shape[1])
    codes, values = (x.expand(pieces, 1, -1, -1) for x in (codes, values))
    soft = F.scaled_dot_product_attention(batch, codes, values, scale=1.0 / temperature)
    return soft.reshape_as(z)
