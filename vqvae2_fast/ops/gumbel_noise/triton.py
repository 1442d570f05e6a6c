"""`gumbel_noise` in Triton: four codes per Philox counter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops._triton_noise import fixed_log, random_words, uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["examples", "gumbel_noise_triton"]


@triton.jit(do_not_specialize=["seed", "stream"])
def _gumbel_noise_kernel(
    samples_ptr,
    positions_ptr,
    noise_ptr,
    sample_stride,
    position_stride,
    num_rows,
    P,
    K,
    seed,
    stream,
    BLOCK: tl.constexpr,
):
    """noise[b, p, k] = −log(−log u); writes 4 bytes per code and reads almost nothing.

    Rows b·P + p are counted with their codes padded to whole counters.
    """
    quads = (K + 3) // 4
    counter = tl.program_id(0).to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    row = counter // quads
    sample = tl.load(samples_ptr + row // P * sample_stride, mask=row < num_rows, other=0)
    position = tl.load(positions_ptr + row % P * position_stride, mask=row < num_rows, other=0)
    words = random_words(seed.to(tl.int64), counter % quads, position, sample, stream)
    noise = 0.0 - fixed_log(0.0 - fixed_log(uniform(words)))
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = entry // (4 * quads)
    k = entry % (4 * quads)
    tl.store(noise_ptr + row * K + k, noise, mask=(row < num_rows) & (k < K))


def gumbel_noise_triton(
    samples: Tensor, positions: Tensor, num_embeddings: int, seed: int, stream: int
) -> Tensor:
    batch, length = len(samples), len(positions)
    noise = samples.new_empty((batch, length, num_embeddings), dtype=torch.float32)
    config = configuration("gumbel_noise", samples.device)
    entries = batch * length * 4 * triton.cdiv(num_embeddings, 4)
    launch(
        _gumbel_noise_kernel,
        (triton.cdiv(entries, config["BLOCK"]),),
        samples,
        positions,
        noise,
        samples.stride(0),
        positions.stride(0),
        batch * length,
        length,
        num_embeddings,
        seed,
        stream,
        enable_fp_fusion=False,
        **config,
    )
    return noise


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    numbers = torch.arange(32)
    yield gumbel_noise_triton, (numbers, numbers, 512, 1 << 40, 1)
