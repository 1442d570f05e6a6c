"""`dropout_mask`: which entries of a matrix dropout keeps, as a function of seed and position."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._checks import check_number, check_seed, checked_integer
from vqvae2_fast.ops._registry import register
from vqvae2_fast.ops.gumbel_noise.op import PURPOSE_DROPOUT, random_words, uniform_from_words

__all__ = ["DROPOUT_MASK", "dropout_mask", "dropout_mask_reference"]


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


def _fake(
    seed: Tensor, num_samples: int, num_rows: int, num_columns: int, dropout_p: float
) -> Tensor:
    return seed.new_empty((num_samples, num_rows, num_columns), dtype=torch.bool)


DROPOUT_MASK = register(
    "dropout_mask",
    # SymInt, or a compiled graph would hold for one batch size.
    "(Tensor seed, SymInt num_samples, SymInt num_rows, SymInt num_columns, float dropout_p) "
    "-> Tensor",
    reference=dropout_mask_reference,
    fake=_fake,
    owners={"cpu": "cpu", "cuda": "triton"},
)


def dropout_mask(
    seed: Tensor, num_samples: int, num_rows: int, num_columns: int, dropout_p: float
) -> Tensor:
    """Bool `[samples, rows, columns]`, False with probability dropout_p.

    The uniform of entry (s, r, c) is Philox's for code c, position r, sample s, purpose 1, compared
    in float32: u ≥ dropout_p keeps the entry.

    Args:
        seed: int64 tensor, so that a compiled graph does not depend on its value; 0-d, or `[2]`:
            the seed, and the number of the first sample where these are a part of a batch.
        num_samples, num_rows, num_columns: Each at least 0.
        dropout_p: In [0, 1).

    Raises:
        ValueError: seed neither 0-d nor `[2]`, a size that is not an integer >= 0, or dropout_p not
            a number in [0, 1).
        TypeError: seed not int64.
    """
    check_seed(seed)
    num_samples = checked_integer("num_samples", num_samples, 0)
    num_rows = checked_integer("num_rows", num_rows, 0)
    num_columns = checked_integer("num_columns", num_columns, 0)
    check_number("dropout_p", dropout_p)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"expected dropout_p in [0, 1), got {dropout_p}.")
    return DROPOUT_MASK(seed, num_samples, num_rows, num_columns, dropout_p)
