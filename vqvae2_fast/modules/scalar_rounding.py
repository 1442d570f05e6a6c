"""The grids of finite scalar quantisation: their arguments, and values of digits.

Sizes: d numbers of a vector, L_i values of the i-th one, K = Π L_i codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Grid", "digits_to_values"]


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
