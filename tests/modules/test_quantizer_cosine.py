"""The cosine metric of `VectorQuantizerEMA`: unit vectors, unit codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.modules.quantizer import VectorQuantizerEMA


def quantizer(**changes):
    torch.manual_seed(0)
    arguments = {"init": "normal", "restart": 0.0, "metric": "cosine", **changes}
    return VectorQuantizerEMA(13, 6, **arguments)


def vectors(*shape):
    return 5 * torch.randn(*shape, 6, generator=torch.Generator().manual_seed(1)) + 2


def test_picks_the_code_of_largest_cosine():
    layer, z = quantizer().eval(), vectors(50)
    cosine = F.normalize(z.double(), dim=1) @ F.normalize(layer.codebook.double(), dim=1).t()
    assert torch.equal(layer(z)[1], cosine.argmax(1))
    assert torch.equal(layer.encode(z), cosine.argmax(1))


def test_length_of_a_vector_does_not_matter():
    layer, z = quantizer().eval(), vectors(50)
    z_q, indices, loss = layer(z)
    longer = layer(4 * z)  # a power of two: unit vectors are the same to the bit
    assert torch.equal(longer[0], z_q)
    assert torch.equal(longer[1], indices)
    assert torch.equal(longer[2], loss)


def test_gradient_goes_through_the_unit_vector():
    layer, z = quantizer().eval(), vectors(4, 3).requires_grad_()
    z_q, indices, loss = layer(z)
    (actual,) = torch.autograd.grad(z_q.square().sum() + loss, z)
    unit, code = F.normalize(z, dim=-1), layer.codebook[indices]
    straight = unit + (code - unit).detach()
    (expected,) = torch.autograd.grad(straight.square().sum() + 0.25 * F.mse_loss(unit, code), z)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("init", ["normal", "uniform", "kmeans"])
def test_codes_keep_length_one(init):
    layer = quantizer(init=init, restart=0.03)
    for step in range(3):
        layer(vectors(40 + step))
        torch.testing.assert_close(layer.codebook.norm(dim=1), torch.ones(13))


def test_averages_are_of_unit_vectors():
    layer, z = quantizer(), vectors(20)
    before, unit = layer.embed_avg.clone(), F.normalize(z, dim=1)
    indices = layer(z)[1]
    sums = torch.zeros(13, 6).index_add_(0, indices, unit)
    torch.testing.assert_close(layer.embed_avg, 0.99 * before + 0.01 * sums)
