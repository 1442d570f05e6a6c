"""Finite scalar quantisation: a fixed grid of a few values for each of a few numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.projections import projected, projections, wide
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_vectors,
    split_codes,
)
from vqvae2_fast.modules.scalar_rounding import Grid, digits_to_values
from vqvae2_fast.ops import scalar_quantize
from vqvae2_fast.ops._checks import checked_integers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FSQ"]


class FSQ(Quantizer):
    """Rounds d numbers of a vector to L_i values each: https://arxiv.org/abs/2309.15505.

    z_i is bounded by tanh and rounded, with a straight-through gradient (appendix A.1 there, which
    `ops.scalar_quantize` repeats). There is no codebook to learn, and no loss.

    Args:
        levels: L_i >= 3 of each number. The paper advises [8, 6, 5] for about 2⁸ codes,
            [8, 5, 5, 5] for 2¹⁰, [7, 5, 5, 5, 5] for 2¹², [8, 8, 8, 6, 5] for 2¹⁴ and
            [8, 8, 8, 5, 5, 5] for 2¹⁶.
        embedding_dim: D; linear layers lead to the d numbers and back where it is not d. None is d.

    Raises:
        ValueError: No levels, one below 3, or more than 2³¹ codes.

    Note:
        An index is one number below K = Π L_i. A NaN in z gives NaN in z_q and some code's index.
    """

    def __init__(self, levels: Sequence[int], embedding_dim: int | None = None) -> None:
        super().__init__()
        levels = checked_integers("levels", levels)
        if not levels or min(levels) < 3:
            raise ValueError(
                f"expected levels of at least 3 values each, got {levels}. For 2 values use LFQ."
            )
        if math.prod(levels) > 2**31:
            raise ValueError(
                f"expected levels whose product is at most 2**31, got {levels}: "
                "use fewer numbers, or ResidualFSQ."
            )
        self.grid = Grid(tuple(levels))
        self.num_embeddings = math.prod(levels)
        self.embedding_dim = len(levels) if embedding_dim is None else embedding_dim
        self.project_in, self.project_out = projections(self.embedding_dim, len(levels))

    def extra_repr(self) -> str:
        return f"{list(self.grid.levels)}, embedding_dim={self.embedding_dim}"

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating; computed in float32, or in float64 if it is.

        Returns:
            z_q: `[..., D]`, z's dtype; differentiable any number of times.
            indices: int64 `[...]`.
            loss: float32, 0-d: 0.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating.
        """
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            numbers = wide(projected(self.project_in, z))
            values, indices = scalar_quantize(numbers, *self.grid)
            z_q = projected(self.project_out, values).to(z.dtype)
        self.note_use(indices)
        return z_q, indices, torch.zeros((), dtype=torch.float32, device=z.device)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return scalar_quantize(wide(projected(self.project_in, z)), *self.grid)[1]

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, math.prod(self.grid.levels))
        digits = split_codes(indices, self.grid.levels)
        weight = getattr(self.project_out, "weight", None)
        dtype = torch.float32 if weight is None else weight.dtype
        with without_autocast(indices.device):
            return projected(self.project_out, digits_to_values(self.grid, digits, dtype))
