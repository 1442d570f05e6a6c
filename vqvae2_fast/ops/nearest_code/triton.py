"""`nearest_code` in Triton: tensor cores screen; codes within a proven band are compared exactly.

N vectors, K codes, D dimensions. Scores are of centred and scaled values in float16, products added
in float32; codes inside the band are compared in float64. Rows that neither can settle go to a
second kernel, in `triton_exact.py`. The band is derived in the README.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops.nearest_code.triton_codebook import (
    HARD_COUNT,
    LARGEST_NORM,
    UNSCREENED,
    centre_codebook,
    halves_of,
    known,
)
from vqvae2_fast.ops.nearest_code.triton_exact import (
    any_order_distance,
    range_of_definition,
    settle_hard_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["examples", "nearest_code_triton"]

# Screened codes score below this, codes that are not screened above.
SCREENED = tl.constexpr(1e29)
NO_CODE = tl.constexpr(2**31 - 1)


@triton.jit
def _centred(z_ptr, mean_ptr, inverse, rows, d, N, D, z_strides):
    """(z − m) / spread in float32, 0 outside."""
    inside = (rows < N)[:, None] & (d < D)[None, :]
    at = rows[:, None] * z_strides[0] + d[None, :] * z_strides[1]
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + d, mask=d < D, other=0.0)
    return tl.where(inside, (z - mean[None, :]) * inverse, 0.0)


@triton.jit
def _band(e, z, dz, de, q, largest, D):
    """ε(z, e) of the README: the largest error of the computed score of a code with norm ≤ e."""
    u: tl.constexpr = 5.960464477539063e-08
    product = (q + 2 * u) * 0.5 * e * e + dz * e + z * (de + q * e)
    definition = (D + 2) * 2.220446049250313e-16 * (z * z + e * e)
    return 1.06 * product + definition + D * 7.52316384526264e-37 * (1.0 + z + largest)


@triton.jit
def _nearest_code_screen_kernel(
    z_ptr,
    codebook_ptr,
    halves_ptr,
    half_norms_ptr,
    mean_ptr,
    facts_ptr,
    indices_ptr,
    sqdist_ptr,
    hard_ptr,
    N,
    K,
    D,
    z_strides,
    code_strides,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT_D: tl.constexpr,
    WHOLE: tl.constexpr,
    TAG_BITS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Settles rows, or lists them as hard; 2·N·K·D flops, reads z once, writes 12 bytes per row.

    Column j of a tile is a lane: it sees codes j, j + BLOCK_K, … and keeps the two smallest scores.
    The low TAG_BITS of a score are replaced by the number of its tile.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    inverse, largest, code_error, least_unscreened = known(facts_ptr)

    square = tl.zeros((BLOCK_N,), tl.float32)
    square_error = tl.zeros((BLOCK_N,), tl.float32)
    z_half = tl.zeros((BLOCK_N, BLOCK_D), tl.float16)
    for first in range(0, D, BLOCK_D):
        z = _centred(z_ptr, mean_ptr, inverse, rows, first + d, N, D, z_strides)
        z_half = halves_of(z)
        lost = z - z_half.to(tl.float32)
        square += tl.sum(z * z, axis=1)
        square_error += tl.sum(lost * lost, axis=1)

    best = tl.full((BLOCK_N, BLOCK_K), UNSCREENED, tl.float32)
    second = tl.full((BLOCK_N, BLOCK_K), UNSCREENED, tl.float32)
    for tile in range(0, (K + BLOCK_K - 1) // BLOCK_K):
        k = tile * BLOCK_K + lanes
        product = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        if WHOLE:
            at = k.to(tl.int64)[None, :] * D + d[:, None]
            e = tl.load(
                halves_ptr + at, mask=(k < K)[None, :] & (d < D)[:, None], other=0.0
            )  # [BLOCK_D, BLOCK_K]
            product = tl.dot(z_half, e, product)
        else:
            for first in range(0, D, BLOCK_D):
                z = _centred(z_ptr, mean_ptr, inverse, rows, first + d, N, D, z_strides)
                inside = (k < K)[None, :] & (first + d < D)[:, None]
                at = k.to(tl.int64)[None, :] * D + (first + d)[:, None]
                e = tl.load(halves_ptr + at, mask=inside, other=0.0)
                product = tl.dot(halves_of(z), e, product)
        half_norm = tl.load(half_norms_ptr + k, mask=k < K, other=UNSCREENED)
        bits = (half_norm[None, :] - product).to(tl.int32, bitcast=True)
        score = ((bits >> TAG_BITS << TAG_BITS) | tile).to(tl.float32, bitcast=True)
        second = tl.minimum(second, tl.maximum(best, score))
        best = tl.minimum(best, score)

    # The winner's score must lie below this bound. Norms are raised by the rounding of their sums.
    raised = 1.0 + 1e-4 + D * 2.384185791015625e-07
    z_norm = tl.sqrt(square) * raised
    z_error = tl.sqrt(square_error) * raised + 1.2e-07 * z_norm
    q = (4 * D + 8) * 5.960464477539063e-08 + (1 << TAG_BITS) * 1.1920928955078125e-07
    least = tl.min(best, axis=1)
    reach = tl.full((BLOCK_N,), 0.0, tl.float32) + largest
    radius = reach
    for _ in tl.static_range(2):
        band = _band(reach, z_norm, z_error, code_error, q, largest, D)
        inner = tl.maximum(z_norm * z_norm + 2.0 * (least + band), 0.0)
        radius = 1.0001 * (z_norm + tl.sqrt(inner))
        reach = tl.minimum(reach, radius)
    band = _band(reach, z_norm, z_error, code_error, q, largest, D)
    bound = least + 2.0 * band + 2.4e-07 * tl.abs(least)

    certain = (z_norm < LARGEST_NORM) & (least < SCREENED) & (bound < SCREENED)
    certain = certain & (radius < least_unscreened)
    inside = best <= bound[:, None]
    # Both counts in one sum: lanes inside the band, and those whose second score is, times BLOCK_K.
    counts = tl.sum(inside.to(tl.int32) + BLOCK_K * (second <= bound[:, None]).to(tl.int32), axis=1)
    settled = certain & (counts <= MOST) & (rows < N)
    tag = best.to(tl.int32, bitcast=True) & ((1 << TAG_BITS) - 1)
    codes = tl.where(inside & settled[:, None], tag * BLOCK_K + lanes[None, :], NO_CODE)

    distance = tl.full((BLOCK_N,), float("inf"), tl.float64)
    runner_up = distance
    index = tl.zeros((BLOCK_N,), tl.int64)
    for _ in range(0, tl.max(tl.where(settled, counts, 0))):
        code = tl.min(codes, axis=1)
        codes = tl.where(codes == code[:, None], NO_CODE, codes)
        found = code < NO_CODE
        code = code.to(tl.int64)
        total = any_order_distance(
            z_ptr, codebook_ptr, rows, code, found, D, z_strides, code_strides, EXACT_D
        )
        total = tl.where(found, total, float("inf"))
        runner_up = tl.minimum(runner_up, tl.maximum(distance, total))
        index = tl.where(total < distance, code, index)
        distance = tl.minimum(distance, total)
    # Ties, and sums that another order could round to another float32, need the definition's order.
    low, high = range_of_definition(distance, D)
    settled = settled & (range_of_definition(runner_up, D)[0] > high)
    settled = settled & (low.to(tl.float32) == high.to(tl.float32))
    tl.store(indices_ptr + rows, index, mask=settled)
    tl.store(sqdist_ptr + rows, distance.to(tl.float32), mask=settled)

    hard = (rows < N) & (settled == 0)
    number = tl.sum(hard.to(tl.int32), axis=0)
    if number > 0:
        slot = (
            tl.atomic_add(facts_ptr + HARD_COUNT, number) + tl.cumsum(hard.to(tl.int32), axis=0) - 1
        )
        tl.store(hard_ptr + slot, rows, mask=hard)


def nearest_code_triton(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    (n, dimension), num_codes = z.shape, len(codebook)
    indices = z.new_empty(n, dtype=torch.int64)
    sqdist = z.new_empty(n, dtype=torch.float32)
    hard = z.new_empty(n, dtype=torch.int64)
    halves, half_norms, mean, facts = centre_codebook(codebook)
    width = triton.next_power_of_2(max(dimension, 16))
    config = dict(configuration("nearest_code_screen", z.device))
    chunk = config.pop("CHUNK_D")
    block_d = width if width <= config.pop("MAX_D") else chunk
    tiles = triton.cdiv(num_codes, config["BLOCK_K"])
    launch(
        _nearest_code_screen_kernel,
        (triton.cdiv(n, config["BLOCK_N"]),),
        z,
        codebook,
        halves,
        half_norms,
        mean,
        facts,
        indices,
        sqdist,
        hard,
        n,
        num_codes,
        dimension,
        z.stride(),
        codebook.stride(),
        BLOCK_D=block_d,
        WHOLE=block_d >= dimension,
        TAG_BITS=max(1, (tiles - 1).bit_length()),
        MOST=8,
        enable_fp_fusion=False,
        **config,
    )
    settle_hard_rows(z, codebook, indices, sqdist, hard, facts)
    return indices, sqdist


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield nearest_code_triton, (torch.ones(64, 64, dtype=dtype), torch.ones(512, 64))
    for codes, dimension in ((256, 32), (1024, 256), (8192, 512)):
        yield nearest_code_triton, (torch.ones(64, dimension), torch.ones(codes, dimension))
    for dtype in (torch.bfloat16, torch.float16):
        z = torch.ones(64, 64, dtype=dtype)
        yield nearest_code_triton, (z, torch.ones(512, 64, dtype=dtype))
