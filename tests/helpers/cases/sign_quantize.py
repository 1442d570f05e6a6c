"""Cases of `sign_quantize`: sizes that fill no vector of lanes, zeros, all bits of an index."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, randn
from vqvae2_fast import ops
from vqvae2_fast.ops.sign_quantize.op import sign_quantize

__all__ = ["CASES", "ERRORS"]


def _case(name: str, n: int, d: int, dtype: torch.dtype = torch.float32) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        return randn(g, n, d, dtype=dtype), 0.3

    return Case(name, make, batched=(0,), exact=True)


def _edges(g: torch.Generator) -> tuple[Any, ...]:
    numbers = [0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf"), float("nan")]
    return torch.tensor(numbers).repeat(3)[:, None], 1.0


CASES = [
    _case("ten_bits", 67, 10),
    _case("one_bit", 19, 1),
    _case("most_bits", 5, 63),
    _case("no_vectors", 0, 4),
    Case("edges", _edges, batched=(0,), exact=True),
    _case("float64", 12, 9, torch.float64),
]

ERRORS = [
    ErrorCase(
        "too_many_bits",
        lambda: sign_quantize(torch.zeros(2, 64)),
        ValueError,
        "expected z [..., d] with d from 1 to 63, got z [2, 64]",
    ),
    ErrorCase(
        "integers",
        lambda: sign_quantize(torch.zeros(2, 4).long()),
        TypeError,
        "expected z of a floating dtype",
    ),
    ErrorCase(
        "list_of_vectors",
        lambda: sign_quantize([[0.0]]),  # type: ignore[arg-type]
        TypeError,
        "expected z to be a tensor, got a list: pass torch.tensor(z).",
    ),
    ErrorCase(
        "no_scale",
        lambda: sign_quantize(torch.zeros(2, 4), 0),
        ValueError,
        "expected scale from 1.18e-38 to 3.4e+38, the range of float32, got 0.",
    ),
    ErrorCase(
        "negative_scale",
        lambda: sign_quantize(torch.zeros(2, 4), -1.0),
        ValueError,
        "expected scale from 1.18e-38 to 3.4e+38, the range of float32, got -1.0.",
    ),
    ErrorCase(
        "scale_not_a_number",
        lambda: sign_quantize(torch.zeros(2, 4), float("nan")),
        ValueError,
        "the range of float32, got nan.",
    ),
    ErrorCase(
        "scale_beyond_the_dtype",
        lambda: sign_quantize(torch.zeros(2, 4), 1e39),
        ValueError,
        "the range of float32, got 1e+39.",
    ),
    ErrorCase(
        "text_as_scale",
        lambda: sign_quantize(torch.zeros(2, 4), "a"),  # type: ignore[arg-type]
        ValueError,
        "expected scale to be a number, got 'a'.",
    ),
]

CONSTANTS = {"sign_quantize": lambda z: ops.sign_quantize(z, 0.5)[0]}
