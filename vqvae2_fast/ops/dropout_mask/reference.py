"""Reference of `dropout_mask`."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops.gumbel_noise.reference import (
    PURPOSE_DROPOUT,
    random_words,
    uniform_from_words,
)

__all__ = ["dropout_mask_reference"]


def dropout_mask_reference(
    seed: Tensor, num_samples: int, num_rows: int, num_columns: int, dropout_p: float
) -> Tensor:
    sample, row, column = (
        torch.arange(size, device=seed.device) for size in (num_samples, num_rows, num_columns)
    )
    if seed.dim():
        seed, first = seed.unbind()
        sample = first + sample
    words = random_words(
        column,
        row[:, None],
        sample[:, None, None],
        seed=seed,
        stream=0,
        purpose=PURPOSE_DROPOUT,
    )  # [samples, rows, columns]
    return uniform_from_words(words) >= dropout_p
