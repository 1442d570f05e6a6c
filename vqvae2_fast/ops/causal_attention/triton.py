"""`causal_attention` with dropout on the logits in Triton, in tiles: no L×L matrix is formed.

B batch, H heads, L positions, D and DV values of a head. Exponentials are of base 2; log_sum is
log₂ Σ 2^logit of a row. The dropout of an entry is made where it is needed, from the seed; strides
are in elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, dot_precision, launch, operand_type
from vqvae2_fast.ops._triton_noise import random_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["causal_attention_backward_triton", "causal_attention_fused_triton", "examples"]


@triton.jit
def _rows(ptr, image, head, rows, columns, L, D, stride_b, stride_h, stride_l, stride_d):
    """Rows of one head, 0 outside: `[rows, columns]`."""
    base = ptr + image * stride_b + head * stride_h
    at = rows.to(tl.int64)[:, None] * stride_l + columns[None, :] * stride_d
    return tl.load(base + at, mask=(rows < L)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _keep(seed, sample, queries, first_key, threshold, BLOCK_N: tl.constexpr):
    """Which logits of `[queries, BLOCK_N keys]` the dropout keeps: u ≥ p as a test of words."""
    quads = first_key // 4 + tl.arange(0, BLOCK_N // 4)
    words = random_words(seed, quads[None, :], queries[:, None], sample, 1 << 16)
    return words >= threshold


@triton.jit
def _probabilities(product, keep, queries, keys, log_sum, gain, L):
    """2^(logit − log_sum): 0 for keys that a query does not see."""
    logit = tl.where(keep, product * gain, 0.0)
    seen = (keys[None, :] < queries[:, None]) & (queries < L)[:, None]
    return tl.where(seen, tl.exp2(logit - log_sum[:, None]), 0.0)


@triton.jit(do_not_specialize=["threshold"])
def _causal_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    seed_ptr,
    out_ptr,
    log_sum_ptr,
    H,
    L,
    D,
    DV,
    gain,
    threshold,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    q_stride_d,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    k_stride_d,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    v_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of queries over the keys before it, with a running maximum and sum."""
    # Long rows first: the last blocks to run are short.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    image, head = sample // H, sample % H
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    seed = tl.load(seed_ptr)
    bound = threshold.to(tl.uint32)
    q = _rows(
        q_ptr, image, head, queries, d, L, D, q_stride_b, q_stride_h, q_stride_l, q_stride_d
    ).to(OPERAND)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    for first in range(0, tl.minimum((block + 1) * BLOCK_M, L), BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        k = _rows(
            k_ptr, image, head, keys, d, L, D, k_stride_b, k_stride_h, k_stride_l, k_stride_d
        ).to(OPERAND)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = _keep(seed, sample, queries, first, bound, BLOCK_N)
        logit = tl.where(keep, product * gain, 0.0)
        logit = tl.where(keys[None, :] < queries[:, None], logit, float("-inf"))
        higher = tl.maximum(highest, tl.max(logit, axis=1))
        # A row that has seen no key yet has no maximum.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(logit - finite[:, None])
        decay = tl.exp2(highest - finite)
        v = _rows(
            v_ptr, image, head, keys, dv, L, DV, v_stride_b, v_stride_h, v_stride_l, v_stride_d
        ).to(OPERAND)
        total = total * decay + tl.sum(weights, axis=1)
        out = out * decay[:, None]
        out = tl.dot(weights.to(OPERAND), v, out, input_precision=PRECISION)
        highest = higher
    # The first position sees nothing: zeros.
    alone = total == 0.0
    out = out / tl.where(alone, 1.0, total)[:, None]
    log_sum = tl.where(alone, 0.0, highest + tl.log2(tl.where(alone, 1.0, total)))
    row = sample * L + queries
    inside = queries < L
    tl.store(
        out_ptr + row[:, None] * DV + dv[None, :], out, mask=inside[:, None] & (dv < DV)[None, :]
    )
    tl.store(log_sum_ptr + row, log_sum, mask=inside)


@triton.jit
def _causal_attention_delta_kernel(
    dout_ptr,
    out_ptr,
    delta_ptr,
    H,
    L,
    DV,
    dout_stride_b,
    dout_stride_h,
    dout_stride_l,
    dout_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """delta = Σ dout · out of each row."""
    sample = tl.program_id(1).to(tl.int64)
    image, head = sample // H, sample % H
    queries = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dv = tl.arange(0, BLOCK_DV)
    dout = _rows(
        dout_ptr,
        image,
        head,
        queries,
        dv,
        L,
        DV,
        dout_stride_b,
        dout_stride_h,
        dout_stride_l,
        dout_stride_d,
    ).to(tl.float32)
    row = sample * L + queries
    out = tl.load(
        out_ptr + row[:, None] * DV + dv[None, :],
        mask=(queries < L)[:, None] & (dv < DV)[None, :],
        other=0.0,
    ).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(dout * out, axis=1), mask=queries < L)


@triton.jit(do_not_specialize=["threshold"])
def _causal_attention_bwd_dkdv_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    log_sum_ptr,
    delta_ptr,
    seed_ptr,
    dk_ptr,
    dv_ptr,
    H,
    L,
    D,
    DV,
    gain,
    slope,
    threshold,
    dout_stride_b,
    dout_stride_h,
    dout_stride_l,
    dout_stride_d,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    q_stride_d,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    k_stride_d,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    v_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of keys over the queries after it: dv = Pᵀ·dout, dk = dSᵀ·q."""
    block = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    image, head = sample // H, sample % H
    first_key = block * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    seed = tl.load(seed_ptr)
    bound = threshold.to(tl.uint32)
    k = _rows(k_ptr, image, head, keys, d, L, D, k_stride_b, k_stride_h, k_stride_l, k_stride_d).to(
        OPERAND
    )
    v = _rows(
        v_ptr, image, head, keys, dv, L, DV, v_stride_b, v_stride_h, v_stride_l, v_stride_d
    ).to(OPERAND)
    dk_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_sum = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    for first in range(first_key // BLOCK_M * BLOCK_M, L, BLOCK_M):
        queries = first + tl.arange(0, BLOCK_M)
        row = sample * L + queries
        log_sum = tl.load(log_sum_ptr + row, mask=queries < L, other=0.0)
        delta = tl.load(delta_ptr + row, mask=queries < L, other=0.0)
        q = _rows(
            q_ptr, image, head, queries, d, L, D, q_stride_b, q_stride_h, q_stride_l, q_stride_d
        ).to(OPERAND)
        dout = _rows(
            dout_ptr,
            image,
            head,
            queries,
            dv,
            L,
            DV,
            dout_stride_b,
            dout_stride_h,
            dout_stride_l,
            dout_stride_d,
        ).to(OPERAND)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = _keep(seed, sample, queries, first_key, bound, BLOCK_N)
        weights = _probabilities(product, keep, queries, keys, log_sum, gain, L)
        dv_sum = tl.dot(tl.trans(weights.to(OPERAND)), dout, dv_sum, input_precision=PRECISION)
        dweights = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dproduct = tl.where(keep, weights * (dweights - delta[:, None]) * slope, 0.0)
        dk_sum = tl.dot(tl.trans(dproduct.to(OPERAND)), q, dk_sum, input_precision=PRECISION)
    row = sample * L + keys
    inside = (keys < L)[:, None]
    tl.store(dk_ptr + row[:, None] * D + d[None, :], dk_sum, mask=inside & (d < D)[None, :])
    tl.store(dv_ptr + row[:, None] * DV + dv[None, :], dv_sum, mask=inside & (dv < DV)[None, :])


@triton.jit(do_not_specialize=["threshold"])
def _causal_attention_bwd_dq_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    log_sum_ptr,
    delta_ptr,
    seed_ptr,
    dq_ptr,
    H,
    L,
    D,
    DV,
    gain,
    slope,
    threshold,
    dout_stride_b,
    dout_stride_h,
    dout_stride_l,
    dout_stride_d,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    q_stride_d,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    k_stride_d,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    v_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of queries over the keys before it: dq = dS·k."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    image, head = sample // H, sample % H
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    seed = tl.load(seed_ptr)
    bound = threshold.to(tl.uint32)
    row = sample * L + queries
    log_sum = tl.load(log_sum_ptr + row, mask=queries < L, other=0.0)
    delta = tl.load(delta_ptr + row, mask=queries < L, other=0.0)
    q = _rows(
        q_ptr, image, head, queries, d, L, D, q_stride_b, q_stride_h, q_stride_l, q_stride_d
    ).to(OPERAND)
    dout = _rows(
        dout_ptr,
        image,
        head,
        queries,
        dv,
        L,
        DV,
        dout_stride_b,
        dout_stride_h,
        dout_stride_l,
        dout_stride_d,
    ).to(OPERAND)
    dq_sum = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, tl.minimum((block + 1) * BLOCK_M, L), BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        k = _rows(
            k_ptr, image, head, keys, d, L, D, k_stride_b, k_stride_h, k_stride_l, k_stride_d
        ).to(OPERAND)
        v = _rows(
            v_ptr, image, head, keys, dv, L, DV, v_stride_b, v_stride_h, v_stride_l, v_stride_d
        ).to(OPERAND)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = _keep(seed, sample, queries, first, bound, BLOCK_N)
        weights = _probabilities(product, keep, queries, keys, log_sum, gain, L)
        dweights = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dproduct = tl.where(keep, weights * (dweights - delta[:, None]) * slope, 0.0)
        dq_sum = tl.dot(dproduct.to(OPERAND), k, dq_sum, input_precision=PRECISION)
    inside = (queries < L)[:, None] & (d < D)[None, :]
    tl.store(dq_ptr + row[:, None] * D + d[None, :], dq_sum, mask=inside)


def _threshold(dropout_p: float) -> int:
    """The least word that is kept: (word >> 9) + 0.5 ≥ 2²³ p in float32."""
    rounded = torch.tensor(dropout_p, dtype=torch.float32).item()
    return math.ceil(rounded * 2.0**23 - 0.5) << 9


def _configuration(kernel: str, q: Tensor, v: Tensor) -> dict[str, int]:
    """Wide heads leave fewer registers for a tile of logits."""
    wide = max(q.shape[3], v.shape[3]) * q.element_size() > 128
    return configuration(f"causal_attention_{kernel}{'_wide' if wide else ''}", q.device)


def _common(q: Tensor, v: Tensor) -> dict[str, Any]:
    """Compile-time arguments that the kernels share."""
    return {
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[3])),
        "BLOCK_DV": max(16, triton.next_power_of_2(v.shape[3])),
        "OPERAND": operand_type(q.dtype),
        "PRECISION": dot_precision(q.dtype, q.device),
    }


def causal_attention_fused_triton(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    batch, heads, length, dimension = q.shape
    out = q.new_empty((batch, heads, length, v.shape[3]))
    log_sum = q.new_empty((batch, heads, length), dtype=torch.float32)
    config = _configuration("fwd", q, v)
    gain = dimension**-0.5 / (1 - dropout_p) * math.log2(math.e)
    launch(
        _causal_attention_fwd_kernel,
        (triton.cdiv(length, config["BLOCK_M"]), batch * heads),
        q,
        k,
        v,
        seed,
        out,
        log_sum,
        heads,
        length,
        dimension,
        v.shape[3],
        gain,
        _threshold(dropout_p),
        *q.stride(),
        *k.stride(),
        *v.stride(),
        **_common(q, v),
        **config,
    )
    return out, log_sum


def causal_attention_backward_triton(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, dimension = q.shape
    common = _common(q, v)
    delta = torch.empty_like(log_sum)
    launch(
        _causal_attention_delta_kernel,
        (triton.cdiv(length, 64), batch * heads),
        dout,
        out,
        delta,
        heads,
        length,
        v.shape[3],
        *dout.stride(),
        BLOCK_M=64,
        BLOCK_DV=common["BLOCK_DV"],
    )
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    slope = dimension**-0.5 / (1 - dropout_p)
    inputs = (dout, q, k, v, log_sum, delta, seed)
    sizes = (heads, length, dimension, v.shape[3], slope * math.log2(math.e), slope)
    strides = (*dout.stride(), *q.stride(), *k.stride(), *v.stride())
    config = _configuration("bwd_dkdv", q, v)
    launch(
        _causal_attention_bwd_dkdv_kernel,
        (triton.cdiv(length, config["BLOCK_N"]), batch * heads),
        *inputs,
        dk,
        dv,
        *sizes,
        _threshold(dropout_p),
        *strides,
        **common,
        **config,
    )
    config = _configuration("bwd_dq", q, v)
    launch(
        _causal_attention_bwd_dq_kernel,
        (triton.cdiv(length, config["BLOCK_M"]), batch * heads),
        *inputs,
        dq,
        *sizes,
        _threshold(dropout_p),
        *strides,
        **common,
        **config,
    )
    return dq, dk, dv


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    seed = torch.tensor(1)
    for dtype, widths in (
        (torch.float32, (16, 64)),
        (torch.bfloat16, (16, 64, 128)),
        (torch.float16, (16,)),
    ):
        for width in widths:
            q = torch.ones(2, 2, 64, min(width, 64), dtype=dtype)
            v = torch.ones(2, 2, 64, width, dtype=dtype)
            yield causal_attention_fused_triton, (q, q, v, 0.1, seed)
            log_sum = torch.ones(2, 2, 64)
            yield causal_attention_backward_triton, (v, q, q, v, v, log_sum, 0.1, seed)
