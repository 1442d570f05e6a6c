"""The third kernel of `nearest_code` in Triton: rows that the screens left, and all codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, dependent_launch, launch
from vqvae2_fast.ops.nearest_code.triton_codebook import HARD_COUNT, after_kernel_before
from vqvae2_fast.ops.nearest_code.triton_distances import (
    bound_of_nearest,
    exact_distance,
    range_of_definition,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["settle_hard_rows"]


@triton.jit
def _added_distances(total, z_ptr, codebook_ptr, row, k, d, K, D, z_strides, code_strides):
    """total + Σ (z − e)² over dimensions d, in float32: `[k]`."""
    z = tl.load(z_ptr + row * z_strides[0] + d * z_strides[1], mask=d < D, other=0.0)
    e = tl.load(
        codebook_ptr + k[:, None] * code_strides[0] + d[None, :] * code_strides[1],
        mask=(k < K)[:, None] & (d < D)[None, :],
        other=0.0,
    )
    difference = z.to(tl.float32)[None, :] - e.to(tl.float32)
    return total + tl.sum(difference * difference, axis=1)


@triton.jit
def _distances(
    z_ptr,
    codebook_ptr,
    row,
    k,
    K,
    D,
    z_strides,
    code_strides,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Σ (z − e)² in float32, infinite where it is NaN and for codes that do not exist."""
    total = tl.zeros(k.shape, tl.float32)
    d = tl.arange(0, BLOCK_D).to(row.dtype)
    if WHOLE:
        total = _added_distances(
            total, z_ptr, codebook_ptr, row, k, d, K, D, z_strides, code_strides
        )
    else:
        for first in range(0, D, BLOCK_D):
            total = _added_distances(
                total, z_ptr, codebook_ptr, row, k, first + d, K, D, z_strides, code_strides
            )
    return tl.where((k < K) & (total == total), total, float("inf"))


@triton.jit
def _sums_of_near(z_ptr, codebook_ptr, row, k, near, D, z_strides, code_strides):
    """Σ (z − e)² in float64, in any order; infinite where it is NaN and where not near."""
    BLOCK_D: tl.constexpr = 16  # more take registers, for codes most of which are not near
    sums = tl.zeros((k.shape[0], BLOCK_D), tl.float64)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D).to(row.dtype)
        z = tl.load(z_ptr + row * z_strides[0] + d * z_strides[1], mask=d < D, other=0.0)
        e = tl.load(
            codebook_ptr + k[:, None] * code_strides[0] + d[None, :] * code_strides[1],
            mask=near[:, None] & (d < D)[None, :],
            other=0.0,
        )
        difference = z.to(tl.float64)[None, :] - e.to(tl.float64)
        sums = tl.fma(difference, difference, sums)
    sums = tl.sum(sums, axis=1)
    return tl.where(near & (sums == sums), sums, float("inf"))


@triton.jit
def _contenders(
    part,
    named,
    near,
    crowded,
    bound,
    vectors,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Codes, whether they are inside the band, and their float64 sums: those that the lanes name.

    If crowded, those of tile `part` instead.
    """
    z_ptr, codebook_ptr, row, K, D, z_strides, code_strides = vectors
    k = named
    if crowded:
        k = part * BLOCK_K + tl.arange(0, BLOCK_K).to(row.dtype)
        near = bound >= _distances(
            z_ptr, codebook_ptr, row, k, K, D, z_strides, code_strides, BLOCK_D, WHOLE
        )
        near = near & (k < K)
    sums = _sums_of_near(z_ptr, codebook_ptr, row, k, near, D, z_strides, code_strides)
    return k, near, sums


@triton.jit
def _nearest_code_hard_kernel(
    z_ptr,
    codebook_ptr,
    indices_ptr,
    sqdist_ptr,
    hard_ptr,
    facts_ptr,
    K,
    D,
    z_strides,
    code_strides,
    DEPENDENT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Listed rows one by one: float32 distances to all codes, float64 for those in the band.

    A lane sees every BLOCK_K-th code and keeps its least distance with the tile it came from. Where
    the band holds a lane's second distance, later passes go over all codes again. Where the order
    of float64 sums could decide, a last pass sums codes in the band in the order of d.
    """
    after_kernel_before(DEPENDENT)
    for place in range(tl.program_id(0), tl.load(facts_ptr + HARD_COUNT), tl.num_programs(0)):
        row = tl.load(hard_ptr + place)
        vectors = (z_ptr, codebook_ptr, row, K, D, z_strides, code_strides)
        lane = tl.arange(0, BLOCK_K).to(row.dtype)
        least = tl.full((BLOCK_K,), float("inf"), tl.float32)
        next_least = least
        named = lane
        for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            k = first + lane
            total = _distances(
                z_ptr, codebook_ptr, row, k, K, D, z_strides, code_strides, BLOCK_D, WHOLE
            )
            next_least = tl.minimum(next_least, tl.maximum(least, total))
            named = tl.where(total < least, k, named)
            least = tl.minimum(least, total)
        bound = bound_of_nearest(tl.min(least, axis=0), D)
        near = (named < K) & (least <= bound)
        crowded = tl.min(next_least, axis=0) <= bound
        parts = tl.where(crowded, (K + BLOCK_K - 1) // BLOCK_K, 1)
        distance = tl.full((), float("inf"), tl.float64)
        second = tl.full((), float("inf"), tl.float64)
        index = tl.full((), 0, row.dtype)
        for part in range(0, parts):
            k, _, sums = _contenders(
                part, named, near, crowded, bound, vectors, BLOCK_K, BLOCK_D, WHOLE
            )
            nearest = tl.min(sums, axis=0)
            code = tl.min(tl.where(sums == nearest, k, K), axis=0)
            others = tl.where(k == code, float("inf"), sums)
            second = tl.minimum(second, tl.maximum(distance, nearest))
            second = tl.minimum(second, tl.min(others, axis=0))
            if nearest < distance:
                distance = nearest
                index = code
        least_sum, bound_sum = range_of_definition(distance, D)
        unsure = range_of_definition(second, D)[0] <= bound_sum
        unsure = unsure | (least_sum.to(tl.float32) != bound_sum.to(tl.float32))
        if unsure & (distance < float("inf")):
            distance = tl.full((), float("inf"), tl.float64)
            for part in range(0, parts):
                k, inside, sums = _contenders(
                    part, named, near, crowded, bound, vectors, BLOCK_K, BLOCK_D, WHOLE
                )
                inside = inside & (range_of_definition(sums, D)[0] <= bound_sum)
                exact = exact_distance(
                    z_ptr, codebook_ptr, row + k * 0, k, inside, D, z_strides, code_strides
                )
                exact = tl.where(inside, exact, float("inf"))
                nearest = tl.min(exact, axis=0)
                code = tl.min(tl.where(exact == nearest, k, K), axis=0)
                # Tiles come in the order of codes, so ties keep the lowest index.
                if nearest < distance:
                    distance = nearest
                    index = code
        if distance == float("inf"):
            # No finite distance: index 0, with its distance as it is.
            one = tl.arange(0, 1).to(row.dtype)
            zeroth = exact_distance(
                z_ptr, codebook_ptr, row + one, one, one == 0, D, z_strides, code_strides
            )
            distance = tl.sum(zeroth, axis=0)
            index = tl.full((), 0, row.dtype)
        tl.store(indices_ptr + row, index)
        tl.store(sqdist_ptr + row, distance.to(tl.float32))


def settle_hard_rows(
    z: Tensor, codebook: Tensor, indices: Tensor, sqdist: Tensor, hard: Tensor, facts: Tensor
) -> None:
    """Writes indices and distances of the rows that the screen listed in `hard`."""
    (n, dimension), num_codes = z.shape, len(codebook)
    width = triton.next_power_of_2(max(dimension, 16))
    config = dict(configuration("nearest_code_hard", z.device))
    programs = min(n, config.pop("PROGRAMS"))
    block_d = min(width, config.pop("MAX_D"))
    launch(
        _nearest_code_hard_kernel,
        (programs,),
        z,
        codebook,
        indices,
        sqdist,
        hard,
        facts,
        num_codes,
        dimension,
        z.stride(),
        codebook.stride(),
        BLOCK_D=block_d,
        WHOLE=block_d >= dimension,
        STAGES=3 if block_d >= dimension else 1,
        enable_fp_fusion=False,
        **dependent_launch(z.device),
        **config,
    )
