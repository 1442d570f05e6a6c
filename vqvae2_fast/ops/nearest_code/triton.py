"""`nearest_code` in Triton: tensor cores screen; codes within a proven band are compared exactly.

N vectors, K codes, D dimensions. Scores are of centred and scaled values in float16, products added
in float32. Codes inside the band are compared by float32 distances. Rows with codes of more than
one group inside the band go to a second kernel, and those that neither can settle to a third, in
`triton_hard.py`. The README derives the band.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqvae2_fast.ops._triton import configuration, dependent_launch, launch
from vqvae2_fast.ops.nearest_code.triton_codebook import (
    HARD_COUNT,
    OPEN_COUNT,
    after_kernel_before,
    centre_codebook,
)
from vqvae2_fast.ops.nearest_code.triton_distances import (
    bound_of_nearest,
    distance_in_any_order,
    range_of_definition,
    two_nearest_of_group,
)
from vqvae2_fast.ops.nearest_code.triton_hard import settle_hard_rows
from vqvae2_fast.ops.nearest_code.triton_screen import GROUP, screened

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["examples", "nearest_code_triton"]

NO_GROUP = tl.constexpr(2**31 - 1)
# Added up over a row, it counts lanes above the bits of their groups.
ONE_LANE = tl.constexpr(2**20)


@triton.jit
def _groups_inside(scores, bound, lane, LANES: tl.constexpr, TAG_BITS: tl.constexpr):
    """The groups that scores of lanes belong to; NO_GROUP above the bound."""
    tile = scores.to(tl.int32, bitcast=True) & ((1 << TAG_BITS) - 1)
    return tl.where(scores <= bound[:, None], tile * LANES + lane, NO_GROUP)


@triton.jit
def _settle(
    z_ptr,
    codebook_ptr,
    halves_ptr,
    mean_ptr,
    facts_ptr,
    extremes_ptr,
    indices_ptr,
    sqdist_ptr,
    left_ptr,
    left_count_ptr,
    rows,
    N,
    K,
    D,
    z_strides,
    code_strides,
    halves_stride,
    blocks,
    WIDTH: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT_D: tl.constexpr,
    LOOP_D: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
    TAG_BITS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Settles rows with at most MOST groups inside the band; the others below N go to `left`."""
    LANES: tl.constexpr = BLOCK_K // GROUP
    best, second, third, least_score, bound, certain = screened(
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
        WIDTH,
        ONCE,
        BLOCK_N,
        BLOCK_K,
        BLOCK_D,
        MASKED,
        WHOLE,
        TAG_BITS,
        MOST > 1,
    )
    lane = tl.arange(0, LANES)[None, :]
    near = best <= bound[:, None]
    if MOST == 1:
        crowded = tl.min(second, axis=1) <= bound
        # Lanes inside the band, times 2²⁰, and the number of the last one, in one sum over the row.
        total = tl.sum(tl.where(near, lane + ONE_LANE, 0), axis=1)
        counts = total // ONE_LANE
        tile = least_score.to(tl.int32, bitcast=True) & ((1 << TAG_BITS) - 1)
        only_group = tile * LANES + total % ONE_LANE
    else:
        crowded = tl.min(third, axis=1) <= bound
        groups = _groups_inside(best, bound, lane, LANES, TAG_BITS)
        others = _groups_inside(second, bound, lane, LANES, TAG_BITS)
        counts = tl.sum(near.to(tl.int32) + (others < NO_GROUP).to(tl.int32), axis=1)
    settled = certain & (counts <= MOST) & (crowded == 0) & (rows < N)

    nearest = tl.full((BLOCK_N,), float("inf"), tl.float32)
    runner_up = nearest
    index = tl.zeros((BLOCK_N,), rows.dtype)
    rounds = 1
    if MOST > 1:
        rounds = tl.max(tl.where(settled, counts, 0))
    for _ in range(0, rounds):
        if MOST == 1:
            group = only_group
            found = settled
        else:
            group = tl.min(tl.minimum(groups, others), axis=1)
            groups = tl.where(groups == group[:, None], NO_GROUP, groups)
            others = tl.where(others == group[:, None], NO_GROUP, others)
            found = settled & (group < NO_GROUP)
        code = tl.where(found, group, 0).to(rows.dtype) * GROUP
        least, next_least, nearest_of_group = two_nearest_of_group(
            z_ptr,
            codebook_ptr,
            rows,
            code,
            found,
            N,
            K,
            D,
            z_strides,
            code_strides,
            EXACT_D,
            LOOP_D,
            MASKED,
        )
        if MOST == 1:
            nearest, runner_up, index = least, next_least, nearest_of_group
        else:
            runner_up = tl.minimum(tl.minimum(runner_up, next_least), tl.maximum(nearest, least))
            index = tl.where(least < nearest, nearest_of_group, index)
            nearest = tl.minimum(nearest, least)
    settled = settled & (runner_up > bound_of_nearest(nearest, D))
    distance = distance_in_any_order(
        z_ptr, codebook_ptr, rows, index, N, D, z_strides, code_strides, EXACT_D, LOOP_D, MASKED
    )
    # A sum that another order could round to another float32 needs the definition's order.
    low, high = range_of_definition(distance, D)
    settled = settled & (low.to(tl.float32) == high.to(tl.float32))
    tl.store(indices_ptr + rows, index, mask=settled)
    tl.store(sqdist_ptr + rows, distance.to(tl.float32), mask=settled)

    left = (rows < N) & (settled == 0)
    number = tl.sum(left.to(tl.int32), axis=0)
    if number > 0:
        slot = tl.atomic_add(left_count_ptr, number) + tl.cumsum(left.to(tl.int32), axis=0) - 1
        tl.store(left_ptr + slot, rows, mask=left)


@triton.jit(do_not_specialize=["K"])
def _nearest_code_screen_kernel(
    z_ptr,
    codebook_ptr,
    halves_ptr,
    mean_ptr,
    facts_ptr,
    extremes_ptr,
    indices_ptr,
    sqdist_ptr,
    open_ptr,
    N,
    K,
    D,
    z_strides,
    code_strides,
    halves_stride,
    blocks,
    DEPENDENT: tl.constexpr,
    WIDTH: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT_D: tl.constexpr,
    LOOP_D: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
    TAG_BITS: tl.constexpr,
):
    """Settles rows with one group of codes inside the band, and lists the others as open.

    2·N·K·D flops; reads z once and four codes of each row, writes 12 bytes per row.
    """
    after_kernel_before(DEPENDENT)
    _settle(
        z_ptr,
        codebook_ptr,
        halves_ptr,
        mean_ptr,
        facts_ptr,
        extremes_ptr,
        indices_ptr,
        sqdist_ptr,
        open_ptr,
        facts_ptr + OPEN_COUNT,
        tl.program_id(0).to(open_ptr.dtype.element_ty) * BLOCK_N + tl.arange(0, BLOCK_N),
        N,
        K,
        D,
        z_strides,
        code_strides,
        halves_stride,
        blocks,
        WIDTH,
        ONCE,
        BLOCK_N,
        BLOCK_K,
        BLOCK_D,
        EXACT_D,
        LOOP_D,
        MASKED,
        WHOLE,
        TAG_BITS,
        1,
    )


@triton.jit(do_not_specialize=["K"])
def _nearest_code_open_kernel(
    z_ptr,
    codebook_ptr,
    halves_ptr,
    mean_ptr,
    facts_ptr,
    extremes_ptr,
    indices_ptr,
    sqdist_ptr,
    open_ptr,
    hard_ptr,
    N,
    K,
    D,
    z_strides,
    code_strides,
    halves_stride,
    blocks,
    DEPENDENT: tl.constexpr,
    WIDTH: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT_D: tl.constexpr,
    LOOP_D: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
    TAG_BITS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Screens the open rows again, settles those with at most MOST groups, lists others as hard."""
    after_kernel_before(DEPENDENT)
    number = tl.load(facts_ptr + OPEN_COUNT)
    for first in range(tl.program_id(0) * BLOCK_N, number, tl.num_programs(0) * BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        rows = tl.load(open_ptr + place, mask=place < number, other=N)
        _settle(
            z_ptr,
            codebook_ptr,
            halves_ptr,
            mean_ptr,
            facts_ptr,
            extremes_ptr,
            indices_ptr,
            sqdist_ptr,
            hard_ptr,
            facts_ptr + HARD_COUNT,
            rows,
            N,
            K,
            D,
            z_strides,
            code_strides,
            halves_stride,
            blocks,
            WIDTH,
            ONCE,
            BLOCK_N,
            BLOCK_K,
            BLOCK_D,
            EXACT_D,
            LOOP_D,
            MASKED,
            WHOLE,
            TAG_BITS,
            MOST,
        )


def _tag_bits(num_codes: int, block_k: int) -> int:
    """Bits for the number of a tile of codes."""
    return max(1, (triton.cdiv(num_codes, block_k) - 1).bit_length())


def number_type(z: Tensor, codebook: Tensor) -> torch.dtype:
    """In what rows and offsets are counted: int32 where all of them fit, else int64."""
    offsets = (
        sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        for x in (z, codebook)
    )
    # Blocks number up to 1,023 rows and dimensions that do not exist.
    return torch.int32 if max(len(z), *offsets) < 2**31 - 1024 else torch.int64


def nearest_code_triton(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    (n, dimension), num_codes = z.shape, len(codebook)
    indices = z.new_empty(n, dtype=torch.int64)
    sqdist = z.new_empty(n, dtype=torch.float32)
    rows_type = number_type(z, codebook)
    open_rows = z.new_empty(n, dtype=rows_type)
    hard = z.new_empty(n, dtype=rows_type)
    width = triton.next_power_of_2(max(dimension, 16))
    config = dict(configuration("nearest_code_screen", z.device))
    again = dict(configuration("nearest_code_open", z.device))
    for options in (config, again):
        wide = {key[5:]: options.pop(key) for key in list(options) if key.startswith("WIDE_")}
        if width > 64:
            options.update(wide)
    chunk, exact_d = config.pop("CHUNK_D"), config.pop("EXACT_D")
    block_d = width if width <= config.pop("MAX_D") else chunk
    for options in (config, again):
        options["LOOP_D"] = loop_d = min(block_d, options["LOOP_D"])
        options["EXACT_D"] = min(exact_d, loop_d)
        # Where BLOCK_D divides D nothing is masked, so these loops too must end at D.
        assert block_d % loop_d == 0 and loop_d % options["EXACT_D"] == 0
    multiple = max(config["BLOCK_K"], again["BLOCK_K"])
    halves, mean, facts, extremes = centre_codebook(codebook, multiple, block_d)
    common = {
        "BLOCK_D": block_d,
        "MASKED": dimension % block_d != 0,
        "WHOLE": block_d >= dimension,
        "WIDTH": min(triton.next_power_of_2(extremes.shape[1]), 512),
        "ONCE": extremes.shape[1] <= 512,
        **dependent_launch(z.device),
    }
    blocks = triton.cdiv(n, config["BLOCK_N"])
    prepared = (z, codebook, halves, mean, facts, extremes, indices, sqdist)
    strides = (z.stride(), codebook.stride(), halves.stride(0))
    sizes = (n, num_codes, dimension, *strides, extremes.shape[1])
    launch(
        _nearest_code_screen_kernel,
        (blocks,),
        *prepared,
        open_rows,
        *sizes,
        TAG_BITS=_tag_bits(num_codes, config["BLOCK_K"]),
        **config,
        **common,
    )
    programs = min(triton.cdiv(n, again["BLOCK_N"]), again.pop("PROGRAMS"))
    launch(
        _nearest_code_open_kernel,
        (programs,),
        *prepared,
        open_rows,
        hard,
        *sizes,
        TAG_BITS=_tag_bits(num_codes, again["BLOCK_K"]),
        MOST=8,
        **again,
        **common,
    )
    settle_hard_rows(z, codebook, indices, sqdist, hard, facts)
    return indices, sqdist


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield nearest_code_triton, (torch.ones(64, 64, dtype=dtype), torch.ones(512, 64))
    for codes, dimension in ((256, 32), (1024, 256), (8192, 512), (16384, 64)):
        yield nearest_code_triton, (torch.ones(64, dimension), torch.ones(codes, dimension))
    for dtype in (torch.bfloat16, torch.float16):
        z = torch.ones(64, 64, dtype=dtype)
        yield nearest_code_triton, (z, torch.ones(512, 64, dtype=dtype))
    # Sizes of 1 are constants; offsets beyond 31 bits.
    yield nearest_code_triton, (torch.ones(64, 1), torch.ones(1, 1))
    yield nearest_code_triton, (torch.empty(2**25, 64, device="meta"), torch.ones(512, 64))
