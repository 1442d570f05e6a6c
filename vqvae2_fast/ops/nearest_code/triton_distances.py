"""Distances of rows and codes for `nearest_code` in Triton, in float32 and in float64.

The definition sums in float64, in the order of d, which one lane would have to do. So distances are
summed in any order, by several lanes; only where these sums could be told apart by the order are
they summed again in the order of d.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "bound_of_nearest",
    "distance_in_any_order",
    "exact_distance",
    "loaded",
    "range_of_definition",
    "two_nearest_of_group",
]


@triton.jit
def loaded(at, inside, MASKED: tl.constexpr):
    """What the pointers `at` hold; if MASKED, 0 where not inside."""
    return tl.load(at, mask=inside, other=0.0) if MASKED else tl.load(at)


@triton.jit
def _added(total, z, at, inside, MASKED: tl.constexpr):
    """total + (z − e)² in the dtype of both, e from the pointers `at`."""
    difference = z - loaded(at, inside, MASKED).to(total.dtype)
    # Four neighbours, which a thread loads together, go to one sum.
    pairs = tl.reshape(difference, (total.shape[0], total.shape[1], 2, 2))
    even, odd = tl.split(pairs)
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return tl.fma(d, d, tl.fma(c, c, tl.fma(b, b, tl.fma(a, a, total))))


@triton.jit
def _counted(total, inside):
    """The rows' sums; infinite where one is NaN or not inside."""
    total = tl.sum(total, axis=1)
    return tl.where(inside & (total == total), total, float("inf"))


@triton.jit
def _two_nearest(first, second, first_index, second_index):
    """The lesser of two distances, the other, and the lesser's index; a tie takes the first."""
    later = second < first
    least = tl.where(later, second, first)
    return least, tl.where(later, first, second), tl.where(later, second_index, first_index)


@triton.jit
def two_nearest_of_group(
    z_ptr,
    codebook_ptr,
    rows,
    code,
    inside,
    N,
    K,
    D,
    z_strides,
    code_strides,
    BLOCK_D: tl.constexpr,
    LOOP_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Of codes `code` to `code` + 3 the two least Σ (z − e)², in float32 and in any order.

    LOOP_D dimensions are at fixed offsets from the pointers, BLOCK_D are loaded at a time, which
    divide LOOP_D; unless MASKED, LOOP_D divides D.

    Returns:
        The least, the next, and the first code that has the least: vectors `[rows]`. Codes that do
        not exist, NaN, and rows that are not inside count as infinite.
    """
    a = tl.zeros((rows.shape[0], BLOCK_D // 4), tl.float32)
    b = a
    c = a
    e = a
    last = K - 1
    # Rows and codes that do not exist read others; masks would cost more.
    rows = tl.minimum(rows, N - 1)
    d = tl.arange(0, BLOCK_D).to(rows.dtype)
    # In the type of rows, in which all offsets fit.
    z_step = tl.cast(z_strides[1], rows.dtype)
    code_step = tl.cast(code_strides[1], rows.dtype)
    z_at = z_ptr + rows[:, None] * z_strides[0] + d[None, :] * z_step
    at = codebook_ptr + d[None, :] * code_step
    a_at = at + code[:, None] * code_strides[0]
    b_at = at + tl.minimum(code + 1, last)[:, None] * code_strides[0]
    c_at = at + tl.minimum(code + 2, last)[:, None] * code_strides[0]
    e_at = at + tl.minimum(code + 3, last)[:, None] * code_strides[0]
    for first in range(0, D, LOOP_D):
        for part in tl.static_range(0, LOOP_D, BLOCK_D):
            some = (first + part + d < D)[None, :]
            z = loaded(z_at + part * z_step, some, MASKED).to(tl.float32)
            a = _added(a, z, a_at + part * code_step, some, MASKED)
            b = _added(b, z, b_at + part * code_step, some, MASKED)
            c = _added(c, z, c_at + part * code_step, some, MASKED)
            e = _added(e, z, e_at + part * code_step, some, MASKED)
        z_at += LOOP_D * z_step
        a_at += LOOP_D * code_step
        b_at += LOOP_D * code_step
        c_at += LOOP_D * code_step
        e_at += LOOP_D * code_step
    least, other, index = _two_nearest(
        _counted(a, inside), _counted(b, inside & (code < last)), code, code + 1
    )
    later, its_other, later_index = _two_nearest(
        _counted(c, inside & (code + 1 < last)),
        _counted(e, inside & (code + 2 < last)),
        code + 2,
        code + 3,
    )
    other = tl.where(later < least, its_other, other)
    least, loser, index = _two_nearest(least, later, index, later_index)
    return least, tl.minimum(other, loser), index


@triton.jit
def bound_of_nearest(least, D):
    """Codes whose float32 distance lies above this are not the nearest: (1 + 2.1 η) of the least.

    The README derives it. Infinite where the least is, and where squares leave float32.
    """
    return least * (1.0 + 2.1 * (D + 8) * 5.960464477539063e-08) + D * 7.52316384526264e-37


@triton.jit
def distance_in_any_order(
    z_ptr,
    codebook_ptr,
    rows,
    codes,
    N,
    D,
    z_strides,
    code_strides,
    BLOCK_D: tl.constexpr,
    LOOP_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Σ (z − e)² of each row and its code in float64: `[rows]`."""
    total = tl.zeros((rows.shape[0], BLOCK_D // 4), tl.float64)
    rows = tl.minimum(rows, N - 1)
    d = tl.arange(0, BLOCK_D).to(rows.dtype)
    z_step = tl.cast(z_strides[1], rows.dtype)
    code_step = tl.cast(code_strides[1], rows.dtype)
    z_at = z_ptr + rows[:, None] * z_strides[0] + d[None, :] * z_step
    at = codebook_ptr + codes[:, None] * code_strides[0] + d[None, :] * code_step
    for first in range(0, D, LOOP_D):
        for part in tl.static_range(0, LOOP_D, BLOCK_D):
            some = (first + part + d < D)[None, :]
            z = loaded(z_at + part * z_step, some, MASKED).to(tl.float64)
            total = _added(total, z, at + part * code_step, some, MASKED)
        z_at += LOOP_D * z_step
        at += LOOP_D * code_step
    return tl.sum(total, axis=1)


@triton.jit
def range_of_definition(distance, D):
    """The least and the largest sum in the order of d that a sum in any order allows.

    Let u = 2⁻⁵³ and X = Σ δ², with δ = z − e rounded to float64, which is the same in both sums. A
    term passes through one rounding of its square and at most D − 1 additions in either order, so
    both sums lie within γX of X, γ = Du / (1 − Du), and within 2γ / (1 − γ) = 2Du / (1 − 2Du) of
    each other, relative to either. 2u more cover the rounding of the factor and of the product, and
    2.3e-16, which is 1.035 · 2u, the division and the rounding of this factor to float32.
    """
    apart = tl.cast((D + 2) * 2.3e-16, tl.float64)
    return distance * (1.0 - apart), distance * (1.0 + apart)


@triton.jit
def exact_distance(z_ptr, codebook_ptr, rows, codes, inside, D, z_strides, code_strides):
    """Σ (z − e)² in float64, in the order of d; compiled without contraction."""
    total = tl.zeros(rows.shape, tl.float64)
    z_step = tl.cast(z_strides[1], rows.dtype)
    code_step = tl.cast(code_strides[1], rows.dtype)
    for d in range(0, D):
        z = tl.load(z_ptr + rows * z_strides[0] + d * z_step, mask=inside, other=0.0)
        e = tl.load(codebook_ptr + codes * code_strides[0] + d * code_step, mask=inside, other=0.0)
        difference = z.to(tl.float64) - e.to(tl.float64)
        total += difference * difference
    return total
