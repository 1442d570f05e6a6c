"""`gumbel_noise`: the noise of a draw, a function of seed, sample, position and code.

Every backend computes the same words from (seed, position, sample, stream, purpose), by
Philox4x32-10, and the same floats from the words: the logarithm is one fixed polynomial in float32
with separate multiply and add, because library logarithms differ between backends in a fifth of all
values.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from vqvae2_fast.ops import _native
from vqvae2_fast.ops._checks import check_int64, check_same_device, checked_integer, described
from vqvae2_fast.ops._registry import register

__all__ = [
    "GUMBEL_NOISE",
    "PURPOSE_AUGMENT",
    "PURPOSE_CANDIDATE",
    "PURPOSE_DRAW",
    "PURPOSE_DROPOUT",
    "PURPOSE_RESTART",
    "fixed_log",
    "gumbel_from_words",
    "gumbel_noise",
    "gumbel_noise_reference",
    "philox4x32",
    "random_word",
    "random_words",
    "uniform_from_words",
]

PURPOSE_DRAW, PURPOSE_DROPOUT, PURPOSE_RESTART = 0, 1, 2
PURPOSE_AUGMENT, PURPOSE_CANDIDATE = 3, 4

_Word = TypeVar("_Word", int, Tensor)

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# log(1 + f) ≈ f − f²/2 + f³·P(f) for 1 + f in [√½, √2): P of the Cephes library's logf.
_LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
# log 2 in two parts. The first has few bits, so that its product with an exponent is exact.
_LOG2_HIGH, _LOG2_LOW = 0.693359375, -2.12194440e-4
_SQRT_HALF_BITS = 0x3F3504F3


def _multiply_high_low(a: int, b: _Word) -> tuple[_Word, _Word]:
    """High and low word of the 64-bit product of two 32-bit words, of tensors held in int64.

    It is computed in two halves, because the whole product would overflow int64.
    """
    low_part = a * (b & 0xFFFF)  # < 2^48
    high_part = a * (b >> 16) + (low_part >> 16)  # < 2^49
    return (high_part >> 16) & _MASK32, ((high_part << 16) | (low_part & 0xFFFF)) & _MASK32


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Counter and key words are 32-bit values in int64; counters broadcast. Returns four words.
    """
    return _philox_rounds(torch.broadcast_tensors(*counter), key)


def _philox_rounds(
    counter: tuple[_Word, _Word, _Word, _Word], key: tuple[int | _Word, int | _Word]
) -> tuple[_Word, _Word, _Word, _Word]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high_low(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply_high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def random_words(
    index: Tensor,
    position: Tensor,
    sample: Tensor,
    *,
    seed: int | Tensor,
    stream: int,
    purpose: int,
) -> Tensor:
    """The 32-bit word, in int64, of (seed, stream, purpose, sample, position, index).

    The three tensors are int64 and broadcast. Key: low and high word of the seed. Counter:
    (index >> 2, position, sample, stream | purpose << 16), of position and sample the low words;
    word index & 3 of the result.
    """
    if isinstance(seed, int):
        seed &= (1 << 64) - 1
    key = (seed & _MASK32, (seed >> 32) & _MASK32)
    position, sample = position & _MASK32, sample & _MASK32
    last = torch.full_like(position, (stream & 0xFFFF) | purpose << 16)
    words = torch.stack(philox4x32((index >> 2, position, sample, last), key), dim=-1)
    return words.gather(-1, (index & 3).expand(words.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def random_word(*, seed: int, stream: int, purpose: int) -> int:
    """The word of `random_words` for index, position and sample 0, computed without a tensor."""
    seed &= (1 << 64) - 1
    counter = (0, 0, 0, (stream & 0xFFFF) | purpose << 16)
    return _philox_rounds(counter, (seed & _MASK32, seed >> 32))[0]


def uniform_from_words(words: Tensor) -> Tensor:
    """Float32 in (0, 1): ((word >> 9) + 0.5) · 2^-23, exact, never 0 or 1."""
    return ((words >> 9).float() + 0.5) * 2.0**-23


def fixed_log(x: Tensor) -> Tensor:
    """Natural logarithm of normal positive float32 values, the same bits in every backend."""
    bits = x.view(torch.int32) - _SQRT_HALF_BITS
    exponent = (bits >> 23).float()
    f = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32) - 1.0
    square = f * f
    polynomial = torch.full_like(f, _LOG_COEFFICIENTS[0])
    for coefficient in _LOG_COEFFICIENTS[1:]:
        polynomial = polynomial * f + coefficient
    tail = polynomial * f * square
    tail = tail + exponent * _LOG2_LOW
    tail = tail - square * 0.5
    return (f + tail) + exponent * _LOG2_HIGH


def gumbel_from_words(words: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, of 32-bit words."""
    return -fixed_log(-fixed_log(uniform_from_words(words)))


def gumbel_noise_reference(
    samples: Tensor, positions: Tensor, num_embeddings: int, seed: int, stream: int
) -> Tensor:
    codes = torch.arange(num_embeddings, device=samples.device)  # [K]
    words = random_words(
        codes,
        positions[:, None],
        samples[:, None, None],
        seed=seed,
        stream=stream,
        purpose=PURPOSE_DRAW,
    )  # [B, P, K]
    return gumbel_from_words(words)


def _fake(
    samples: Tensor, positions: Tensor, num_embeddings: int, seed: int, stream: int
) -> Tensor:
    shape = (samples.shape[0], positions.shape[0], num_embeddings)
    return samples.new_empty(shape, dtype=torch.float32)


GUMBEL_NOISE = register(
    "gumbel_noise",
    "(Tensor samples, Tensor positions, int num_embeddings, int seed, int stream) -> Tensor",
    reference=gumbel_noise_reference,
    fake=_fake,
    # A compiled module that was built with nvcc has a CUDA C++ kernel.
    owners={"cpu": "cpu", "cuda": "cuda" if _native.build_info().get("cuda") else "triton"},
    triton=True,
)


def gumbel_noise(
    samples: Tensor, positions: Tensor, num_embeddings: int, *, seed: int = 0, stream: int = 0
) -> Tensor:
    """Standard Gumbel noise, bit-equal in every backend and for every batch.

    Philox4x32-10 with key = seed and counter = (code >> 2, position, sample, stream), then
    −log(−log u) with a fixed polynomial logarithm. The argmax of logits plus this noise is a draw
    from their softmax.

    Args:
        samples: Sample numbers, int64 `[B]`, in 0..2³²−1; others count modulo 2³².
        positions: Raster positions row·W + column, int64 `[P]`, likewise.
        num_embeddings: K.
        seed: Any integer of 64 bits.
        stream: The noise stream, below 2¹⁶: the number of the level, 0 for the coarsest.

    Returns:
        float32 `[B, P, K]`.

    Raises:
        ValueError: Shapes that do not fit, or num_embeddings, a stream or a seed that is not an
            integer or out of range.
        TypeError: samples or positions not an int64 tensor.
        RuntimeError: Tensors on different devices.
    """
    check_int64("samples", samples)
    check_int64("positions", positions)
    for name, tensor in (("samples", samples), ("positions", positions)):
        if tensor.dim() != 1:
            raise ValueError(f"expected {name} 1-d, got {described(tensor)}.")
    check_same_device(samples=samples, positions=positions)
    num_embeddings = checked_integer("num_embeddings", num_embeddings, 1)
    stream = checked_integer("stream", stream, 0, (1 << 16) - 1)
    seed = checked_integer("seed", seed, -(1 << 63), (1 << 64) - 1)
    signed_seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return GUMBEL_NOISE(samples, positions, num_embeddings, signed_seed, stream)
