"""What `code_conv2d` promises beyond its cases."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.ops.code_conv2d.op import (
    code_conv2d_backward_reference,
    code_conv2d_reference,
)

OFFSETS = [0, -1, 0, 0]


@pytest.mark.parametrize("code", [-1, 4, 5])
def test_a_code_out_of_range_takes_no_row_of_another_tap(code: int) -> None:
    """Taps of K = 4 codes have five rows each, of which the last is for places off the map."""
    codes, table = torch.tensor([[[0, code, 1]]]), torch.randn(2, 4, 3)
    message = r"expected codes in 0\.\.3, got one outside"
    with pytest.raises(RuntimeError, match=message):
        code_conv2d_reference(codes, table, OFFSETS)
    with pytest.raises(RuntimeError, match=message):
        code_conv2d_backward_reference(torch.ones(1, 3, 1, 3), codes, 4, OFFSETS)
