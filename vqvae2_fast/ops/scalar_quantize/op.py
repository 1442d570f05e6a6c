"""`scalar_quantize`: each number of a vector rounded to one of a few values.

Sizes: N vectors, d numbers of a vector, L_i values of the i-th one, K = Π L_i codes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import check_floating, checked_integers, misfit, other_dtype
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops._triton import runs_triton

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SCALAR_QUANTIZE",
    "column_of",
    "columns_of",
    "places_of",
    "scalar_quantize",
    "scalar_quantize_backward_reference",
    "scalar_quantize_exported",
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


def scalar_quantize_exported(
    z: Tensor,
    levels: Sequence[int],
    symmetric: bool = False,
    hard: bool = False,
    int32: bool = False,
) -> tuple[Tensor, Tensor]:
    """The reference number by number, so that its constants are numbers: a program for other
    runtimes cannot make tensors of them."""
    values, indices = [], torch.zeros_like(z[:, 0], dtype=torch.int64)
    for number, size, place in zip(_wide(z).unbind(1), levels, places_of(levels), strict=True):
        grid = column_of(size, symmetric, hard)
        shifted = number + grid.shift
        exact = (shifted.clamp(-1, 1) if hard else shifted.tanh()) * grid.half + grid.offset
        rounded = (exact.floor() if symmetric else exact.round()).clamp(grid.least, grid.most)
        values.append(rounded / grid.width - 1 if symmetric else rounded / grid.width)
        indices = indices + (rounded - grid.least).to(torch.int64) * place
    return torch.stack(values, 1).to(z.dtype), indices.to(torch.int32) if int32 else indices


def scalar_quantize_backward_reference(
    dvalues: Tensor, z: Tensor, levels: Sequence[int], symmetric: bool = False, hard: bool = False
) -> Tensor:
    numbers = _wide(z)
    shift, half, _, _, _, width = columns_of(levels, symmetric, hard, numbers)
    shifted = numbers + shift
    slope = (shifted.abs() <= 1).to(shifted.dtype) if hard else 1 - shifted.tanh().square()
    return (dvalues * (slope if symmetric else slope * (half / width))).to(z.dtype)


# A Triton program holds whole vectors.
_MOST_NUMBERS_ON_GPU = 1024
# Adding 1.5 · 2²³ rounds numbers up to this to integers.
_LARGEST_LEVEL = 2**22


def _why_not(z: Tensor, levels: Sequence[int], *_: Any) -> str | None:
    if other := other_dtype((torch.float32,), input=z):
        return other
    if max(levels) > _LARGEST_LEVEL:
        return f"a level of more than {_LARGEST_LEVEL} values"
    if len(levels) > _MOST_NUMBERS_ON_GPU and runs_triton(z):
        return f"more than {_MOST_NUMBERS_ON_GPU} numbers"
    return None


def _why_not_backward(dvalues: Tensor, z: Tensor, levels: Sequence[int], *_: Any) -> str | None:
    return other_dtype((torch.float32,), gradient=dvalues) or _why_not(z, levels)


SCALAR_QUANTIZE_BACKWARD = register(
    "scalar_quantize_backward",
    "(Tensor dvalues, Tensor z, int[] levels, bool symmetric=False, bool hard=False) -> Tensor",
    reference=scalar_quantize_backward_reference,
    fake=lambda dvalues, z, *_: z.new_empty(z.shape),
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not_backward,
    is_gradient=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # Indices have no gradient.
    ctx.set_materialize_grads(False)
    z, *ctx.grid, _ = inputs
    ctx.save_for_backward(z)


def _backward(
    ctx: Any, dvalues: Tensor | None, _dindices: None
) -> tuple[Tensor | None, None, None, None, None]:
    (z,) = ctx.saved_tensors
    dz = None if dvalues is None else SCALAR_QUANTIZE_BACKWARD(dvalues, z, *ctx.grid)
    return dz, None, None, None, None


def _fake(
    z: Tensor,
    levels: Sequence[int],
    symmetric: bool = False,
    hard: bool = False,
    int32: bool = False,
) -> tuple[Tensor, Tensor]:
    index_dtype = torch.int32 if int32 else torch.int64
    return z.new_empty(z.shape), z.new_empty(z.shape[:1], dtype=index_dtype)


SCALAR_QUANTIZE = register(
    "scalar_quantize",
    "(Tensor z, int[] levels, bool symmetric=False, bool hard=False, bool int32=False) "
    "-> (Tensor values, Tensor indices)",
    reference=scalar_quantize_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
    why_not=_why_not,
    exported=scalar_quantize_exported,
    gradient=(_setup_context, _backward),
)


def scalar_quantize(
    z: Tensor,
    levels: Sequence[int],
    symmetric: bool = False,
    hard: bool = False,
    *,
    int32: bool = False,
) -> tuple[Tensor, Tensor]:
    """The nearest values of a grid, number by number, after a bound.

    With a = tanh (or a clamp to [−1, 1]), the i-th value is round(a(z + s)·h − o) / ⌊L/2⌋, with
    L = levels[i], h = (L−1)(1+10⁻³)/2, o = ½ for even L and else 0, and s = atanh(o/h) (or o/h):
    appendix A.1 of https://arxiv.org/abs/2309.15505. For even L there is one value more below zero
    than above. On a symmetric grid the value is 2/(L−1) · ⌊(L−1)(a(z) + 1)/2 + ½⌋ − 1, eq. 4 of
    https://arxiv.org/abs/2411.19842. What was rounded is kept among the grid's L values.

    Args:
        z: `[..., d]`, floating; computed in float32, or in float64 if it is.
        levels: L_i, the number of values of each of the d numbers.
        symmetric: Take the symmetric grid, −1 to 1.
        hard: Bound by clamping instead of by tanh.
        int32: Return the indices as int32, their low 32 bits.

    Returns:
        values: `[..., d]`, exactly the grid's, rounded to z's dtype; NaN where z is. Their gradient
            is that of the bound: the rounding is straight-through.
        indices: int64 (or int32) `[...]`, Σ_i digit_i · Π_{j<i} L_j modulo 2⁶⁴, where digit 0 is
            the least value. A NaN has digit 0.

    Raises:
        ValueError: levels are not d integers of at least 2.
        TypeError: z is not a floating tensor.
    """
    check_floating(z=z)
    levels = checked_integers("levels", levels)
    if z.dim() == 0 or len(levels) != z.shape[-1] or min(levels, default=0) < 2:
        raise misfit(f"z [..., d] for d levels >= 2, here {levels}", z=z)
    flat = z if z.dim() == 2 else z.reshape(-1, len(levels))  # [N, d]
    values, indices = SCALAR_QUANTIZE(flat, levels, symmetric, hard, int32)
    return values.view(z.shape), indices.view(z.shape[:-1])
