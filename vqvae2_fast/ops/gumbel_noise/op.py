"""`gumbel_noise`: the noise of a draw, a function of seed, sample, position and code."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops import _native
from vqvae2_fast.ops._checks import check_int64, check_same_device, checked_integer, described
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.gumbel_noise.reference import gumbel_noise_reference

__all__ = ["GUMBEL_NOISE", "gumbel_noise"]


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
    check_int64(samples=samples, positions=positions)
    for name, tensor in (("samples", samples), ("positions", positions)):
        if tensor.dim() != 1:
            raise ValueError(f"expected {name} 1-d, got {described(tensor)}.")
    check_same_device(samples=samples, positions=positions)
    num_embeddings = checked_integer("num_embeddings", num_embeddings, 1)
    stream = checked_integer("stream", stream, 0, (1 << 16) - 1)
    seed = checked_integer("seed", seed, -(1 << 63), (1 << 64) - 1)
    signed_seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return GUMBEL_NOISE(samples, positions, num_embeddings, signed_seed, stream)
