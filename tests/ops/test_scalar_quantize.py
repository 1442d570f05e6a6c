"""What `scalar_quantize` promises beyond its cases."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.testing.compare import simd_level, simd_levels


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
