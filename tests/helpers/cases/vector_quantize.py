"""Cases of `vector_quantize`."""

from __future__ import annotations

import torch

from helpers.cases import Case, ErrorCase, like, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.vector_quantize.op import vector_quantize

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def _case(name: str, n: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        name, lambda g: (randn(g, n, d, dtype=dtype), randn(g, k, d, dtype=dtype)), gradients=(0,)
    )


CASES = [
    _case("odd_sizes", 37, 21, 13),
    _case("one_of_each", 1, 1, 1),
    _case("no_vectors", 0, 3, 4),
    _case("bfloat16", 40, 20, 16, torch.bfloat16),
    _case("float64", 25, 12, 6, torch.float64),
    Case(
        "half_input_float_codebook",
        lambda g: (randn(g, 30, 8, dtype=torch.float16), randn(g, 10, 8)),
        gradients=(0,),
    ),
]


def _backward_case(name: str, n: int, d: int, dtype: torch.dtype = torch.float32) -> Case:
    def make(g: torch.Generator) -> tuple[torch.Tensor, ...]:
        dz_q, z, z_q = (randn(g, n, d, dtype=dtype) for _ in range(3))
        return dz_q, 100 * torch.randn((), generator=g), z, z_q

    return Case(name, make)


def _gathering_case(
    name: str,
    n: int,
    k: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    codes: torch.dtype | None = None,
) -> Case:
    def make(g: torch.Generator) -> tuple[torch.Tensor, ...]:
        dz_q, z = (randn(g, n, d, dtype=dtype) for _ in range(2))
        indices = torch.randint(k, (n,), generator=g)
        gain = 100 * torch.randn((), generator=g)
        return dz_q, gain, z, randn(g, k, d, dtype=codes or dtype), indices

    return Case(name, make)


PRIVATE_CASES = {
    "vector_quantize_backward": [
        _backward_case("odd_sizes", 37, 13),
        _backward_case("several_parts", 900, 70),
        _backward_case("one_of_each", 1, 1),
        _backward_case("no_vectors", 0, 4),
        _backward_case("bfloat16", 40, 16, torch.bfloat16),
        _backward_case("float16", 40, 16, torch.float16),
        _backward_case("float64", 25, 6, torch.float64),
        _gathering_case("codes_of_indices", 900, 5, 70),
        _gathering_case("bfloat16_codes_of_indices", 40, 3, 16, torch.bfloat16),
        _gathering_case("bfloat16_and_float32_codes", 40, 3, 16, torch.bfloat16, torch.float32),
        _gathering_case("float32_and_float16_codes", 40, 3, 16, torch.float32, torch.float16),
        _gathering_case("no_vectors_and_indices", 0, 3, 4),
    ]
}

ERRORS = [
    ErrorCase(
        "dimensions_differ",
        lambda: vector_quantize(torch.zeros(2, 3), torch.zeros(4, 5)),
        ValueError,
        "expected z [..., D] with D=5",
    ),
    ErrorCase(
        "empty_codebook",
        lambda: vector_quantize(torch.zeros(2, 3), torch.zeros(0, 3)),
        ValueError,
        "expected codebook [K, D] with K, D >= 1",
    ),
    ErrorCase(
        "list_of_vectors",
        lambda: vector_quantize([[0.0, 1.0]], torch.zeros(4, 2)),  # type: ignore[arg-type]
        TypeError,
        "expected z to be a tensor, got a list: pass torch.tensor(z).",
    ),
    ErrorCase(
        "no_codebook",
        lambda: vector_quantize(torch.zeros(2, 3), None),  # type: ignore[arg-type]
        TypeError,
        "expected codebook to be a tensor, got None.",
    ),
]

DERIVATIVES = {
    "vector_quantize": (lambda z: ops.vector_quantize(z, like(z, 1, 5, 6))[0], values(0, 4, 6)),
    "commitment": (lambda z: ops.vector_quantize(z, like(z, 1, 5, 6))[2], values(0, 4, 6)),
}
