"""References of `scalar_quantize` and of its gradient, and the constants that define its grids.

Sizes: N vectors, d numbers of a vector, L_i values of the i-th one, K = Π L_i codes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "column_of",
    "columns_of",
    "places_of",
    "scalar_quantize_backward_reference",
    "scalar_quantize_reference",
]

# Keeps the largest value from needing an infinite input: appendix A.1 of the paper.
_MARGIN = 1e-3


class _Column(NamedTuple):
    """How one of the d numbers is rounded.

    Args:
        shift: Added before the bound.
        half, offset: What is rounded is half · bounded + offset.
        least, most: Bounds of what was rounded; its digit is its distance from the least.
        width: Steps between the values 0 and 1.
    """

    shift: float
    half: float
    offset: float
    least: float
    most: float
    width: float


def column_of(size: int, symmetric: bool, hard: bool) -> _Column:
    if symmetric:
        half = (size - 1) / 2
        return _Column(0.0, half, half + 0.5, 0.0, size - 1.0, half)
    half = (size - 1) * (1 + _MARGIN) / 2
    offset = 0.0 if size % 2 else 0.5
    shift = offset / half if hard else math.atanh(offset / half)
    middle = size // 2
    return _Column(shift, half, -offset, -middle, size - 1 - middle, middle)


def columns_of(
    levels: Sequence[int], symmetric: bool, hard: bool, like: Tensor
) -> tuple[Tensor, ...]:
    """Shift, half, offset, least, most and width of a grid, `[d]` each, as `_Column` says."""
    columns = [column_of(size, symmetric, hard) for size in levels]
    return torch.tensor(columns, dtype=like.dtype, device=like.device).unbind(1)


def places_of(levels: Sequence[int]) -> list[int]:
    """Π_{j<i} L_j of each number, modulo 2⁶⁴ as an int64."""
    places = [math.prod(levels[:number]) for number in range(len(levels))]
    return [(place + 2**63) % 2**64 - 2**63 for place in places]


def _wide(z: Tensor) -> Tensor:
    """z in float32 at least: bfloat16 has not even the whole numbers of a large grid."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def scalar_quantize_reference(
    z: Tensor,
    levels: Sequence[int],
    symmetric: bool = False,
    hard: bool = False,
    int32: bool = False,
) -> tuple[Tensor, Tensor]:
    numbers = _wide(z)
    shift, half, offset, least, most, width = columns_of(levels, symmetric, hard, numbers)
    bounded = (numbers + shift).clamp(-1, 1) if hard else (numbers + shift).tanh()
    exact = bounded.detach() * half + offset
    numbers = (exact.floor() if symmetric else exact.round()).clamp(least, most)
    values = numbers / width - 1 if symmetric else numbers / width
    # A NaN has no digit; here it is 0.
    digits = (numbers - least).nan_to_num(nan=0.0).to(torch.int64)
    indices = (digits * torch.tensor(places_of(levels), device=z.device, dtype=torch.int64)).sum(-1)
    # The gradient of the bound goes straight through the rounding.
    smooth = bounded if symmetric else bounded * (half / width)
    values = (values + (smooth - smooth.detach())).to(z.dtype)
    return values, indices.to(torch.int32) if int32 else indices


def scalar_quantize_backward_reference(
    dvalues: Tensor, z: Tensor, levels: Sequence[int], symmetric: bool = False, hard: bool = False
) -> Tensor:
    numbers = _wide(z)
    shift, half, _, _, _, width = columns_of(levels, symmetric, hard, numbers)
    shifted = numbers + shift
    slope = (shifted.abs() <= 1).to(shifted.dtype) if hard else 1 - shifted.tanh().square()
    return (dvalues * (slope if symmetric else slope * (half / width))).to(z.dtype)
