"""Cases of `gated_residual`."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, like, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.gated_residual.op import gated_residual

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]


def _case(
    name: str,
    b: int,
    c: int,
    h: int,
    w: int,
    condition: str = "none",
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        hidden, x = randn(g, b, 2 * c, h, w, dtype=dtype), randn(g, b, c, h, w, dtype=dtype)
        size = {"none": None, "map": (h, w), "vector": (1, 1)}[condition]
        added = None if size is None else randn(g, b, 2 * c, *size, dtype=dtype)
        return hidden, x, added

    positions = (0, 1) if condition == "none" else (0, 1, 2)
    return Case(name, make, gradients=positions, batched=positions)


CASES = [
    _case("odd_sizes", 3, 5, 7, 3),
    _case("one_of_each", 1, 1, 1, 1),
    _case("no_images", 0, 4, 2, 2),
    _case("condition_map", 2, 6, 4, 5, "map"),
    _case("condition_vector", 2, 6, 4, 5, "vector"),
    _case("bfloat16", 2, 8, 4, 4, "map", torch.bfloat16),
    _case("float64", 2, 3, 4, 4, "vector", torch.float64),
    _case("no_positions", 2, 4, 0, 5, "vector"),
]


def _backward_case(case: Case) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        h, x, condition = case.make(g)
        return randn(g, *x.shape, dtype=x.dtype), h, condition

    return Case(case.name, make)


PRIVATE_CASES = {
    # The public operator's cases cover this one too.
    "gated_residual_fused": CASES[4:5],
    "gated_residual_backward": [_backward_case(case) for case in (*CASES[:5], CASES[-1])],
}

_H, _X = torch.zeros(2, 8, 3, 3), torch.zeros(2, 4, 3, 3)
ERRORS = [
    ErrorCase(
        "not_twice_the_channels",
        lambda: gated_residual(_X, _X),
        ValueError,
        "expected h [B, 2C, H, W] for x [B, C, H, W], got h [2, 4, 3, 3]",
    ),
    ErrorCase(
        "condition_of_another_size",
        lambda: gated_residual(_H, _X, torch.zeros(2, 8, 2, 2)),
        ValueError,
        "expected condition [2, 8, 3, 3] or [2, 8, 1, 1], got [2, 8, 2, 2]",
    ),
    ErrorCase(
        "integers",
        lambda: gated_residual(_H.long(), _X),
        TypeError,
        "expected h of a floating dtype",
    ),
    ErrorCase(
        "integer_condition",
        lambda: gated_residual(_H, _X, _H.long()),
        TypeError,
        "expected condition of a floating dtype, got [2, 8, 3, 3] int64",
    ),
    ErrorCase(
        "condition_elsewhere",
        lambda: gated_residual(_H, _X, _H.to("meta")),
        RuntimeError,
        "expected all tensors on one device, got h on cpu, x on cpu, condition on meta",
    ),
    ErrorCase(
        "array",
        lambda: gated_residual(_H.numpy(), _X),  # type: ignore[arg-type]
        TypeError,
        "expected h to be a tensor, got a numpy array: pass torch.from_numpy(h).",
    ),
    ErrorCase(
        "number_as_condition",
        lambda: gated_residual(_H, _X, 1.0),  # type: ignore[arg-type]
        TypeError,
        "expected condition to be a tensor, got a float.",
    ),
]

DERIVATIVES = {
    "gated_residual": (
        lambda h: ops.gated_residual(h, like(h, 1, len(h), 4, 3, 3), like(h, 2, len(h), 8, 1, 1)),
        values(0, 2, 8, 3, 3),
    ),
    "gated_residual_condition": (
        lambda c: ops.gated_residual(like(c, 1, 2, 8, 3, 3), like(c, 2, 2, 4, 3, 3), c),
        values(0, 2, 8, 3, 3),
    ),
}
