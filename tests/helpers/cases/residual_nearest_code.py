"""Cases of `residual_nearest_code`."""

from __future__ import annotations

import torch

from helpers.cases import Case, ErrorCase, like, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.residual_nearest_code.op import residual_nearest_code

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def _books(
    g: torch.Generator, q: int, k: int, d: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Codebooks that become finer, as residuals become shorter."""
    return torch.stack([randn(g, k, d) * 0.7**i for i in range(q)]).to(dtype)


def _case(
    name: str,
    n: int,
    q: int,
    k: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    *,
    rotate: bool = False,
) -> Case:
    return Case(
        name,
        lambda g: (randn(g, n, d, dtype=dtype), _books(g, q, k, d, dtype), rotate),
        gradients=(0,),
    )


CASES = [
    _case("odd_sizes", 21, 3, 19, 13),
    _case("rotate", 14, 2, 9, 20, rotate=True),
    _case("one_of_each", 1, 1, 1, 1),
    _case("no_vectors", 0, 3, 3, 4),
    _case("bfloat16", 11, 2, 10, 16, torch.bfloat16, rotate=True),
    _case("float64", 25, 2, 12, 6, torch.float64, rotate=True),
    Case(
        "few_rows_half_input_float_codebooks",
        lambda g: (randn(g, 5, 8, dtype=torch.float16), _books(g, 2, 10, 8)),
        gradients=(0,),
    ),
]


def _backward_case(
    name: str,
    n: int,
    q: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    *,
    rotate: bool = False,
) -> Case:
    def make(g: torch.Generator) -> tuple[object, ...]:
        dz_q, z = (randn(g, n, d, dtype=dtype) for _ in range(2))
        indices = torch.randint(5, (n, q), generator=g)
        return dz_q, 100 * randn(g, q), z, _books(g, q, 5, d), indices, rotate

    return Case(name, make)


PRIVATE_CASES = {
    "residual_nearest_code_backward": [
        _backward_case("odd_sizes", 13, 3, 13),
        _backward_case("rotate", 11, 2, 45, rotate=True),
        _backward_case("one_of_each", 1, 1, 1),
        _backward_case("no_vectors", 0, 2, 4),
        _backward_case("bfloat16", 9, 2, 16, torch.bfloat16, rotate=True),
        _backward_case("float64", 9, 2, 6, torch.float64),
    ]
}


def _call(z: tuple[int, ...], codebooks: tuple[int, ...], num_active: int | None = None) -> object:
    return residual_nearest_code(torch.zeros(z), torch.zeros(codebooks), num_active=num_active)


ERRORS = [
    ErrorCase(
        "dimensions_differ",
        lambda: _call((2, 3), (2, 4, 5)),
        ValueError,
        "expected z [..., D] with D=5",
    ),
    ErrorCase(
        "one_codebook",
        lambda: _call((2, 3), (4, 3)),
        ValueError,
        "expected codebooks [Q, K, D] with Q, K, D >= 1, got [4, 3]",
    ),
    ErrorCase(
        "no_quantisers",
        lambda: _call((2, 3), (0, 4, 3)),
        ValueError,
        "expected codebooks [Q, K, D] with Q, K, D >= 1, got [0, 4, 3]",
    ),
    ErrorCase(
        "none_active",
        lambda: _call((2, 3), (2, 4, 3), 0),
        ValueError,
        "expected num_active to be an integer from 1 to 2, got 0",
    ),
    ErrorCase(
        "list_of_codebooks",
        lambda: residual_nearest_code(torch.zeros(2, 3), [torch.zeros(4, 3)] * 2),  # type: ignore[arg-type]
        TypeError,
        "expected codebooks to be a tensor, got a list of tensors: pass torch.stack(codebooks).",
    ),
    ErrorCase(
        "array_of_vectors",
        lambda: residual_nearest_code(torch.zeros(2, 3).numpy(), torch.zeros(2, 4, 3)),  # type: ignore[arg-type]
        TypeError,
        "expected z to be a tensor, got a numpy array: pass torch.from_numpy(z).",
    ),
]

DERIVATIVES = {
    "residual_nearest_code": (
        lambda z: ops.residual_nearest_code(z, like(z, 1, 3, 5, 6))[0],
        values(0, 4, 6),
    ),
    "residual_nearest_code_rotated": (
        lambda z: ops.residual_nearest_code(z, like(z, 1, 3, 5, 6), rotate=True)[0],
        values(0, 4, 6),
    ),
    "residual_commitments": (
        lambda z: ops.residual_nearest_code(z, like(z, 1, 3, 5, 6))[2],
        values(0, 4, 6),
    ),
}
