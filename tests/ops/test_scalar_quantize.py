"""What `scalar_quantize` promises beyond its cases."""

from __future__ import annotations

import pytest
import torch
from helpers.compare import simd_level, simd_levels

from vqvae2_fast import ops


@pytest.mark.parametrize("hard", [False, True], ids=["tanh", "clamp"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["paper", "symmetric"])
def test_every_simd_level_gives_the_same_bits(symmetric: bool, hard: bool) -> None:
    z, dvalues = torch.randn(2, 5000, 3, generator=torch.Generator().manual_seed(0)) * 2
    found = []
    for level in simd_levels():
        leaf = z.clone().requires_grad_()
        with simd_level(level):
            values, indices = ops.scalar_quantize(leaf, [8, 5, 4], symmetric, hard)
            values.backward(dvalues)
        found.append((values.detach(), indices, leaf.grad))
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


@pytest.mark.parametrize("levels", [[8, 5, 4], [1000, 300, 7]], ids=str)
@pytest.mark.parametrize("hard", [False, True], ids=["tanh", "clamp"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["paper", "symmetric"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_the_codes_of_float32(dtype, symmetric, hard, levels) -> None:
    z, dvalues = (2 * torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = []
    for leaf in (z.clone().requires_grad_(), z.float().requires_grad_()):
        values, indices = ops.scalar_quantize(leaf, levels, symmetric, hard)
        values.backward(dvalues.to(values.dtype))
        found.append((values.detach(), indices, leaf.grad))
    (values, indices, gradient), (wide_values, wide_indices, wide_gradient) = found
    assert torch.equal(indices, wide_indices)
    assert torch.equal(values, wide_values.to(dtype))
    torch.testing.assert_close(gradient, wide_gradient.to(dtype))
