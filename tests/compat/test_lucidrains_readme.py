"""The ways of use that the package's README shows, with the import changed; smaller numbers."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.compat.lucidrains import (
    FSQ,
    LFQ,
    GroupedResidualVQ,
    RandomProjectionQuantizer,
    ResidualFSQ,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
)


def shapes(results) -> list[tuple[int, ...]]:
    return [tuple(result.shape) for result in results]


@pytest.mark.parametrize(
    "arguments",
    [
        {"decay": 0.8, "commitment_weight": 1.0},
        {"codebook_dim": 4},
        {"use_cosine_sim": True},
        {"threshold_ema_dead_code": 2},
        {"rotation_trick": True},
    ],
)
def test_a_quantizer(arguments):
    vq = VectorQuantize(dim=16, codebook_size=32, **arguments)
    assert shapes(vq(torch.randn(1, 40, 16))) == [(1, 40, 16), (1, 40), ()]


def test_a_quantizer_of_maps_with_orthogonal_codes_or_heads():
    image = torch.randn(1, 16, 8, 8)
    orthogonal = VectorQuantize(
        dim=16,
        codebook_size=32,
        accept_image_fmap=True,
        orthogonal_reg_weight=10,
        orthogonal_reg_max_codes=16,
        orthogonal_reg_active_codes_only=False,
    )
    assert shapes(orthogonal(image)) == [(1, 16, 8, 8), (1, 8, 8), ()]
    heads = VectorQuantize(
        dim=16,
        codebook_dim=4,
        heads=8,
        separate_codebook_per_head=True,
        codebook_size=32,
        accept_image_fmap=True,
    )
    assert shapes(heads(image)) == [(1, 16, 8, 8), (1, 8, 8, 8), ()]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"diveq": True},
        {"kmeans_init": True, "kmeans_iters": 10},
        {"stochastic_sample_codes": True, "sample_codebook_temp": 0.1, "shared_codebook": True},
    ],
)
def test_residual_quantizers(arguments):
    residual_vq = ResidualVQ(dim=16, num_quantizers=4, codebook_size=32, **arguments)
    x = torch.randn(1, 40, 16)
    assert shapes(residual_vq(x)) == [(1, 40, 16), (1, 40, 4), (4,)]
    assert residual_vq(x, return_all_codes=True)[3].shape == (4, 1, 40, 16)


def test_groups_of_residual_quantizers():
    grouped = GroupedResidualVQ(dim=16, num_quantizers=4, groups=2, codebook_size=32)
    assert shapes(grouped(torch.randn(1, 40, 16))) == [(1, 40, 16), (2, 1, 40, 4), (2, 4)]


def test_random_projections():
    quantizer = RandomProjectionQuantizer(
        dim=32, num_codebooks=4, codebook_dim=16, codebook_size=64
    )
    assert quantizer(torch.randn(1, 40, 32)).shape == (1, 40, 4)


def test_sim_vq_and_its_residual_form():
    x = torch.randn(1, 40, 32)
    sim_vq = SimVQ(dim=32, codebook_size=64, rotation_trick=True)
    quantized, indices, _ = sim_vq(x)
    assert torch.allclose(quantized, sim_vq.indices_to_codes(indices), atol=1e-6)
    residual = ResidualSimVQ(dim=32, num_quantizers=4, codebook_size=64, rotation_trick=True)
    quantized, indices, _ = residual(x)
    assert torch.allclose(quantized, residual.get_output_from_indices(indices), atol=1e-6)


def test_scalars_and_their_residual_form():
    quantizer = FSQ(levels=[8, 5, 5, 5])
    xhat, indices = quantizer(torch.randn(1, 40, 4))
    assert torch.all(xhat == quantizer.indices_to_codes(indices))
    residual = ResidualFSQ(dim=32, levels=[8, 5, 5, 3], num_quantizers=8)
    quantized, indices = residual(torch.randn(1, 40, 32))
    assert torch.all(quantized == residual.get_output_from_indices(indices))


@pytest.mark.parametrize("shape", [(1, 10, 12), (1, 12, 4, 4), (1, 12, 3, 4, 4)], ids=str)
def test_signs(shape):
    quantizer = LFQ(codebook_size=4096, dim=12, entropy_loss_weight=0.1, diversity_gamma=1.0)
    x = torch.randn(shape)
    quantized, indices, loss = quantizer(x, inv_temperature=100.0)
    assert quantized.shape == x.shape
    assert loss.shape == ()
    assert (quantized == quantizer.indices_to_codes(indices)).all()


def test_several_codebooks_of_signs():
    quantizer = LFQ(codebook_size=256, dim=16, num_codebooks=4)
    x = torch.randn(1, 16, 4, 4)
    quantized, indices, _ = quantizer(x)
    assert indices.shape == (1, 4, 4, 4)
    assert (quantized == quantizer.indices_to_codes(indices)).all()
