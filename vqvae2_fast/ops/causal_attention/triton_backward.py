"""The gradient of `causal_attention` with dropout on the logits in Triton.

Size letters are those of `triton_tiles.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import launch
from vqvae2_fast.ops._triton_noise import with_first_sample
from vqvae2_fast.ops.causal_attention.triton_tiles import (
    compile_time,
    configuration_of,
    kept,
    least_kept_word,
    probabilities,
    rows_of_head,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["causal_attention_backward_triton"]


@triton.jit
def _causal_attention_delta_kernel(
    dout_ptr,
    out_ptr,
    delta_ptr,
    H,
    L,
    DV,
    dout_strides,
    BLOCK_M: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """delta = Σ dout · out for each row."""
    sample = tl.program_id(0).to(tl.int64)
    image, head = sample // H, sample % H
    queries = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    dv = tl.arange(0, BLOCK_DV)
    dout = rows_of_head(dout_ptr, image, head, queries, dv, L, DV, dout_strides).to(tl.float32)
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
    dout_strides,
    q_strides,
    k_strides,
    v_strides,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys over the queries after it: dv = Pᵀ·dout, dk = dSᵀ·q."""
    block = tl.program_id(1)
    sample = tl.program_id(0).to(tl.int64)
    image, head = sample // H, sample % H
    first_key = block * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    seed = tl.load(seed_ptr)
    dropped = tl.load(seed_ptr + 1) * H + sample
    bound = threshold.to(tl.uint32)
    k = rows_of_head(k_ptr, image, head, keys, d, L, D, k_strides).to(OPERAND)
    v = rows_of_head(v_ptr, image, head, keys, dv, L, DV, v_strides).to(OPERAND)
    dk_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_sum = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    for first in range(first_key // BLOCK_M * BLOCK_M, L, BLOCK_M):
        queries = first + tl.arange(0, BLOCK_M)
        row = sample * L + queries
        log_sum = tl.load(log_sum_ptr + row, mask=queries < L, other=0.0)
        delta = tl.load(delta_ptr + row, mask=queries < L, other=0.0)
        q = rows_of_head(q_ptr, image, head, queries, d, L, D, q_strides).to(OPERAND)
        dout = rows_of_head(dout_ptr, image, head, queries, dv, L, DV, dout_strides).to(OPERAND)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = kept(seed, dropped, queries, first_key, bound, BLOCK_N)
        weights = probabilities(product, keep, queries, keys, log_sum, gain, L)
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
    dout_strides,
    q_strides,
    k_strides,
    v_strides,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries over the keys before it: dq = dS·k."""
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    sample = tl.program_id(0).to(tl.int64)
    image, head = sample // H, sample % H
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    seed = tl.load(seed_ptr)
    dropped = tl.load(seed_ptr + 1) * H + sample
    bound = threshold.to(tl.uint32)
    row = sample * L + queries
    log_sum = tl.load(log_sum_ptr + row, mask=queries < L, other=0.0)
    delta = tl.load(delta_ptr + row, mask=queries < L, other=0.0)
    q = rows_of_head(q_ptr, image, head, queries, d, L, D, q_strides).to(OPERAND)
    dout = rows_of_head(dout_ptr, image, head, queries, dv, L, DV, dout_strides).to(OPERAND)
    dq_sum = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, tl.minimum((block + 1) * BLOCK_M, L), BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        k = rows_of_head(k_ptr, image, head, keys, d, L, D, k_strides).to(OPERAND)
        v = rows_of_head(v_ptr, image, head, keys, dv, L, DV, v_strides).to(OPERAND)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = kept(seed, dropped, queries, first, bound, BLOCK_N)
        weights = probabilities(product, keep, queries, keys, log_sum, gain, L)
        dweights = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dproduct = tl.where(keep, weights * (dweights - delta[:, None]) * slope, 0.0)
        dq_sum = tl.dot(dproduct.to(OPERAND), k, dq_sum, input_precision=PRECISION)
    inside = (queries < L)[:, None] & (d < D)[None, :]
    tl.store(dq_ptr + row[:, None] * D + d[None, :], dq_sum, mask=inside)


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
    common = compile_time(q, v)
    # The forward made them contiguous, so this copies nothing.
    out, log_sum = out.contiguous(), log_sum.contiguous()
    delta = torch.empty_like(log_sum)
    launch(
        _causal_attention_delta_kernel,
        (batch * heads, triton.cdiv(length, 32)),
        dout,
        out,
        delta,
        heads,
        length,
        v.shape[3],
        dout.stride(),
        BLOCK_M=32,
        BLOCK_DV=common["BLOCK_DV"],
    )
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    slope = dimension**-0.5 / (1 - dropout_p)
    inputs = (dout, q, k, v, log_sum, delta, with_first_sample(seed))
    sizes = (heads, length, dimension, v.shape[3], slope * math.log2(math.e), slope)
    strides = (dout.stride(), q.stride(), k.stride(), v.stride())
    config = configuration_of("bwd_dkdv", q, v)
    launch(
        _causal_attention_bwd_dkdv_kernel,
        (batch * heads, triton.cdiv(length, config["BLOCK_N"])),
        *inputs,
        dk,
        dv,
        *sizes,
        least_kept_word(dropout_p),
        *strides,
        **common,
        **config,
    )
    config = configuration_of("bwd_dq", q, v)
    launch(
        _causal_attention_bwd_dq_kernel,
        (batch * heads, triton.cdiv(length, config["BLOCK_M"])),
        *inputs,
        dq,
        *sizes,
        least_kept_word(dropout_p),
        *strides,
        **common,
        **config,
    )
    return dq, dk, dv
