"""`scalar_quantize`: each number of a vector rounded to one of a few values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import check_floating, checked_integers, misfit
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.scalar_quantize.gradient import backward, setup_context, why_not
from vqvae2_fast.ops.scalar_quantize.reference import scalar_quantize_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCALAR_QUANTIZE", "scalar_quantize"]


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
    why_not=why_not,
    gradient=(setup_context, backward),
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
