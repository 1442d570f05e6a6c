"""Several heads in one call: `[H, ..., D]` against codebooks `[H, K, D]`."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops


def inputs():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, 7, 6, generator=generator)
    return z, torch.randn(3, 11, 6, generator=generator)


def test_heads_search_their_own_codebook():
    z, codebook = inputs()
    indices, sqdist = ops.nearest_code(z, codebook)
    for head in range(3):
        expected = ops.nearest_code(z[head], codebook[head])
        assert torch.equal(indices[head], expected[0])
        assert torch.equal(sqdist[head], expected[1])


def test_heads_of_a_strided_split_equal_those_of_a_copy():
    z = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    _, codebook = inputs()
    split = z.view(40, 4, 6).transpose(0, 1)[:3]  # [H, N, D]
    actual = ops.nearest_code(split, codebook)[0]
    assert torch.equal(actual, ops.nearest_code(split.contiguous(), codebook)[0])


def test_quantised_heads_share_one_commitment_and_its_gradient():
    z, codebook = inputs()
    z.requires_grad_()
    z_q, indices, commitment = ops.vector_quantize(z, codebook)
    code = torch.stack([codebook[head][indices[head]] for head in range(3)])
    assert torch.equal(z_q, code)
    torch.testing.assert_close(commitment, (z - code).square().mean())
    (actual,) = torch.autograd.grad(z_q.sum() + commitment, z)
    torch.testing.assert_close(actual, 1 + 2 * (z - code).detach() / z.numel())


@pytest.mark.parametrize("op", [ops.nearest_code, ops.vector_quantize])
def test_heads_must_agree(op):
    z, codebook = inputs()
    with pytest.raises(ValueError, match=r"expected z \[H, ..., D\] for codebook .* z \[2, 5"):
        op(z[:2], codebook)
    with pytest.raises(ValueError, match="with D=6"):
        op(z[..., :4], codebook)
