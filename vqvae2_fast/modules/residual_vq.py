"""Residual quantisation: each codebook quantises what the ones before it left over.

Sizes: N vectors, Q quantisers, K codes, D embedding_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.averages import start_residual_codebooks_
from vqvae2_fast.modules.batch import words_of_step
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.host import inside_backward
from vqvae2_fast.modules.index_range import (
    check_columns,
    check_indices,
    check_integers,
    check_range,
)
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_joint,
    check_mask,
    check_vectors,
    checked_prefix,
    filled,
    join_codes,
    masked_mean_square,
    split_codes,
    wide,
    with_masked,
)
from vqvae2_fast.ops.gumbel_noise.op import PURPOSE_DROPOUT
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["ResidualVQ", "stacked_codebooks"]


class ResidualVQ(Quantizer):
    """Q codebooks in a row: algorithm 1 of https://arxiv.org/abs/2107.03312.

    r_0 = z, i_q = nearest(r_q, codebook_q), r_{q+1} = r_q − e_q in float32, and z_q = Σ_q e_q. Each
    codebook follows its residuals by moving averages, as `VectorQuantizerEMA` says. Implicit neural
    codebooks (QINCo), whose codes depend on the ones before, are not built.

    Args:
        num_embeddings: K, or one number for each quantiser.
        embedding_dim: D.
        num_quantizers: Q. None takes it from the length of num_embeddings.
        commitment_cost: β of the loss β · Σ_q mean((r_q − sg[e_q])²), eq. 7 of
            https://arxiv.org/abs/2203.01941.
        shared_codebook: All quantisers use one codebook, which learns from all residuals at once.
        quantizer_dropout: In training use only the first n quantisers, n drawn uniformly from
            1..Q for each step, the same on all processes: a function of the seed and of the number
            of updates. On a GPU the host then waits for it once in a forward, and `torch.compile`
            breaks the graph there.
        joint_code: Return one index of a vector, Σ_q i_q · Π_{p<q} K_p, instead of Q. Priors need
            it, so `VQVAE2` sets it. Not with quantizer_dropout.
        gradient, update, seed, stream and others: As of `VectorQuantizerEMA`, of each codebook.

    Raises:
        ValueError: Arguments that do not fit one another; a metric other than "euclidean"; a joint
            code beyond 62 bits; or as `VectorQuantizerEMA`.

    Note:
        z_q has one straight-through gradient (or rotation, onto the sum) to z, whatever Q.
        Vectors with NaN or infinity move no code.
    """

    def __init__(
        self,
        num_embeddings: int | Sequence[int],
        embedding_dim: int,
        num_quantizers: int | None = None,
        commitment_cost: float = 0.25,
        shared_codebook: bool = False,
        quantizer_dropout: bool = False,
        joint_code: bool = False,
        seed: int = 0,
        stream: int = 0,
        **others: Any,
    ) -> None:
        super().__init__()
        self.sizes = _sizes(num_embeddings, num_quantizers)
        if shared_codebook and len(set(self.sizes)) > 1:
            raise ValueError(
                f"expected one num_embeddings with shared_codebook=True, got {list(self.sizes)}."
            )
        if joint_code and quantizer_dropout:
            raise ValueError(
                "expected joint_code or quantizer_dropout, got both: a joint code has "
                "no value for a quantiser that was left out."
            )
        if others.get("metric", "euclidean") != "euclidean":
            raise ValueError(
                f"expected metric='euclidean', got {others['metric']!r}: what codes of "
                "length one leave over does not shrink."
            )
        if joint_code:
            check_joint(self.sizes)
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.shared_codebook = shared_codebook
        self.quantizer_dropout = quantizer_dropout
        self.joint_code = joint_code
        self.gradient = others.get("gradient", "straight_through")
        self.seed = seed
        self.stream = stream
        self.quantizers = nn.ModuleList(
            VectorQuantizerEMA(
                size,
                embedding_dim,
                commitment_cost=commitment_cost,
                seed=seed,
                # Codebooks of one level differ in the bits above its number.
                stream=stream + (number << 8),
                **others,
            )
            for number, size in enumerate(self.sizes[:1] if shared_codebook else self.sizes)
        )

    def extra_repr(self) -> str:
        return (
            f"sizes={list(self.sizes)}, shared_codebook={self.shared_codebook}, "
            f"quantizer_dropout={self.quantizer_dropout}, joint_code={self.joint_code}"
        )

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, the sum of the codes in z's dtype, with the chosen gradient to z.
            indices: int64 `[..., Q]`, −1 for quantisers left out; with joint_code `[...]`.
            loss: float32, 0-d.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        with without_autocast(z.device):
            given, z = z, filled(z, mask)
            if self._codebook(0).waits():
                indices, z_q = self._zeros(z), z
                loss = z.new_zeros((), dtype=torch.float32)
            else:
                codebooks = self._codebooks_for_(z, mask)
                in_use = self._num_in_use()
                z_q, indices, commitments = ops.residual_nearest_code(
                    z, codebooks, num_active=in_use
                )
                if mask is not None:
                    left = _residuals(wide(z), codebooks, indices, in_use + 1)[1:]
                    commitments = torch.stack([masked_mean_square(r, mask) for r in left])
                    indices = indices.masked_fill(~mask[..., None], -1)
                if self.gradient == "rotation":
                    z_q = rotate_gradient(z, z_q.detach())
                self._take_(z.detach(), mask, codebooks, indices, in_use)
                loss = self.commitment_cost * commitments.sum()
        return *with_masked(z_q, self._indices(indices), given, mask), loss

    @torch.no_grad()
    def encode(self, z: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Only the indices, int64 `[..., Q]`; nothing is learnt from z in either mode.

        Args:
            z: `[..., D]`, floating.
            num_quantizers: Use only the first q of them, whose indices `[..., q]` equal the first
                of all. The others are not searched. Not with joint_code.

        Raises:
            ValueError: num_quantizers is not in 1..Q, or as `forward`.
        """
        check_vectors(z, self.embedding_dim)
        first = checked_prefix(num_quantizers, self.sizes, self.joint_code)
        with without_autocast(z.device):
            codebooks = self._stacked([book.codebook for book in self._codebooks()])[:first]
            return self._indices(ops.residual_nearest_code(z, codebooks)[1])

    def lookup(self, indices: Tensor) -> Tensor:
        """The sums of codes: int64 `[..., Q]` (or joint `[...]`) -> `[..., D]`; −1 adds nothing.

        The first columns `[..., q]` alone give the sums of the first q codes.
        """
        check_integers("indices", indices)
        if self.joint_code:
            check_indices(indices, math.prod(self.sizes))
        else:
            check_columns(indices, len(self.sizes), or_fewer=True)
        parts = split_codes(indices, self.sizes) if self.joint_code else indices
        total: Tensor | None = None
        own = zip(self._codebooks(), parts.unbind(-1), self.sizes, strict=False)
        for number, (book, index, size) in enumerate(own):
            check_range(f"indices[..., {number}]", index, -1, size)
            rows = book.lookup(index.clamp(min=0))
            rows = torch.where((index >= 0)[..., None], rows, torch.zeros_like(rows))
            total = rows if total is None else total + rows
        assert total is not None
        return total

    def must_start(self) -> bool:
        return any(book.must_start() for book in self._codebooks())

    @torch.no_grad()
    def start_(self, vectors: list[Tensor], parts: list[BatchPart]) -> None:
        residuals = [wide(z) for z in vectors]
        for number in range(len(self.quantizers)):
            book = self._codebook(number)
            book.start_(residuals, parts)
            residuals = [r - book.lookup(book.encode(r)) for r in residuals]

    def _codebook(self, number: int) -> VectorQuantizerEMA:
        return cast("VectorQuantizerEMA", self.quantizers[0 if self.shared_codebook else number])

    def _codebooks(self) -> Iterator[VectorQuantizerEMA]:
        """The codebook of each quantiser."""
        return map(self._codebook, range(len(self.sizes)))

    def _stacked(self, codebooks: Sequence[Tensor]) -> Tensor:
        """`[Q, K, D]`, as `stacked_codebooks`."""
        if self.shared_codebook:
            return codebooks[0].expand(len(self.sizes), -1, -1)
        return stacked_codebooks(codebooks)

    @torch.no_grad()
    def _codebooks_for_(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """What this forward searches, `[Q, K, D]`; in training k-means may start it."""
        own = [cast("VectorQuantizerEMA", book) for book in self.quantizers]
        if self.training and not inside_backward():
            for book in own:
                book.phase.look_at(book.initialised)
            start_residual_codebooks_(
                z.detach().reshape(-1, self.embedding_dim),
                None if mask is None else mask.reshape(-1),
                [tensor for book in own for tensor in book.averages],
                [book.phase.settled for book in own],
                [book.rule.stream for book in own],
                **vars(own[0].rule),
            )
        return self._stacked([book.codebook_for_(z, mask) for book in own])

    def _num_in_use(self) -> int:
        quantizers, steps = len(self.sizes), self._codebook(0).steps
        if not (self.training and self.quantizer_dropout) or steps.is_meta:
            return quantizers
        if not inside_backward():
            # A checkpoint's recomputation uses as many as its forward.
            zero, level = torch.zeros_like(steps), self.stream & 0xFF
            word = words_of_step(zero, steps, seed=self.seed, stream=level, purpose=PURPOSE_DROPOUT)
            self._latest_in_use = int(word % quantizers) + 1
        return self._latest_in_use

    @torch.no_grad()
    def _take_(
        self, z: Tensor, mask: Tensor | None, codebooks: Tensor, indices: Tensor, in_use: int
    ) -> None:
        """Note the codes of a forward; in training they enter the pending statistics."""
        if self.training and not inside_backward():
            counts, sums = ops.residual_code_statistics(z, codebooks, indices)
            # For restarts.
            rows = [self._codebook(0).lasting(wide(z))] * in_use
            if self._codebook(0).rule.restart:
                codes = indices if mask is None else indices.clamp(min=0)
                rows = _residuals(rows[0], codebooks, codes, in_use)
            if self.shared_codebook:
                # One more dimension after the samples: their vectors stay together.
                side = min(1, z.dim() - 1)
                masks = None if mask is None else torch.stack([mask] * in_use, dim=side)
                self._codebook(0).learn_(
                    torch.stack(rows, dim=side), counts.sum(0), sums.sum(0), masks
                )
            else:
                for number, left in enumerate(rows):
                    size, book = self.sizes[number], self._codebook(number)
                    book.learn_(left, counts[number, :size], sums[number, :size], mask)
        if self.joint_code:
            joint = join_codes(indices, self.sizes).clamp(min=-1)
            self.note_use(joint[..., None], math.prod(self.sizes))
        else:
            self.note_use(indices[..., :in_use], *self.sizes[:in_use])

    def _zeros(self, z: Tensor) -> Tensor:
        return torch.zeros(*z.shape[:-1], len(self.sizes), dtype=torch.int64, device=z.device)

    def _indices(self, parts: Tensor) -> Tensor:
        return join_codes(parts, self.sizes) if self.joint_code else parts


def stacked_codebooks(codebooks: Sequence[Tensor]) -> Tensor:
    """`[Q, K, D]` of codebooks `[K_q, D]`, the smaller ones filled up with NaN, which is nearest to
    nothing."""
    largest = max(map(len, codebooks))
    return torch.stack(
        [F.pad(book, (0, 0, 0, largest - len(book)), value=torch.nan) for book in codebooks]
    )


def _residuals(z: Tensor, codebooks: Tensor, indices: Tensor, count: int) -> list[Tensor]:
    """r_q, `[..., D]`, of the first quantisers; one more than are in use is what all leave over."""
    residuals = [z]
    for codebook, index in zip(codebooks, indices[..., : count - 1].unbind(-1), strict=False):
        residuals.append(residuals[-1] - codebook[index])
    return residuals


def _sizes(num_embeddings: int | Sequence[int], num_quantizers: int | None) -> tuple[int, ...]:
    """The number of codes of each quantiser."""
    if isinstance(num_embeddings, int):
        if num_quantizers is None or num_quantizers < 1:
            raise ValueError(
                "expected num_quantizers >= 1, or a number of codes for each "
                f"quantiser, got num_embeddings={num_embeddings} and num_quantizers="
                f"{num_quantizers}."
            )
        return (num_embeddings,) * num_quantizers
    if not num_embeddings or num_quantizers not in (None, len(num_embeddings)):
        raise ValueError(
            f"expected num_quantizers={len(num_embeddings)} or none for "
            f"num_embeddings={list(num_embeddings)}, got {num_quantizers}."
        )
    return tuple(num_embeddings)
