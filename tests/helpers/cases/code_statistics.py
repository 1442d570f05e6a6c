"""Cases of `code_statistics`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.cases import Case, ErrorCase, randn
from vqvae2_fast import ops
from vqvae2_fast.ops.code_statistics.op import code_statistics

__all__ = ["CASES", "ERRORS"]

Maker = Callable[[torch.Generator], tuple[Tensor, Tensor, int]]


def _random(n: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> Maker:
    def make(g: torch.Generator) -> tuple[Tensor, Tensor, int]:
        return randn(g, n, d, dtype=dtype), torch.randint(k, (n,), generator=g), k

    return make


def _one_code_takes_all(g: torch.Generator) -> tuple[Tensor, Tensor, int]:
    return randn(g, 2000, 5), torch.full((2000,), 3), 9


def _cancelling(g: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Sums whose small terms are lost if accumulated in float32."""
    z = randn(g, 400, 4)
    return torch.cat([z * 1e6, -z * 1e6, z]), torch.randint(3, (400,), generator=g).repeat(3), 3


CASES = [
    Case("odd_sizes", _random(301, 23, 7), exact=True),
    Case("unused_codes", _random(5, 64, 8), exact=True),
    Case("no_vectors", _random(0, 4, 3), exact=True),
    Case("one_code_takes_all", _one_code_takes_all, exact=True),
    Case("cancelling", _cancelling, exact=True),
    Case("bfloat16", _random(90, 10, 16, torch.bfloat16), exact=True),
    Case("float16", _random(90, 10, 16, torch.float16), exact=True),
    Case("float64", _random(90, 10, 16, torch.float64), exact=True),
]

ERRORS = [
    ErrorCase(
        "index_too_large",
        lambda: code_statistics(torch.zeros(2, 3), torch.tensor([0, 4]), 4),
        RuntimeError,
        "expected indices in 0..3, got 4 at row 1",
    ),
    ErrorCase(
        "negative_index",
        lambda: code_statistics(torch.zeros(2, 3), torch.tensor([-1, 0]), 4),
        RuntimeError,
        "expected indices in 0..3, got -1 at row 0",
    ),
    ErrorCase(
        "shapes_differ",
        lambda: code_statistics(torch.zeros(2, 3), torch.zeros(3).long(), 4),
        ValueError,
        "expected indices [2] for z [2, 3], got [3] int64",
    ),
    ErrorCase(
        "float_indices",
        lambda: code_statistics(torch.zeros(2, 3), torch.zeros(2), 4),
        TypeError,
        "expected indices int64, got [2] float32",
    ),
    ErrorCase(
        "no_dimensions",
        lambda: code_statistics(torch.zeros(5, 0), torch.zeros(5).long(), 4),
        ValueError,
        "expected z [..., D] with D >= 1, got [5, 0] float32",
    ),
    ErrorCase(
        "no_codes",
        lambda: code_statistics(torch.zeros(2, 3), torch.zeros(2).long(), 0),
        ValueError,
        "expected num_embeddings to be an integer >= 1, got 0",
    ),
    ErrorCase(
        "list_of_indices",
        lambda: code_statistics(torch.zeros(2, 3), [0, 1], 4),  # type: ignore[arg-type]
        TypeError,
        "expected indices to be a tensor, got a list: pass torch.tensor(indices).",
    ),
    ErrorCase(
        "fraction_of_codes",
        lambda: code_statistics(torch.zeros(2, 3), torch.zeros(2).long(), 32.0),  # type: ignore[arg-type]
        ValueError,
        "expected num_embeddings to be an integer >= 1, got 32.0.",
    ),
    ErrorCase(
        "text_as_number_of_codes",
        lambda: code_statistics(torch.zeros(2, 3), torch.zeros(2).long(), "32"),  # type: ignore[arg-type]
        ValueError,
        "expected num_embeddings to be an integer >= 1, got '32'.",
    ),
]

CONSTANTS = {
    "code_statistics": lambda z: ops.code_statistics(z, torch.tensor([0, 1, 1, 4]), 5)[1],
}
