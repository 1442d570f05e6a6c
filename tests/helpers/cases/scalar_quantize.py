"""Cases of `scalar_quantize`: every kind of grid, sizes that fill no vector of lanes, extremes."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.scalar_quantize.op import scalar_quantize

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def _case(
    name: str,
    n: int,
    levels: list[int],
    symmetric: bool = False,
    hard: bool = False,
    *,
    int32: bool = False,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        z = scale * randn(g, n, len(levels), dtype=dtype)
        return z, levels, symmetric, hard, int32

    return Case(name, make, gradients=(0,), batched=(0,))


def _edges(g: torch.Generator) -> tuple[Any, ...]:
    """Values of the hard symmetric grid, both ends of the clamp, and what it clamps."""
    numbers = [-1.0, 1.0, -1.5, 1.5, 0.0, -0.0, 0.5, float("inf"), -float("inf")]
    return torch.tensor(numbers).repeat(2)[:, None].repeat(1, 3), [5, 3, 2], True, True, False


def _every_value(levels: list[int], symmetric: bool) -> Case:
    """Numbers that round to each value of each level; most widths divide no power of two."""

    def make(_: torch.Generator) -> tuple[Any, ...]:
        n = max(levels)
        columns = []
        for size in levels:
            digits = torch.arange(size, dtype=torch.float32)
            half = (size - 1) / 2
            column = digits / half - 1 if symmetric else (digits - size // 2) / (size // 2)
            columns.append(column.repeat(n)[:n])
        return torch.stack(columns, dim=1), levels, symmetric, True, False

    name = "every_value_symmetric" if symmetric else "every_value"
    return Case(name, make, batched=(0,), exact=True)


def _not_a_number(g: torch.Generator) -> tuple[Any, ...]:
    z = randn(g, 9, 3)
    z[::2, 1] = float("nan")
    return z, [8, 5, 4], False, False, False


CASES = [
    _case("paper", 70, [8, 5, 5, 5]),
    _case("five_numbers", 67, [7, 5, 4, 3, 6]),
    _case("symmetric", 33, [2, 3, 8], symmetric=True),
    _case("hard", 33, [4, 3, 8], hard=True),
    _case("hard_symmetric", 65, [2, 5, 4, 9], symmetric=True, hard=True),
    _case("one_number", 19, [6], int32=True),
    _case("more_codes_than_float32_counts", 9, [4096, 8, 4096, 5], hard=True, int32=True),
    _case("more_codes_than_int32_counts", 9, [4000, 5, 4000, 2000], symmetric=True, hard=True),
    _case("no_vectors", 0, [8, 5]),
    _case("more_numbers_than_lanes", 3, [3] * 37),
    _case("far_out", 21, [1200, 5, 4], scale=50),
    Case("edges", _edges, batched=(0,), exact=True),
    _every_value([8, 7, 14], symmetric=False),
    _every_value([8, 7, 11], symmetric=True),
    Case("not_a_number", _not_a_number, batched=(0,), exact=True, has_nan=True),
    _case("float64", 12, [8, 5, 4], dtype=torch.float64),
    _case("bfloat16", 40, [300, 5, 4], dtype=torch.bfloat16),
    _case("float16", 40, [8, 5, 2], symmetric=True, hard=True, dtype=torch.float16),
    _case("too_many_values", 5, [2**23, 3]),
]


def _backward_case(case: Case) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        z, *grid, _ = case.make(g)
        return (randn(g, *z.shape, dtype=z.dtype), z, *grid)

    return Case(case.name, make)


PRIVATE_CASES = {
    "scalar_quantize_backward": [_backward_case(case) for case in CASES if not case.has_nan]
}

_Z = torch.zeros(4, 3)
ERRORS = [
    ErrorCase(
        "another_number_of_levels",
        lambda: scalar_quantize(_Z, [8, 5]),
        ValueError,
        "expected z [..., d] for d levels >= 2, here [8, 5], got z [4, 3]",
    ),
    ErrorCase(
        "a_level_of_one_value",
        lambda: scalar_quantize(_Z, [8, 5, 1]),
        ValueError,
        "levels >= 2, here [8, 5, 1]",
    ),
    ErrorCase(
        "integers",
        lambda: scalar_quantize(_Z.long(), [8, 5, 5]),
        TypeError,
        "expected z of a floating dtype",
    ),
    ErrorCase(
        "list_of_vectors",
        lambda: scalar_quantize([[0.0]], [8]),  # type: ignore[arg-type]
        TypeError,
        "expected z to be a tensor, got a list: pass torch.tensor(z).",
    ),
    ErrorCase(
        "a_fraction_of_levels",
        lambda: scalar_quantize(_Z, [8, 8, 8.0]),  # type: ignore[list-item]
        ValueError,
        "expected levels to be a list of integers, got [8, 8, 8.0].",
    ),
    ErrorCase(
        "tensor_of_levels",
        lambda: scalar_quantize(_Z, torch.tensor([8, 8, 8])),  # type: ignore[arg-type]
        ValueError,
        "expected levels to be a list of integers, got a tensor: pass levels.tolist().",
    ),
    ErrorCase(
        "one_number_of_levels",
        lambda: scalar_quantize(_Z, 8),  # type: ignore[arg-type]
        ValueError,
        "expected levels to be a list of integers, got 8.",
    ),
    ErrorCase(
        "text_as_levels",
        lambda: scalar_quantize(_Z, "888"),  # type: ignore[arg-type]
        ValueError,
        "expected levels to be a list of integers, got '888'.",
    ),
]

DERIVATIVES = {
    "scalar_quantize": (lambda z: ops.scalar_quantize(z, [8, 5, 4])[0], values(0, 4, 3)),
    "scalar_quantize_hard": (
        lambda z: ops.scalar_quantize(z, [8, 5, 2], True, True)[0],
        values(0, 4, 3),
    ),
}
