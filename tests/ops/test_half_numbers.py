"""How CPU kernels read and round numbers of 16 bits, against PyTorch's conversions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import simd_level, simd_levels
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.ops.vector_quantize.op import VECTOR_QUANTIZE_BACKWARD

pytestmark = [
    pytest.mark.parametrize("level", simd_levels()),
    pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16]),
]


def every_number(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def in_rows(numbers: Tensor) -> Tensor:
    """Rows of 61 numbers, so that kernels read vectors and what is left after them."""
    return F.pad(numbers, (0, -len(numbers) % 61)).view(-1, 61)


def test_every_number_is_read_exactly(level, dtype):
    numbers = in_rows(every_number(dtype))
    with simd_level(level):
        _, sums = ops.code_statistics(numbers, torch.arange(len(numbers)), len(numbers))
    assert torch.equal(sums.nan_to_num(1.5), numbers.float().nan_to_num(1.5))


def test_floats_are_rounded_to_nearest_even(level, dtype):
    """All numbers, what lies halfway between neighbours, and the floats beside it."""
    numbers = every_number(dtype)
    numbers = numbers[numbers.isfinite()].float()
    neighbours = numbers.to(torch.float64).sort().values
    halfway = ((neighbours[1:] + neighbours[:-1]) / 2).float()
    beside = [halfway.nextafter(torch.tensor(to)) for to in (float("inf"), float("-inf"))]
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 65519.9, 65520.0, 3.4e38])
    floats = in_rows(torch.cat([numbers, halfway, *beside, special]))
    zeros = torch.zeros_like(floats, dtype=dtype)
    with torch.no_grad(), simd_level(level):
        rounded = VECTOR_QUANTIZE_BACKWARD(floats, torch.zeros(()), zeros, zeros)
    expected = floats.to(dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded.nan_to_num(1.5), expected.nan_to_num(1.5))
    assert torch.equal(rounded.isnan(), expected.isnan())
