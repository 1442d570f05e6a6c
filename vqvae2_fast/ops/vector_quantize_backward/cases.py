"""Cases of `vector_quantize_backward`. It is not called by users: errors are its caller's."""

from __future__ import annotations

import torch

from vqvae2_fast.ops._cases import Case, ErrorCase, randn

__all__ = ["CASES", "ERRORS"]


def _case(name: str, n: int, d: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        name,
        lambda g: (
            randn(g, n, d, dtype=dtype),
            100 * torch.randn((), generator=g),
            randn(g, n, d, dtype=dtype),
            randn(g, n, d, dtype=dtype),
        ),
    )


CASES = [
    _case("odd_sizes", 37, 13),
    _case("several_parts", 900, 70),
    _case("one_of_each", 1, 1),
    _case("no_vectors", 0, 4),
    _case("bfloat16", 40, 16, torch.bfloat16),
    _case("float16", 40, 16, torch.float16),
    _case("float64", 25, 6, torch.float64),
]
ERRORS: list[ErrorCase] = []
