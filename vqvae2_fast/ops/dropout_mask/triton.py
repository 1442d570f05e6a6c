"""`dropout_mask` in Triton: four columns per Philox counter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from vqvae2_fast.ops._triton import configuration, launch
from vqvae2_fast.ops._triton_noise import random_words, uniform, with_first_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["dropout_mask_triton", "examples"]


@triton.jit
def _dropout_mask_kernel(
    seed_ptr, mask_ptr, num_lines, num_rows, num_columns, dropout_p, BLOCK: tl.constexpr
):
    """mask[s, r, c] = u ≥ p, purpose 1; writes one byte per entry.

    Lines s·rows + r are counted with their columns padded to whole counters.
    """
    quads = (num_columns + 3) // 4
    counter = tl.program_id(0).to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    line = counter // quads
    sample = tl.load(seed_ptr + 1) + line // num_rows
    words = random_words(tl.load(seed_ptr), counter % quads, line % num_rows, sample, 1 << 16)
    keep = uniform(words) >= dropout_p
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    line = entry // (4 * quads)
    column = entry % (4 * quads)
    inside = (line < num_lines) & (column < num_columns)
    tl.store(mask_ptr + line * num_columns + column, keep.to(tl.uint8), mask=inside)


def dropout_mask_triton(
    seed: Tensor, num_samples: int, num_rows: int, num_columns: int, dropout_p: float
) -> Tensor:
    mask = seed.new_empty((num_samples, num_rows, num_columns), dtype=torch.bool)
    config = configuration("dropout_mask", seed.device)
    entries = num_samples * num_rows * 4 * triton.cdiv(num_columns, 4)
    launch(
        _dropout_mask_kernel,
        (triton.cdiv(entries, config["BLOCK"]),),
        with_first_sample(seed),
        mask.view(torch.uint8),
        num_samples * num_rows,
        num_rows,
        num_columns,
        float(dropout_p),
        **config,
    )
    return mask


def examples() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Calls that compile every variant that users meet."""
    yield dropout_mask_triton, (torch.tensor(1), 4, 1024, 1024, 0.1)
