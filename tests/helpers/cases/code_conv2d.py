"""Cases of `code_conv2d`: taps above, to the left, all around and off the map."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, ErrorCase, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.code_conv2d.op import code_conv2d

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES"]

_STEM = [-2, -1, -2, 0, -2, 1, -1, -1, -1, 0, -1, 1, 0, -2, 0, -1]
_AROUND = [-1, -1, -1, 0, -1, 1, 0, -1, 0, 0, 0, 1, 1, -1, 1, 0, 1, 1]


def _case(
    name: str,
    batch: int,
    size: tuple[int, int],
    num_embeddings: int,
    channels: int,
    offsets: list[int],
    *,
    one_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        codes = torch.randint(num_embeddings, (batch, *size), generator=g)
        if one_code:
            codes.fill_(num_embeddings - 1)
        table = randn(g, len(offsets) // 2, num_embeddings, channels, dtype=dtype)
        return codes, table, offsets

    return Case(name, make, gradients=(1,), batched=(0,))


CASES = [
    _case("stem", 2, (5, 7), 11, 19, _STEM),
    _case("around", 3, (4, 5), 6, 8, _AROUND),
    _case("one_code_takes_all", 2, (6, 5), 4, 5, _STEM, one_code=True),
    _case("no_images", 0, (3, 3), 4, 4, _STEM),
    _case("smaller_than_the_kernel", 1, (1, 2), 3, 4, _STEM),
    _case("one_tap_off_the_map", 1, (3, 3), 3, 4, [-5, 0]),
    _case("bfloat16", 2, (4, 4), 5, 16, _STEM, dtype=torch.bfloat16),
    _case("float64", 1, (4, 4), 5, 6, _AROUND, dtype=torch.float64),
]


def _backward_case(case: Case) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        codes, table, offsets = case.make(g)
        dout = randn(g, len(codes), table.shape[2], *codes.shape[1:], dtype=table.dtype)
        return dout, codes, table.shape[1], offsets

    return Case(case.name, make)


PRIVATE_CASES = {
    # The public operator's cases cover this one too.
    "code_conv2d_fused": CASES[:1],
    "code_conv2d_backward": [_backward_case(case) for case in CASES[:6]],
}

_CODES, _TABLE = torch.zeros(1, 3, 3, dtype=torch.int64), torch.zeros(2, 4, 5)
ERRORS = [
    ErrorCase(
        "float_codes",
        lambda: code_conv2d(_CODES.float(), _TABLE, [(0, 0), (0, 1)]),
        TypeError,
        "expected codes int64, got [1, 3, 3] float32",
    ),
    ErrorCase(
        "no_batch",
        lambda: code_conv2d(_CODES[0], _TABLE, [(0, 0), (0, 1)]),
        ValueError,
        "expected codes [B, H, W], got [3, 3]",
    ),
    ErrorCase(
        "another_number_of_taps",
        lambda: code_conv2d(_CODES, _TABLE, [(0, 0)]),
        ValueError,
        "expected table [T, K, C] with T=1 as offsets, at least 1, got [2",
    ),
    ErrorCase(
        "no_taps",
        lambda: code_conv2d(_CODES, _TABLE[:0], []),
        ValueError,
        "expected table [T, K, C] with T=0 as offsets, at least 1",
    ),
    ErrorCase(
        "offsets_that_are_not_pairs",
        lambda: code_conv2d(_CODES, _TABLE, [(0, 0, 1), (1,)]),  # type: ignore[list-item]
        ValueError,
        "expected offsets as (row, column) of each tap, got [(0, 0, 1), (1,)]",
    ),
    ErrorCase(
        "integer_table",
        lambda: code_conv2d(_CODES, _CODES, [(0, 0)]),
        TypeError,
        "expected table of a floating dtype",
    ),
    ErrorCase(
        "list_of_codes",
        lambda: code_conv2d([[[0]]], _TABLE, [(0, 0), (0, 1)]),  # type: ignore[arg-type]
        TypeError,
        "expected codes to be a tensor, got a list: pass torch.tensor(codes).",
    ),
    ErrorCase(
        "numbers_as_offsets",
        lambda: code_conv2d(_CODES, _TABLE, [1, 2, 3]),  # type: ignore[list-item]
        ValueError,
        "expected offsets as (row, column) of each tap, got [1, 2, 3].",
    ),
    ErrorCase(
        "fractions_as_offsets",
        lambda: code_conv2d(_CODES, _TABLE, [(0, 0), (0, 0.5)]),  # type: ignore[list-item]
        ValueError,
        "expected offsets to be a list of integers, got [0, 0, 0, 0.5].",
    ),
]

CODES = torch.randint(5, (2, 3, 3), generator=torch.Generator().manual_seed(0))
DERIVATIVES = {
    "code_conv2d": (
        lambda table: ops.code_conv2d(CODES, table, [(0, -1), (-1, 0), (-1, 1)]),
        values(0, 3, 5, 2),
    ),
}
