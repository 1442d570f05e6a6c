"""Cases of `code_cross_entropy`: sizes that do not fill a vector, one block and many blocks."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, like, randn, values
from vqvae2_fast.ops.code_cross_entropy.op import CODE_CROSS_ENTROPY, code_cross_entropy

__all__ = ["CASES", "ERRORS", "arguments"]


def arguments(
    g: torch.Generator,
    positions: int,
    codes: int,
    channels: int,
    *,
    spread: float = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    features = spread * randn(g, positions, channels, dtype=dtype)
    weight, bias = randn(g, codes, channels, dtype=dtype), randn(g, codes, dtype=dtype)
    return features, weight, bias, torch.randint(codes, (positions,), generator=g)


def _case(name: str, *sizes: int, loosening: float = 1.5, **options: Any) -> Case:
    # All results have the bound of gradients, because three of the four are gradients.
    return Case(name, lambda g: arguments(g, *sizes, **options), loosening=loosening)


CASES = [
    _case("one_position", 1, 5, 3),
    _case("one_code", 9, 1, 4),
    _case("whole_vectors", 96, 64, 32),
    _case("odd_sizes", 131, 77, 19),
    _case("fewer_positions_than_channels", 70, 20, 90),
    # On an Intel processor the reference is so exact here that 1.5 is passed by a hundredth.
    _case("many_codes", 70, 2100, 8, loosening=1.6),
    # Losses of thousands of nats, whose exponentials underflow in float32.
    _case("large_logits", 40, 33, 16, spread=1000),
    _case("float64", 7, 12, 5, dtype=torch.float64),
]


def _call_with_code(code: int) -> None:
    features, weight, bias, codes = arguments(torch.Generator().manual_seed(0), 4, 8, 3)
    codes[2] = code
    CODE_CROSS_ENTROPY(features, weight, bias, codes)


ERRORS = [
    ErrorCase("code_too_large", lambda: _call_with_code(8), RuntimeError, "codes in 0..7"),
    ErrorCase("code_negative", lambda: _call_with_code(-1), RuntimeError, "codes in 0..7"),
]

CODES = torch.randint(5, (18,), generator=torch.Generator().manual_seed(0))
DERIVATIVES = {
    "code_cross_entropy": (
        lambda x: code_cross_entropy(x, like(x, 1, 5, 4), like(x, 2, 5), CODES),
        values(0, 18, 4),
    ),
    "code_cross_entropy_weight": (
        lambda weight: code_cross_entropy(
            like(weight, 1, 18, 4), weight, like(weight, 2, 5), CODES
        ),
        values(0, 5, 4),
    ),
}
