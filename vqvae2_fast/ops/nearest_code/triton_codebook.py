"""The codebook as the screen of `nearest_code` reads it, in Triton: centred, scaled, in float16.

K codes, D dimensions. It is prepared anew in every call. Whether a codebook has changed cannot be
known without reading it on the device: writes through `.data` and replays of a CUDA graph leave
its version counter as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, dependent_launch, launch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HARD_COUNT",
    "LARGEST_NORM",
    "NUM_UNITS",
    "OPEN_COUNT",
    "PARTS",
    "UNSCREENED",
    "after_kernel_before",
    "centre_codebook",
    "known",
    "unit",
]

# ‖e'‖²/2 takes PARTS more dimensions of the product, of which the first NUM_UNITS hold a float16
# number of units: 2¹⁵, 2⁶, 2⁻³ and 2⁻¹². Half of LARGEST_NORM² is 13,733 of the first unit.
PARTS = tl.constexpr(16)
NUM_UNITS = tl.constexpr(4)
# The first part of codes that do not exist or are not screened, and their score.
UNSCREENED_PART = tl.constexpr(60000.0)
UNSCREENED = tl.constexpr(60000.0 * 2.0**15)
# Largest norm, in units of the codebook's spread, that is screened in float16.
LARGEST_NORM = tl.constexpr(30000.0)
# Beyond this many dimensions the band's first-order terms do not bound the others.
LARGEST_DIMENSION = tl.constexpr(65536)
SMALLEST_NORMAL = tl.constexpr(6.103515625e-05)
# Where the facts hold the numbers of open and of hard rows.
OPEN_COUNT = tl.constexpr(1)
HARD_COUNT = tl.constexpr(2)


@triton.jit
def _grid_control(INSTRUCTION: tl.constexpr):
    """`griddepcontrol` of PTX. Triton's functions for it come with its backend for NVIDIA only."""
    tl.inline_asm_elementwise(
        "griddepcontrol." + INSTRUCTION + "; // $0", "=r", [], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def after_kernel_before(DEPENDENT: tl.constexpr):
    """Lets the next kernel start to wait for this one, and waits for the one before.

    Kernels that begin with this may be launched as dependent. All of them wait, so that each sees
    what any before it wrote.
    """
    if DEPENDENT:
        _grid_control("launch_dependents")
        _grid_control("wait")


@triton.jit
def _halves_of(z):
    """float16 without denormals, so that hardware that drops them adds no unmeasured error."""
    return tl.where(tl.abs(z) < SMALLEST_NORMAL, 0.0, z).to(tl.float16)


@triton.jit
def unit(place):
    """2^(15 − 9 · place) in float32, the unit of a part of ‖e'‖²/2."""
    return ((142 - 9 * place) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _parts_of(half_norm, screened):
    """Float16 `[K, PARTS]`: numbers of units that add up to half_norm − r, |r| ≤ 2⁻²⁶ + 2⁻⁴³ of it.

    Each part takes all but 2⁻¹¹ of what those before it left, or, if that is below 2⁻¹⁴ of its
    unit, nothing.
    """
    column = tl.arange(0, PARTS)
    parts = tl.zeros((half_norm.shape[0], PARTS), tl.float16)
    rest = tl.where(screened, half_norm, 0.0)
    for place in range(NUM_UNITS):
        size = unit(tl.cast(place, tl.int32)).to(tl.float64)
        part = _halves_of((rest / size).to(tl.float32))
        rest -= part.to(tl.float64) * size
        parts = tl.where((column == place)[None, :], part[:, None], parts)
    outside = (column == 0)[None, :] & (screened == 0)[:, None]
    return tl.where(outside, UNSCREENED_PART, parts).to(tl.float16)


@triton.jit
def _joined(largest, error, unscreened, extremes_ptr, first, blocks):
    # Blocks that do not exist read the last one again, which changes nothing.
    at = extremes_ptr + tl.minimum(first + tl.arange(0, largest.shape[0]), blocks - 1)
    largest = tl.maximum(largest, tl.load(at))
    error = tl.maximum(error, tl.load(at + blocks))
    return largest, error, tl.minimum(unscreened, tl.load(at + 2 * blocks))


@triton.jit
def known(extremes_ptr, blocks, WIDTH: tl.constexpr, ONCE: tl.constexpr):
    """Largest norm and largest error of screened codes, least norm of the others.

    The extremes of the blocks of codes are joined here, WIDTH at a time, by each that needs them.
    Atomic operations would need a kernel before them that sets the extremes to zero.
    """
    largest = tl.zeros((WIDTH,), tl.float32)
    error = largest
    unscreened = tl.full((WIDTH,), float("inf"), tl.float32)
    if ONCE:
        largest, error, unscreened = _joined(largest, error, unscreened, extremes_ptr, 0, blocks)
    else:
        for first in range(0, blocks, WIDTH):
            largest, error, unscreened = _joined(
                largest, error, unscreened, extremes_ptr, first, blocks
            )
    return tl.max(largest, axis=0), tl.max(error, axis=0), tl.min(unscreened, axis=0)


@triton.jit
def _codes(codebook_ptr, k, d, K, D, code_strides):
    """Rows of the codebook in float32, 0 outside: `[k, d]`."""
    at = k[:, None] * code_strides[0] + d.to(tl.int64)[None, :] * code_strides[1]
    inside = (k < K)[:, None] & (d < D)[None, :]
    return tl.load(codebook_ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _mean(e, near, number):
    """The mean of the near rows, rounded once: float32 `[d]`."""
    return (tl.sum(tl.where(near[:, None], e.to(tl.float64), 0.0), axis=0) / number).to(tl.float32)


@triton.jit
def _nearest_code_centre_kernel(
    codebook_ptr,
    halves_ptr,
    mean_ptr,
    facts_ptr,
    extremes_ptr,
    K,
    D,
    code_strides,
    rows,
    halves_stride,
    DEPENDENT: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes mean and spread from the same sample, then prepares BLOCK_K codes.

    Reads the codebook once and the sample, at most SAMPLE codes, three times; writes half of it.
    """
    if DEPENDENT:
        _grid_control("launch_dependents")
    step = (K + SAMPLE - 1) // SAMPLE
    place = tl.arange(0, SAMPLE)
    sample = place.to(tl.int64) * step
    d = tl.arange(0, BLOCK_D)
    square = tl.zeros((SAMPLE,), tl.float64)
    for first in range(0, D, BLOCK_D):
        e = _codes(codebook_ptr, sample, first + d, K, D, code_strides).to(tl.float64)
        square += tl.sum(e * e, axis=1)
    square = tl.where((sample < K) & (square < float("inf")), square, float("inf"))
    # Unused codes may be many and 10^5 times as long as others, so a code is near if it is at most
    # eight times as long as the shortest tenth of the sample.
    shorter = square[None, :] < square[:, None]
    earlier = (square[None, :] == square[:, None]) & (place[None, :] < place[:, None])
    rank = tl.sum((shorter | earlier).to(tl.int32), axis=1)
    tenth = (K + step - 1) // step // 10
    limit = 64.0 * tl.sum(tl.where(rank == tenth, square, 0.0), axis=0)
    near = (square <= limit) & (square < float("inf"))
    number = tl.maximum(tl.sum(near.to(tl.int32), axis=0), 1).to(tl.float64)

    apart = tl.zeros((SAMPLE,), tl.float64)
    for first in range(0, D, BLOCK_D):
        e = _codes(codebook_ptr, sample, first + d, K, D, code_strides)
        difference = e - _mean(e, near, number)[None, :]
        difference = tl.where(near[:, None], difference, 0.0).to(tl.float64)
        apart += tl.sum(difference * difference, axis=1)
    variance = tl.sum(apart, axis=0) / (number * D)
    # 2^exponent is the power of two nearest to the spread, √variance.
    exponent = ((variance.to(tl.int64, bitcast=True) >> 52) - 1022) >> 1
    exponent = tl.minimum(tl.maximum(exponent, -64), 100)
    exponent = tl.where(variance > 0.0, exponent, 0)
    inverse = ((127 - exponent) << 23).to(tl.int32).to(tl.float32, bitcast=True)

    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    square = tl.zeros((BLOCK_K,), tl.float64)
    lost = tl.zeros((BLOCK_K,), tl.float64)
    width = halves_stride - PARTS
    for first in range(0, width, BLOCK_D):
        e = _codes(codebook_ptr, sample, first + d, K, D, code_strides)
        mean = _mean(e, near, number)
        centred = (_codes(codebook_ptr, k, first + d, K, D, code_strides) - mean[None, :]) * inverse
        # What is too large or NaN belongs to a code that is not screened.
        centred = tl.where((k < K)[:, None], centred, 0.0)
        half = _halves_of(tl.where(tl.abs(centred) < LARGEST_NORM, centred, 0.0))
        wide = centred.to(tl.float64)
        square += tl.sum(wide * wide, axis=1)
        difference = wide - half.to(tl.float64)
        lost += tl.sum(difference * difference, axis=1)
        at = halves_ptr + k[:, None] * halves_stride + (first + d)[None, :]
        tl.store(at, half, mask=(k < rows)[:, None] & (first + d < width)[None, :])
        if tl.program_id(0) == 0:
            tl.store(mean_ptr + first + d, mean, mask=first + d < D)
    norm = tl.sqrt(square)
    screened = (k < K) & (norm < LARGEST_NORM)  # False for NaN
    last = halves_ptr + k[:, None] * halves_stride + (width + tl.arange(0, PARTS))[None, :]
    tl.store(last, _parts_of(0.5 * square, screened), mask=(k < rows)[:, None])
    unscreened = (k < K) & (screened == 0)
    if tl.sum(unscreened.to(tl.int32), axis=0) > 0:
        # Their score is that of the first part alone, whatever the row.
        tl.debug_barrier()  # after the stores above
        for first in range(0, width, BLOCK_D):
            flung = halves_ptr + k[:, None] * halves_stride + (first + d)[None, :]
            nothing = tl.zeros((BLOCK_K, BLOCK_D), tl.float16)
            tl.store(flung, nothing, mask=unscreened[:, None] & (first + d < width)[None, :])

    # Centring and scaling round once each, which is two units of 2⁻²⁴.
    error = tl.sqrt(lost) + 1.1920928955078125e-07 * norm
    largest = tl.max(tl.where(screened, norm, 0.0), axis=0) * (1.0 + 1e-6)
    error = tl.max(tl.where(screened, error, 0.0), axis=0) * (1.0 + 1e-6)
    others = (k < K) & (norm >= LARGEST_NORM)  # False for NaN, which never wins
    least = tl.min(tl.where(others, norm, float("inf")), axis=0) * (1.0 - 1e-6)
    if D > LARGEST_DIMENSION:
        least = tl.full((), 0.0, tl.float64)  # the screen excludes no code
    at = extremes_ptr + tl.program_id(0)
    tl.store(at, largest.to(tl.float32))
    tl.store(at + tl.num_programs(0), error.to(tl.float32))
    tl.store(at + 2 * tl.num_programs(0), least.to(tl.float32))
    if tl.program_id(0) == 0:
        tl.store(facts_ptr, inverse.to(tl.int32, bitcast=True))
        tl.store(facts_ptr + OPEN_COUNT, 0)
        tl.store(facts_ptr + HARD_COUNT, 0)


def centre_codebook(
    codebook: Tensor, code_multiple: int, dimension_multiple: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The form of the codebook that the screen reads: one kernel, no synchronisation.

    Args:
        code_multiple: K is padded to a multiple of this, K'.
        dimension_multiple: D is padded to a multiple of this, D'.

    Returns:
        halves: float16 `[K', D' + PARTS]`. First (e − m) / spread, 0 in the padding and for codes
            that are not screened; then half its squared norm before rounding, in parts,
            which add up to `UNSCREENED` for codes that are not screened and in the padding.
        mean: m, float32 `[D]`, the mean of codes that are not far out.
        facts: int32 `[3]`: the bits of 1 / spread (a power of two), and two zeros, for the numbers
            of open and of hard rows.
        extremes: float32 `[3, blocks]`: of each block of codes, the largest norm of a screened one,
            the largest norm of the difference that rounding to float16 made to one, and the least
            norm of a code that is not screened, or infinity.
    """
    num_codes, dimension = codebook.shape
    rows = triton.cdiv(num_codes, code_multiple) * code_multiple
    width = triton.cdiv(dimension, dimension_multiple) * dimension_multiple
    halves = codebook.new_empty((rows, width + PARTS.value), dtype=torch.float16)
    mean = codebook.new_empty(dimension, dtype=torch.float32)
    facts = codebook.new_empty(3, dtype=torch.int32)
    config = configuration("nearest_code_centre", codebook.device)
    blocks = triton.cdiv(rows, config["BLOCK_K"])
    extremes = codebook.new_empty((3, blocks), dtype=torch.float32)
    launch(
        _nearest_code_centre_kernel,
        (blocks,),
        codebook,
        halves,
        mean,
        facts,
        extremes,
        num_codes,
        dimension,
        codebook.stride(),
        rows,
        halves.stride(0),
        DEPENDENT=dependent_launch(codebook.device)["DEPENDENT"],
        enable_fp_fusion=False,
        **config,
    )
    return halves, mean, facts, extremes
