"""What the kernels of `causal_attention` share: loads, the dropout of a tile, its weights.

B batch, H heads, L positions, D and DV values of a head. Exponentials have base 2: logits here are
multiplied by log₂ e, and log_sum is the same number as the reference's. Each kernel computes an
entry's dropout from the seed where it needs it. Strides are in elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, dot_precision, operand_type
from vqvae2_fast.ops._triton_noise import random_words

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "compile_time",
    "configuration_of",
    "kept",
    "least_kept_word",
    "probabilities",
    "rows_of_head",
]


@triton.jit
def rows_of_head(ptr, image, head, rows, columns, L, D, strides):
    """Rows of one head, 0 outside: `[rows, columns]`."""
    base = ptr + image * strides[0] + head * strides[1]
    at = rows.to(tl.int64)[:, None] * strides[2] + columns[None, :] * strides[3]
    return tl.load(base + at, mask=(rows < L)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def kept(seed, sample, queries, first_key, threshold, BLOCK_N: tl.constexpr):
    """Which logits of `[queries, BLOCK_N keys]` dropout keeps: u ≥ p, tested on the words."""
    quads = first_key // 4 + tl.arange(0, BLOCK_N // 4)
    words = random_words(seed, quads[None, :], queries[:, None], sample, 1 << 16)
    return words >= threshold


@triton.jit
def probabilities(product, keep, queries, keys, log_sum, gain, L):
    """2^(logit − log_sum): 0 for keys that a query does not see."""
    logit = tl.where(keep, product * gain, 0.0)
    seen = (keys[None, :] < queries[:, None]) & (queries < L)[:, None]
    return tl.where(seen, tl.exp2(logit - log_sum[:, None]), 0.0)


def least_kept_word(dropout_p: float) -> int:
    """The smallest word that is kept: (word >> 9) + 0.5 ≥ 2²³ p in float32."""
    rounded = torch.tensor(dropout_p, dtype=torch.float32, device="cpu").item()
    return math.ceil(rounded * 2.0**23 - 0.5) << 9


def configuration_of(kernel: str, q: Tensor, v: Tensor) -> dict[str, int]:
    """The configuration of a kernel: wide heads leave fewer registers for a tile of logits."""
    wide = max(q.shape[3], v.shape[3]) * q.element_size() > 128
    return configuration(f"causal_attention_{kernel}{'_wide' if wide else ''}", q.device)


def compile_time(q: Tensor, v: Tensor) -> dict[str, Any]:
    """Compile-time arguments that the kernels share."""
    return {
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[3])),
        "BLOCK_DV": max(16, triton.next_power_of_2(v.shape[3])),
        "OPERAND": operand_type(q.dtype),
        "PRECISION": dot_precision(q.dtype, q.device),
    }
