"""Residual finite scalar quantisation: finer and finer grids of a few numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.projections import projected, projections, wide
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_joint,
    check_vectors,
    join_codes,
    perplexity_of,
    split_codes,
)
from vqvae2_fast.modules.scalar_rounding import Grid, digits_to_values
from vqvae2_fast.ops import scalar_quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ResidualFSQ", "soft_clamp"]


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

    Note:
        z_q has one straight-through gradient. There is no loss.
    """

    scales: Tensor
    bound: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        num_quantizers: int,
        embedding_dim: int | None = None,
        joint_code: bool = False,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2 or num_quantizers < 1:
            raise ValueError(
                "ResidualFSQ: expected levels of at least 2 values each and num_quantizers >= 1, "
                f"got {list(levels)} and {num_quantizers}."
            )
        self.grid = Grid(tuple(levels), symmetric=True, hard=True)
        self.sizes = (math.prod(levels),) * num_quantizers
        if joint_code:
            check_joint("ResidualFSQ", self.sizes)
        self.joint_code = joint_code
        self.embedding_dim = len(levels) if embedding_dim is None else embedding_dim
        self.project_in, self.project_out = projections(self.embedding_dim, len(levels))
        counts = torch.tensor(levels, dtype=torch.float32)
        scales = torch.stack([counts**-number for number in range(num_quantizers)])
        self.register_buffer("scales", scales, persistent=False)  # [Q, d]
        self.register_buffer("bound", 1 + 1 / (counts - 1), persistent=False)  # [d]
        self.perplexity = torch.ones(())

    def extra_repr(self) -> str:
        return f"{list(self.grid.levels)}, num_quantizers={len(self.sizes)}"

    def _codes(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the codes `[..., d]` and int64 `[..., Q]`."""
        residual, indices = numbers, []
        total = torch.zeros_like(numbers)
        for scale in self.scales.to(numbers.dtype):
            values, index = scalar_quantize(residual / scale, *self.grid)
            residual = residual - values * scale
            total = total + values * scale
            indices.append(index)
        return total, torch.stack(indices, dim=-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, floating; computed in float32, or in float64 if it is.

        Returns:
            z_q: `[..., D]`, z's dtype.
            indices: int64 `[..., Q]`; with joint_code `[...]`.
            loss: float32, 0-d: 0.

        Raises:
            ValueError, TypeError: The last size of z is not D, or z is not floating.
        """
        check_vectors("ResidualFSQ", z, self.embedding_dim)
        with without_autocast(z.device):
            numbers = wide(projected(self.project_in, z))
            numbers = soft_clamp(numbers, self.bound.to(numbers.dtype))
            total, parts = self._codes(numbers.detach())
            z_q = projected(self.project_out, total + (numbers - numbers.detach())).to(z.dtype)
        each = [perplexity_of(part, self.sizes[0]) for part in parts.unbind(-1)]
        self.perplexity = torch.stack(each).mean()
        indices = join_codes(parts, self.sizes) if self.joint_code else parts
        return z_q, indices, torch.zeros((), device=z.device)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_vectors("ResidualFSQ", z, self.embedding_dim)
        with without_autocast(z.device):
            numbers = wide(projected(self.project_in, z))
            parts = self._codes(soft_clamp(numbers, self.bound.to(numbers.dtype)))[1]
        return join_codes(parts, self.sizes) if self.joint_code else parts

    def lookup(self, indices: Tensor) -> Tensor:
        parts = split_codes(indices, self.sizes) if self.joint_code else indices
        weight = getattr(self.project_out, "weight", self.scales)
        total: Tensor | None = None
        for part, scale in zip(parts.unbind(-1), self.scales.to(weight.dtype), strict=True):
            digits = split_codes(part, self.grid.levels)
            values = digits_to_values(self.grid, digits, weight.dtype) * scale
            total = values if total is None else total + values
        assert total is not None  # as there is a quantiser
        with without_autocast(indices.device):
            return projected(self.project_out, total)
