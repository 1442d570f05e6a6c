"""Finite scalar quantisation: a fixed grid of a few values for each of a few numbers.

Sizes: d numbers of a vector, L_i values of the i-th one, K = Π L_i codes, Q quantisers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.index_range import check_columns, check_indices
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_joint,
    check_mask,
    check_vectors,
    checked_prefix,
    digits_of,
    filled,
    join_codes,
    projected,
    projections,
    split_codes,
    with_masked,
)
from vqvae2_fast.ops import scalar_quantize
from vqvae2_fast.ops._checks import checked_integers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FSQ", "Grid", "ResidualFSQ", "digits_to_values", "soft_clamp"]


class Grid(NamedTuple):
    """How numbers are bounded and rounded: the arguments of `ops.scalar_quantize`.

    Args:
        levels: L_i, the number of values of each of the d numbers.
        symmetric: Values −1, −1 + 2/(L−1), ..., 1 (eq. 4 of https://arxiv.org/abs/2411.19842).
            Otherwise those of appendix A.1 of https://arxiv.org/abs/2309.15505, which for an even L
            have one value more below zero than above.
        hard: Bound by clamping to [−1, 1] instead of by tanh.
    """

    levels: tuple[int, ...]
    symmetric: bool = False
    hard: bool = False


def digits_to_values(grid: Grid, digits: Tensor, dtype: torch.dtype) -> Tensor:
    """The values `[..., d]` of digits 0..L−1, integers `[..., d]`."""
    # Filled on the device: a copy from the host would end the capture of a CUDA graph.
    sizes = [torch.full((), size, dtype=dtype, device=digits.device) for size in grid.levels]
    levels = torch.stack(sizes)
    if grid.symmetric:
        return digits.to(dtype) / ((levels - 1) / 2) - 1
    middle = levels.div(2, rounding_mode="floor")
    return (digits.to(dtype) - middle) / middle


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

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating; computed in float32, or in float64 if it is.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype; differentiable any number of times.
            indices: int64 `[...]`.
            loss: float32, 0-d: 0.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        with without_autocast(z.device):
            numbers = digits_of(self.project_in, filled(z, mask))
            values, indices = scalar_quantize(numbers, *self.grid)
            z_q = projected(self.project_out, values).to(z.dtype)
        z_q, indices = with_masked(z_q, indices, z, mask)
        self.note_use(indices)
        return z_q, indices, torch.zeros((), dtype=torch.float32, device=z.device)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return scalar_quantize(digits_of(self.project_in, z), *self.grid)[1]

    def lookup(self, indices: Tensor) -> Tensor:
        check_indices(indices, math.prod(self.grid.levels))
        digits = split_codes(indices, self.grid.levels)
        weight = getattr(self.project_out, "weight", None)
        dtype = torch.float32 if weight is None else weight.dtype
        with without_autocast(indices.device):
            return projected(self.project_out, digits_to_values(self.grid, digits, dtype))


def soft_clamp(z: Tensor, bound: Tensor) -> Tensor:
    """bound · tanh(z / bound)."""
    return torch.tanh(z / bound) * bound


class ResidualFSQ(Quantizer):
    """Q symmetric grids of d numbers, the q-th finer by L_i^q, each of what is left over.

    r_0 = c·tanh(z/c) with c = 1 + 1/(L−1); code q is s_q · grid(r_q / s_q) with s_q = L^−q, and
    r_{q+1} = r_q − code q, as `ResidualFSQ` of vector-quantize-pytorch. z_q is their sum.

    Args:
        levels: L_i >= 2 of each number.
        num_quantizers: Q.
        embedding_dim: D; linear layers lead to the d numbers and back where it is not d. None is d.
        joint_code: Return one index of a vector, below (Π L_i)^Q, instead of Q.

    Raises:
        ValueError: No levels, one below 2, no quantiser, or a joint code beyond 62 bits.

    Note:
        z_q has one straight-through gradient. There is no loss.
    """

    def __init__(
        self,
        levels: Sequence[int],
        num_quantizers: int,
        embedding_dim: int | None = None,
        joint_code: bool = False,
    ) -> None:
        super().__init__()
        levels = checked_integers("levels", levels)
        if not levels or min(levels) < 2 or num_quantizers < 1:
            raise ValueError(
                "expected levels of at least 2 values each and num_quantizers >= 1, "
                f"got {levels} and {num_quantizers}."
            )
        self.grid = Grid(tuple(levels), symmetric=True, hard=True)
        self.sizes = (math.prod(levels),) * num_quantizers
        if joint_code:
            check_joint(self.sizes)
        self.joint_code = joint_code
        self.embedding_dim = len(levels) if embedding_dim is None else embedding_dim
        self.project_in, self.project_out = projections(self.embedding_dim, len(levels))

    def extra_repr(self) -> str:
        return f"{list(self.grid.levels)}, num_quantizers={len(self.sizes)}"

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """s_q `[Q, d]` and c `[d]`, of like's dtype and on its device."""
        # Not buffers: `half()` would round them, and `to_empty()` would lose them.
        levels = self.grid.levels
        rows = [[float(size) ** -number for size in levels] for number in range(len(self.sizes))]
        rows.append([1 + 1 / (size - 1) for size in levels])
        # Filled on the device: a copy from the host would end the capture of a CUDA graph.
        numbers = [
            torch.full((), number, dtype=like.dtype, device=like.device)
            for row in rows
            for number in row
        ]
        table = torch.stack(numbers).view(len(rows), len(levels))
        return table[:-1], table[-1]

    def _codes(self, numbers: Tensor, first: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The clamped numbers, the sum of their codes, both `[..., d]`, and int64 `[..., Q]`, or of
        only the first quantisers."""
        scales, bound = self.constants(numbers)
        clamped = soft_clamp(numbers, bound)
        residual, indices = clamped.detach(), []
        total = torch.zeros_like(residual)
        for scale in scales[:first]:
            values, index = scalar_quantize(residual / scale, *self.grid)
            residual = residual - values * scale
            total = total + values * scale
            indices.append(index)
        return clamped, total, torch.stack(indices, dim=-1)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating; computed in float32, or in float64 if it is.
            mask: bool `[...]`, True for the vectors that count, as of `VectorQuantizerEMA`.

        Returns:
            z_q: `[..., D]`, z's dtype.
            indices: int64 `[..., Q]`; with joint_code `[...]`.
            loss: float32, 0-d: 0.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating; mask is not
                `[...]` or not bool.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        with without_autocast(z.device):
            numbers, total, parts = self._codes(digits_of(self.project_in, filled(z, mask)))
            z_q = projected(self.project_out, total + (numbers - numbers.detach())).to(z.dtype)
        indices = join_codes(parts, self.sizes) if self.joint_code else parts
        z_q, indices = with_masked(z_q, indices, z, mask)
        self.note_use(
            parts if mask is None else parts.masked_fill(~mask[..., None], -1), *self.sizes
        )
        return z_q, indices, torch.zeros((), dtype=torch.float32, device=z.device)

    @torch.no_grad()
    def encode(self, z: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Only the indices, int64 `[..., Q]`, or of the first: see `ResidualVQ.encode`."""
        check_vectors(z, self.embedding_dim)
        first = checked_prefix(num_quantizers, self.sizes, self.joint_code)
        with without_autocast(z.device):
            parts = self._codes(digits_of(self.project_in, z), first)[-1]
        return join_codes(parts, self.sizes) if self.joint_code else parts

    def lookup(self, indices: Tensor) -> Tensor:
        """The sums of codes: int64 `[..., Q]` (or joint `[...]`) -> `[..., D]`.

        The first columns `[..., q]` alone give the sums of the first q codes.
        """
        end = math.prod(self.sizes) if self.joint_code else self.sizes[0]
        check_indices(indices, end)
        if not self.joint_code:
            check_columns(indices, len(self.sizes), or_fewer=True)
        parts = split_codes(indices, self.sizes) if self.joint_code else indices
        weight = getattr(self.project_out, "weight", None)
        is_double = weight is not None and weight.dtype == torch.float64
        dtype = torch.float64 if is_double else torch.float32
        scales, _ = self.constants(torch.empty(0, dtype=dtype, device=indices.device))
        total: Tensor | None = None
        for part, scale in zip(parts.unbind(-1), scales, strict=False):
            digits = split_codes(part, self.grid.levels)
            values = digits_to_values(self.grid, digits, dtype) * scale
            total = values if total is None else total + values
        assert total is not None  # as there is a quantiser
        with without_autocast(indices.device):
            return projected(self.project_out, total)
