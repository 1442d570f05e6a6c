"""Cases of `residual_code_statistics`."""

from __future__ import annotations

import torch

from helpers.cases import Case, ErrorCase, like, randn
from vqvae2_fast import ops
from vqvae2_fast.ops.residual_code_statistics.op import residual_code_statistics

__all__ = ["CASES", "ERRORS"]


def _case(
    name: str,
    n: int,
    q: int,
    k: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    *,
    unused: float = 0,
) -> Case:
    def make(g: torch.Generator) -> tuple[torch.Tensor, ...]:
        indices = torch.randint(k, (n, q), generator=g)
        indices[torch.rand(n, q, generator=g) < unused] = -1
        return randn(g, n, d, dtype=dtype), randn(g, q, k, d), indices

    return Case(name, make, exact=True)


def _cancelling(g: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Sums whose small terms are lost if accumulated in float32."""
    z = randn(g, 60, 4)
    rows = torch.cat([z * 1e6, -z * 1e6, z])
    indices = torch.randint(3, (60, 2), generator=g).repeat(3, 1)
    return rows, randn(g, 2, 3, 4), indices


CASES = [
    _case("odd_sizes", 41, 2, 5, 7),
    _case("several_slices", 20, 2, 3, 37),
    _case("inactive", 30, 3, 7, 16, unused=0.3),
    _case("no_vectors", 0, 2, 4, 3),
    Case("cancelling", _cancelling, exact=True),
    _case("float16", 20, 2, 5, 16, torch.float16, unused=0.3),
    _case("float64", 40, 2, 10, 16, torch.float64),
]


def _call(indices: torch.Tensor) -> object:
    return residual_code_statistics(torch.zeros(2, 3), torch.zeros(2, 4, 3), indices)


ERRORS = [
    ErrorCase(
        "index_too_large",
        lambda: _call(torch.tensor([[0, 1], [-1, 4]])),
        RuntimeError,
        "expected indices in -1..3, got another at row 1",
    ),
    ErrorCase(
        "shapes_differ",
        lambda: _call(torch.zeros(2, 3).long()),
        ValueError,
        "expected indices [2, 2] for z [2, 3] and codebooks [2, 4, 3], got [2, 3] int64",
    ),
    ErrorCase(
        "float_indices",
        lambda: _call(torch.zeros(2, 2)),
        TypeError,
        "expected indices int64, got [2, 2] float32",
    ),
    ErrorCase(
        "list_of_indices",
        lambda: _call([[0, 1], [1, 0]]),  # type: ignore[arg-type]
        TypeError,
        "expected indices to be a tensor, got a list: pass torch.tensor(",
    ),
]

CONSTANTS = {
    "residual_code_statistics": lambda z: ops.residual_code_statistics(
        z, like(z, 1, 2, 5, 6), torch.tensor([[0, 1], [1, 4], [1, -1], [4, 0]])
    )[1],
}
