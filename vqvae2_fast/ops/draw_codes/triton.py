"""`draw_codes` in Triton: one program per row, with everything in registers.

B rows of K codes. Kernels are launched without contraction of multiply-adds, so that scores are
those of the reference bit for bit. All strides are in elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["draw_codes_triton", "examples"]


@triton.jit
def _order_keys(score, k, BLOCK_K: tl.constexpr):
    """int64 keys that are larger for larger scores, and for lower k among equal ones."""
    # Zeros of both signs are equal, and so are all NaN.
    score = tl.where(score == 0.0, 0.0, score)
    score = tl.where(score != score, float("nan"), score)
    bits = score.to(tl.int32, bitcast=True)
    # The larger the bits of a negative float, the smaller its value.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (BLOCK_K - 1 - k).to(tl.int64)


@triton.jit
def _from_order_keys(keys, BLOCK_K: tl.constexpr):
    """The score and the code of each key."""
    ordered = (keys >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), BLOCK_K - 1 - (keys & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _first_largest(score, k):
    """The lowest k of the largest score; NaN counts as infinite, as in `torch.argmax`."""
    score = tl.where(score != score, float("inf"), score)
    best = tl.max(score, axis=0)
    return tl.min(tl.where(score == best, k, 0x7FFFFFFF), axis=0)


@triton.jit(do_not_specialize=["top_k"])
def _draw_codes_kernel(
    logits_ptr,
    unconditional_ptr,
    noise_ptr,
    known_ptr,
    codes_ptr,
    taken_ptr,
    K,
    temperature,
    top_k,
    top_p,
    guidance_scale,
    logits_strides,
    unconditional_strides,
    noise_strides,
    known_stride_b,
    GUIDED: tl.constexpr,
    GREEDY: tl.constexpr,
    FILTERED: tl.constexpr,
    NUCLEUS: tl.constexpr,
    KNOWN: tl.constexpr,
    LOG_PROB: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """codes[b] = argmax_k of guided, tempered, filtered logits + noise; reads 8 bytes per code."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    inside = k < K
    logits_row = logits_ptr + row * logits_strides[0]
    raw = tl.load(logits_row + k * logits_strides[1], mask=inside, other=float("-inf"))
    score = raw
    if GUIDED:
        at = unconditional_ptr + row * unconditional_strides[0] + k * unconditional_strides[1]
        without = tl.load(at, mask=inside, other=0.0)
        score = tl.where(inside, without + guidance_scale * (raw - without), float("-inf"))
    if not GREEDY:
        score = tl.div_rn(score, temperature)
        if FILTERED:
            keys = tl.sort(_order_keys(score, k, BLOCK_K), descending=True)
            rank = k
            score, k = _from_order_keys(keys, BLOCK_K)
            score = tl.where(rank < top_k, score, float("-inf"))
            if NUCLEUS:
                weight = tl.exp(score - tl.max(score, axis=0))
                cumulative = tl.cumsum(tl.div_rn(weight, tl.sum(weight, axis=0)), axis=0)
                # A code is kept if those before it have less than p in all; the first is always
                # kept.
                short = tl.where((cumulative < top_p) & (rank < top_k), 1, 0)
                score = tl.where(rank <= tl.sum(short, axis=0), score, float("-inf"))
        at = noise_ptr + row * noise_strides[0] + k * noise_strides[1]
        score = score + tl.load(at, mask=k < K, other=0.0)
    code = _first_largest(score, k).to(tl.int64)
    if KNOWN:
        known = tl.load(known_ptr + row * known_stride_b)
        code = tl.where(known >= 0, known, code)
    tl.store(codes_ptr + row, code)
    if LOG_PROB:
        highest = tl.max(raw, axis=0)
        total = tl.sum(tl.exp(raw - highest), axis=0)
        own = tl.load(logits_row + code * logits_strides[1], mask=code < K, other=float("nan"))
        tl.store(taken_ptr + row, (own - highest) - tl.log(total))


def draw_codes_triton(
    logits: Tensor,
    unconditional: Tensor | None,
    noise: Tensor,
    known: Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    guidance_scale: float,
    log_prob: bool,
) -> tuple[Tensor, Tensor]:
    batch, num_embeddings = logits.shape
    codes = logits.new_empty(batch, dtype=torch.int64)
    taken = logits.new_empty(batch if log_prob else 0)
    without = logits if unconditional is None else unconditional
    top_k = min(top_k or num_embeddings, num_embeddings)
    block = max(16, triton.next_power_of_2(num_embeddings))
    config = configuration("draw_codes" if block <= 2048 else "draw_codes_wide", logits.device)
    launch(
        _draw_codes_kernel,
        (batch,),
        logits,
        without,
        noise,
        codes if known is None else known,
        codes,
        taken,
        num_embeddings,
        temperature,
        top_k,
        top_p,
        guidance_scale,
        logits.stride(),
        without.stride(),
        noise.stride(),
        0 if known is None else known.stride(0),
        GUIDED=unconditional is not None,
        GREEDY=temperature == 0,
        FILTERED=top_k < num_embeddings or top_p < 1,
        NUCLEUS=top_p < 1,
        KNOWN=known is not None,
        LOG_PROB=log_prob,
        BLOCK_K=block,
        enable_fp_fusion=False,
        **config,
    )
    return codes, taken


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    known = torch.zeros(4, dtype=torch.int64)
    for num_embeddings in (512, 8192):
        logits = torch.zeros(4, num_embeddings)
        yield draw_codes_triton, (logits, None, logits, None, 1.0, 0, 1.0, 1.0, False)
        yield draw_codes_triton, (logits, logits, logits, known, 0.9, 40, 0.95, 2.0, True)
    yield draw_codes_triton, (logits, None, logits, None, 0.0, 0, 1.0, 1.0, True)
