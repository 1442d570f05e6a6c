"""`causal_attention` with dropout on the logits in Triton, in tiles: no L×L matrix is formed.

Size letters are those of `triton_tiles.py`; the gradient is in `triton_backward.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import launch
from vqvae2_fast.ops._triton_noise import with_first_sample
from vqvae2_fast.ops.causal_attention.triton_backward import causal_attention_backward_triton
from vqvae2_fast.ops.causal_attention.triton_tiles import (
    compile_time,
    configuration_of,
    kept,
    least_kept_word,
    rows_of_head,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["causal_attention_backward_triton", "causal_attention_fused_triton", "examples"]


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
    """One block of queries over the keys before it, with a running maximum and sum."""
    # Long rows come first, so that the last blocks to run are short.
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    sample = tl.program_id(0).to(tl.int64)
    image, head = sample // H, sample % H
    queries = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    seed = tl.load(seed_ptr)
    dropped = tl.load(seed_ptr + 1) * H + sample
    bound = threshold.to(tl.uint32)
    q = rows_of_head(q_ptr, image, head, queries, d, L, D, q_strides).to(OPERAND)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    for first in range(0, tl.minimum((block + 1) * BLOCK_M, L), BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        k = rows_of_head(k_ptr, image, head, keys, d, L, D, k_strides).to(OPERAND)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = kept(seed, dropped, queries, first, bound, BLOCK_N)
        logit = tl.where(keep, product * gain, 0.0)
        logit = tl.where(keys[None, :] < queries[:, None], logit, float("-inf"))
        higher = tl.maximum(highest, tl.max(logit, axis=1))
        # A row that has seen no key yet has no maximum.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(logit - finite[:, None])
        decay = tl.exp2(highest - finite)
        v = rows_of_head(v_ptr, image, head, keys, dv, L, DV, v_strides).to(OPERAND)
        total = total * decay + tl.sum(weights, axis=1)
        out = out * decay[:, None]
        out = tl.dot(weights.to(OPERAND), v, out, input_precision=PRECISION)
        highest = higher
    # The first position sees no key and gives zeros.
    alone = total == 0.0
    out = out / tl.where(alone, 1.0, total)[:, None]
    log_sum = tl.where(alone, 0.0, highest + tl.log2(tl.where(alone, 1.0, total)))
    row = sample * L + queries
    inside = queries < L
    tl.store(
        out_ptr + row[:, None] * DV + dv[None, :], out, mask=inside[:, None] & (dv < DV)[None, :]
    )
    tl.store(log_sum_ptr + row, log_sum, mask=inside)


def causal_attention_fused_triton(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    batch, heads, length, dimension = q.shape
    out = q.new_empty((batch, heads, length, v.shape[3]))
    log_sum = q.new_empty((batch, heads, length), dtype=torch.float32)
    config = configuration_of("fwd", q, v)
    gain = dimension**-0.5 / (1 - dropout_p) * math.log2(math.e)
    launch(
        _causal_attention_fwd_kernel,
        (batch * heads, triton.cdiv(length, config["BLOCK_M"])),
        q,
        k,
        v,
        with_first_sample(seed),
        out,
        log_sum,
        heads,
        length,
        dimension,
        v.shape[3],
        gain,
        least_kept_word(dropout_p),
        q.stride(),
        k.stride(),
        v.stride(),
        **compile_time(q, v),
        **config,
    )
    return out, log_sum


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
