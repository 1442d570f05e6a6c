"""Rounding of each number of a vector to a few values: the core of finite scalar quantisation.

Sizes: N vectors, d numbers of a vector, L_i values of the i-th one, K = Π L_i codes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Grid", "digits_to_values", "round_to_grid"]

# Keeps the largest value from needing an infinite input: appendix A.1 of the paper.
_MARGIN = 1e-3
# Vectors in a row of the computation; N is a multiple of it or of a smaller power of two.
_SIDE_BY_SIDE = 1024


class Grid(NamedTuple):
    """How numbers are bounded and rounded.

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


class _Steps(NamedTuple):
    """Constants of each of d numbers, `[d·r]` for r vectors side by side.

    Args:
        shift: Added before the bound.
        half, offset: What is rounded is half · bounded − offset.
        middle: The rounded number of digit 0, negated.
        width: Steps between the values 0 and 1.
    """

    shift: Tensor
    half: Tensor
    offset: Tensor
    middle: Tensor
    width: Tensor


def _steps(grid: Grid, like: Tensor, repeats: int = 1) -> _Steps:
    levels = torch.tensor(grid.levels, dtype=like.dtype, device=like.device)
    middle = levels.div(2, rounding_mode="floor")
    if grid.symmetric:
        half = (levels - 1) / 2
        zero = torch.zeros_like(half)
        steps = _Steps(zero, half, -half - 0.5, zero, half)  # ⌊x + ½⌋ of x = half · (bounded + 1)
    else:
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(like.dtype)
        shift = offset / half
        steps = _Steps(shift if grid.hard else torch.atanh(shift), half, offset, middle, middle)
    return _Steps(*(constant.repeat(repeats) for constant in steps))


def digits_to_values(grid: Grid, digits: Tensor, dtype: torch.dtype) -> Tensor:
    """The values `[..., d]` of digits 0..L−1, integers `[..., d]`."""
    numbers = digits.to(dtype)
    steps = _steps(grid, numbers)
    return _values_(grid, numbers - steps.middle, steps)


def _values_(grid: Grid, numbers: Tensor, steps: _Steps) -> Tensor:
    numbers.div_(steps.width)
    return numbers.sub_(1) if grid.symmetric else numbers


def _indices(grid: Grid, numbers: Tensor) -> Tensor:
    """Σ_i digit_i · Π_{j<i} L_j of rounded numbers `[N, d]`."""
    size = math.prod(grid.levels)
    places = [math.prod(grid.levels[:number]) for number in range(len(grid.levels))]
    exact = numbers.float() if size <= 2**24 else numbers.double()
    indices = (exact @ exact.new_tensor(places)).to(torch.int64)
    if not grid.symmetric:
        indices += sum(L // 2 * place for L, place in zip(grid.levels, places, strict=True))
    # A NaN has no digit; its index is some code's.
    return indices.clamp_(0, size - 1)


class _Round(torch.autograd.Function):
    """Values `[N, d]` and indices `[N]`; the gradient is that of the bound."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        # Several vectors side by side: operations along rows of d = 4 would not be vectorised.
        repeats = 1 if torch.compiler.is_compiling() else math.gcd(len(z), _SIDE_BY_SIDE)
        rows = z.reshape(-1, repeats * len(grid.levels))
        steps = _steps(grid, rows, repeats)
        shifted = rows + steps.shift
        if grid.hard:
            bounded = shifted.clamp(-1, 1)
            ctx.save_for_backward(shifted)
        else:
            # tanh to an ulp of 1; torch's own takes nine times as long (one Zen 5 core).
            bounded = shifted.mul_(2).sigmoid_().mul_(2).sub_(1)
            ctx.save_for_backward(bounded)
        ctx.grid, ctx.shape, ctx.repeats = grid, z.shape, repeats
        numbers = (bounded * steps.half).sub_(steps.offset)
        numbers = numbers.floor_() if grid.symmetric else numbers.round_()
        indices = _indices(grid, numbers.view(z.shape))
        # In place throughout: the pages of a new megabyte cost as much as ten operations on it.
        values = _values_(grid, numbers, steps)
        ctx.mark_non_differentiable(indices)
        return values.view(z.shape), indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dvalues: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (bounded,) = ctx.saved_tensors
        grid: Grid = ctx.grid
        slope = bounded.abs().le_(1) if grid.hard else bounded.square().neg_().add_(1)
        if not grid.symmetric:
            steps = _steps(grid, bounded, ctx.repeats)
            slope *= steps.half / steps.width
        return slope.mul_(dvalues.reshape(bounded.shape)).view(ctx.shape), None


def round_to_grid(z: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The nearest values of a grid, number by number, after a bound.

    With a = tanh (or a clamp to [−1, 1]): the value is round(a(z + s)·h − o) / ⌊L/2⌋, with
    h = (L−1)(1+10⁻³)/2, o = ½ for even L and else 0, s = atanh(o/h); on a symmetric grid it is
    2/(L−1) · ⌊(L−1)(a(z) + 1)/2 + ½⌋ − 1. The rounding has a straight-through gradient.

    Args:
        z: `[..., d]`, float32 or float64.

    Returns:
        values: `[..., d]`, exactly the grid's. Differentiable once.
        indices: int64 `[...]`, Σ_i digit_i · Π_{j<i} L_j. Of a NaN it is some code's.
    """
    values, indices = _Round.apply(z.reshape(-1, z.shape[-1]), grid)  # type: ignore[no-untyped-call]
    return values.view(z.shape), indices.view(z.shape[:-1])
