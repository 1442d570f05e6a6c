"""Quantisers whose codes are learnt by gradient descent.

Sizes: K codes, D embedding_dim.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.averages import initial_codebook
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
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

__all__ = ["SimVQ", "VectorQuantizer"]

Gradient = Literal["straight_through", "rotation"]


class _LearntCodes(Quantizer):
    """Nearest code of a codebook `codes()` that has a gradient."""

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

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype: the codebook's rows, with the chosen gradient to z and none
                to the codebook, which the loss moves.
            indices: int64 `[...]`, the nearest codes, exactly as `ops.nearest_code` finds them.
            loss: float32, 0-d: mean((sg[z] − e)²) + commitment_cost × mean((z − sg[e])²).

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        given, z = z, filled(z, mask)
        with without_autocast(z.device):
            codes = self.codes()
            indices = ops.nearest_code(z.detach(), codes.detach())[0]
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
            return ops.nearest_code(z, self.codes())[0]

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

    Raises:
        ValueError: K or D below 1, a commitment_cost that is negative or infinite, or an unknown
            gradient.
    """

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
        self.codebook = nn.Parameter(
            initial_codebook(
                num_embeddings, embedding_dim, init="uniform", seed=seed, stream=stream
            )
        )

    def codes(self) -> Tensor:
        return self.codebook


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
