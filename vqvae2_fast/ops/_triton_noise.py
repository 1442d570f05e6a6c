"""Counter-based noise inside Triton kernels: the words, uniforms and logarithm of the reference.

Kernels that call `fixed_log` are launched with `enable_fp_fusion=False`: a contracted
multiply-add would change its bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["fixed_log", "random_words", "uniform", "with_first_sample"]


def with_first_sample(seed: torch.Tensor) -> torch.Tensor:
    """A seed of dropout as int64 `[2]`: the seed itself and the number of the first sample."""
    return seed.contiguous() if seed.dim() else torch.stack([seed, torch.zeros_like(seed)])


@triton.jit
def random_words(seed, quad, position, sample, last):
    """The words of codes 4·quad to 4·quad + 3, in order, along the last dimension.

    Args:
        seed: int64.
        quad: Code >> 2, `[..., n]`.
        position, sample: Broadcastable to quad.
        last: Stream | purpose << 16.

    Returns:
        uint32, `[..., 4n]`.
    """
    zero = quad * 0
    c0 = quad.to(tl.uint32)
    c1 = (position + zero).to(tl.uint32)
    c2 = (sample + zero).to(tl.uint32)
    c3 = (last + zero).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def uniform(words):
    """Float32 in (0, 1): ((word >> 9) + 0.5) · 2⁻²³."""
    return ((words >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def fixed_log(x):
    """The logarithm of `gumbel_noise/op.py`, bit for bit."""
    shifted = x.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    polynomial = f * 7.0376836292e-2 + -1.1514610310e-1
    polynomial = polynomial * f + 1.1676998740e-1
    polynomial = polynomial * f + -1.2420140846e-1
    polynomial = polynomial * f + 1.4249322787e-1
    polynomial = polynomial * f + -1.6668057665e-1
    polynomial = polynomial * f + 2.0000714765e-1
    polynomial = polynomial * f + -2.4999993993e-1
    polynomial = polynomial * f + 3.3333331174e-1
    tail = polynomial * f * square
    tail = tail + exponent * -2.12194440e-4
    tail = tail - square * 0.5
    return (f + tail) + exponent * 0.693359375
