"""The screen of `nearest_code` in Triton: scores on tensor cores, and the bound of the winner's.

N vectors, K codes, D dimensions. What the bound allows for is derived in the README.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqvae2_fast.ops.nearest_code.triton_codebook import (
    LARGEST_NORM,
    NUM_UNITS,
    PARTS,
    UNSCREENED,
    known,
    unit,
)
from vqvae2_fast.ops.nearest_code.triton_distances import loaded

__all__ = ["GROUP", "screened"]

# Screened codes score below this (1.5 · 30,000², in which a tag counts), others above: UNSCREENED.
SCREENED = tl.constexpr(1.6e9)
# Codes that are screened as one: only the least of their scores is kept.
GROUP = tl.constexpr(4)


@triton.jit
def _centred(z_ptr, mean_ptr, inverse, rows, d, D, z_strides, MASKED: tl.constexpr):
    """(m − z) / spread in float32; 0 in dimensions that do not exist."""
    at = rows[:, None] * z_strides[0] + d.to(rows.dtype)[None, :] * z_strides[1]
    z = loaded(z_ptr + at, (d < D)[None, :], MASKED).to(tl.float32)
    mean = loaded(mean_ptr + d, d < D, MASKED)
    # The spread is a power of two, so that this rounds once, as a multiply-add.
    return (mean * inverse)[None, :] - z * inverse


@triton.jit
def _added_squares(square, square_error, z, MEASURED: tl.constexpr):
    """square + ‖z‖², and, if MEASURED, the same of what rounding z to float16 loses."""
    square += tl.sum(z * z, axis=1)
    if MEASURED:
        lost = z - z.to(tl.float16).to(tl.float32)
        square_error += tl.sum(lost * lost, axis=1)
    return square, square_error


@triton.jit
def _band(e, z, dz, de, q, largest, D):
    """ε(z, e) of the README: the largest error of the computed score of a code with norm ≤ e."""
    u: tl.constexpr = 5.960464477539063e-08
    product = (q + 2 * u) * 0.5 * e * e + dz * e + z * (de + q * e)
    definition = (D + 2) * 2.220446049250313e-16 * (z * z + e * e)
    parts: tl.constexpr = 1.6e-08  # what ‖e‖²/2 has beyond its parts, 2⁻²⁶
    return 1.06 * product + parts + definition + D * 7.52316384526264e-37 * (1.0 + z + largest)


@triton.jit
def _for_rows(number_ptr, BLOCK_N: tl.constexpr):
    """A number, for each row: `[BLOCK_N]`.

    A sum over a row leaves its value in several threads, each of which has several rows. A load
    gives a thread one row, and what is computed with its result is computed once.
    """
    return tl.load(number_ptr + tl.zeros((BLOCK_N,), tl.int32))


@triton.jit
def screened(
    z_ptr,
    halves_ptr,
    mean_ptr,
    facts_ptr,
    extremes_ptr,
    rows,
    N,
    K,
    D,
    z_strides,
    halves_stride,
    blocks,
    WIDTH: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
    TAG_BITS: tl.constexpr,
    AGAIN: tl.constexpr,
):
    """The three least group scores of each lane, `[N, LANES]` each, the least of all, the bound of
    the winner's score, and whether it holds.

    Codes 4g to 4g + 3 are group g, whose score is its least. A tile has BLOCK_K / 4 groups: lane j
    sees the j-th of each, and the low TAG_BITS of a score are replaced by the number of its tile.
    A lane keeps its two least scores; if AGAIN, the third as well, and the bound is narrower.
    """
    LANES: tl.constexpr = BLOCK_K // GROUP
    column = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    inverse = tl.load(facts_ptr).to(tl.float32, bitcast=True)
    largest, code_error, least_unscreened = known(extremes_ptr, blocks, WIDTH, ONCE)
    rows = tl.minimum(rows, N - 1)  # rows that do not exist read another; a mask would cost more

    square = tl.zeros((BLOCK_N,), tl.float32)
    square_error = tl.zeros((BLOCK_N,), tl.float32)
    if WHOLE:
        z = _centred(z_ptr, mean_ptr, inverse, rows, d, D, z_strides, MASKED)
        z_half = z.to(tl.float16)
        square, square_error = _added_squares(square, square_error, z, AGAIN)
    else:
        for first in range(0, D, BLOCK_D):
            z = _centred(z_ptr, mean_ptr, inverse, rows, first + d, D, z_strides, MASKED)
            square, square_error = _added_squares(square, square_error, z, AGAIN)

    # Errors are not negative.
    square = tl.where(_for_rows(extremes_ptr + blocks, BLOCK_N) >= 0.0, square, 0.0)
    # Norms are raised by the rounding of their sums.
    raised = 1.0 + 1e-4 + D * 2.384185791015625e-07
    z_norm = tl.sqrt(square) * raised
    # Rounding to float16 is off by 2⁻¹¹ of a value at most, centring by 2⁻²⁴; hardware may drop
    # what is below 2⁻¹⁴.
    z_error = 6.104e-05 * tl.sqrt(D * 1.0)
    if AGAIN:
        z_error += tl.sqrt(square_error) * raised + 1.2e-07 * z_norm
    else:
        z_error += 4.885e-04 * z_norm

    best = tl.full((BLOCK_N, LANES), UNSCREENED, tl.float32)
    second = best
    third = best
    # Members of a group are LANES columns apart, so that one thread has all of them.
    code = column % LANES * GROUP + column // LANES
    if not WHOLE:
        code = code.to(tl.int64)  # of many dimensions
    offsets = code[None, :] * halves_stride + d[:, None]
    part = tl.arange(0, PARTS)
    at_parts = code[None, :] * halves_stride + (halves_stride - PARTS) + part[:, None]
    units = tl.where(part < NUM_UNITS, unit(part), 0.0).to(tl.float16)
    units = tl.broadcast_to(units[None, :], (BLOCK_N, PARTS))
    base = halves_ptr
    for tile in range(0, (K + BLOCK_K - 1) // BLOCK_K):
        scores = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        scores = tl.dot(units, tl.load(base + at_parts), scores)
        if WHOLE:
            scores = tl.dot(z_half, tl.load(base + offsets), scores)  # of [BLOCK_D, BLOCK_K]
        else:
            for first in range(0, D, BLOCK_D):
                z = _centred(z_ptr, mean_ptr, inverse, rows, first + d, D, z_strides, MASKED)
                scores = tl.dot(z.to(tl.float16), tl.load(base + offsets + first), scores)
        scores = tl.reshape(scores, (BLOCK_N, GROUP, LANES))
        bits = tl.min(scores, axis=1).to(tl.int32, bitcast=True)
        score = ((bits >> TAG_BITS << TAG_BITS) | tile).to(tl.float32, bitcast=True)
        if AGAIN:
            third = tl.minimum(third, tl.maximum(second, score))
        second = tl.minimum(second, tl.maximum(best, score))
        best = tl.minimum(best, score)
        base += BLOCK_K * halves_stride

    # The winner's score must lie below this bound.
    q = (4 * D + 24) * 5.960464477539063e-08 + (1 << TAG_BITS) * 1.1920928955078125e-07
    least = tl.min(best, axis=1)
    reach = tl.maximum(_for_rows(extremes_ptr, BLOCK_N), largest)
    radius = reach
    for _ in tl.static_range(2):
        band = _band(reach, z_norm, z_error, code_error, q, largest, D)
        inner = tl.maximum(z_norm * z_norm + 2.0 * (least + band), 0.0)
        radius = 1.0001 * (z_norm + tl.sqrt(inner))
        reach = tl.minimum(reach, radius)
    band = _band(reach, z_norm, z_error, code_error, q, largest, D)
    bound = least + 2.0 * band + 2.4e-07 * tl.abs(least)

    certain = (z_norm < LARGEST_NORM) & (least < SCREENED) & (bound < SCREENED)
    return best, second, third, least, bound, certain & (radius < least_unscreened)
