"""Cases of `dropout_mask`."""

from __future__ import annotations

import torch

from helpers.cases import Case, ErrorCase
from vqvae2_fast.ops.dropout_mask.op import dropout_mask

__all__ = ["CASES", "ERRORS"]


def _case(
    name: str,
    samples: int,
    rows: int,
    columns: int,
    dropout_p: float,
    seed: int | tuple[int, int] = 3,
) -> Case:
    def make(_: torch.Generator) -> tuple[object, ...]:
        return torch.tensor(seed), samples, rows, columns, dropout_p

    return Case(name, make, exact=True)


CASES = [
    _case("odd_sizes", 3, 5, 77, 0.3),
    _case("nothing_dropped", 2, 2, 9, 0.0),
    _case("no_columns", 2, 2, 0, 0.5),
    _case("negative_seed", 1, 4, 300, 0.9, seed=-5),
    _case("part_of_a_batch", 2, 3, 9, 0.4, seed=(3, 5)),
]

ERRORS = [
    ErrorCase(
        "number_as_seed",
        lambda: dropout_mask(3, 1, 1, 1, 0.1),  # type: ignore[arg-type]
        TypeError,
        "expected seed to be an int64 tensor, got 3: pass torch.tensor(seed)",
    ),
    ErrorCase(
        "float_seed",
        lambda: dropout_mask(torch.tensor(0.5), 1, 1, 1, 0.1),
        TypeError,
        "expected seed int64, got [] float32",
    ),
    ErrorCase(
        "seed_not_a_scalar",
        lambda: dropout_mask(torch.zeros(1).long(), 1, 1, 1, 0.1),
        ValueError,
        "expected seed 0-d or [2], got [1]",
    ),
    ErrorCase(
        "fewer_than_no_samples",
        lambda: dropout_mask(torch.tensor(0), -1, 1, 1, 0.1),
        ValueError,
        "expected num_samples to be an integer >= 0, got -1",
    ),
    ErrorCase(
        "dropout_of_one",
        lambda: dropout_mask(torch.tensor(0), 1, 1, 1, 1.0),
        ValueError,
        "expected dropout_p in [0, 1), got 1.0",
    ),
    ErrorCase(
        "text_as_dropout",
        lambda: dropout_mask(torch.tensor(0), 1, 1, 1, "2"),  # type: ignore[arg-type]
        ValueError,
        "expected dropout_p to be a number, got '2'.",
    ),
    ErrorCase(
        "fraction_of_columns",
        lambda: dropout_mask(torch.tensor(0), 1, 1, 2.0, 0.1),  # type: ignore[arg-type]
        ValueError,
        "expected num_columns to be an integer >= 0, got 2.0.",
    ),
]
