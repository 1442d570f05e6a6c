"""Layouts and arguments of `ResidualFSQ`, `ResidualLFQ` and their groups in `compat.lucidrains`."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_same_step

from vqvae2_fast.compat import lucidrains

RFSQ = {"levels": [8, 5, 3], "num_quantizers": 2}
MAPS = {"groups": 2, "accept_image_fmap": True}


def test_groups_of_maps_are_quantised_along_the_channels():
    theirs, ours = (
        source.GroupedResidualFSQ(dim=6, **MAPS, **RFSQ, **extra)
        for source, extra in ((package, {"is_channel_first": True}), (lucidrains, {}))
    )
    # As wide as a group has channels: a wrong dimension would raise no error.
    x = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(1))
    assert_same_step(theirs.eval(), ours.eval(), x, seed=0)


def test_groups_of_maps_have_projections():
    module = lucidrains.GroupedResidualFSQ(dim=8, **MAPS, **RFSQ)
    quantized, indices = module(torch.randn(2, 8, 5, 4))
    assert quantized.shape == (2, 8, 5, 4)
    assert indices.shape == (2, 2, 2, 5, 4)


def test_groups_whose_flags_name_different_dimensions_are_refused():
    with pytest.raises(ValueError, match="expected is_channel_first=False with accept_image_fmap"):
        lucidrains.GroupedResidualFSQ(dim=6, **RFSQ, is_channel_first=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_residual_fsq_keeps_the_dimension_of_the_codebooks(groups):
    keeps = {"dim": 3 * groups, "groups": groups, "keep_num_codebooks_dim": True}
    theirs, ours = (s.GroupedResidualFSQ(**keeps, **RFSQ) for s in (package, lucidrains))
    x = torch.randn(2, 5, 3 * groups, generator=torch.Generator().manual_seed(1))
    assert_same_step(theirs.eval(), ours.eval(), x, seed=0, return_all_codes=True)


def test_dropped_quantisers_keep_the_dimension_of_the_codebooks():
    """The package fails here."""
    module = lucidrains.ResidualFSQ(**RFSQ, keep_num_codebooks_dim=True, quantize_dropout=True)
    indices = module(torch.randn(2, 5, 3), rand_quantize_dropout_fixed_seed=2)[1]
    assert indices.shape == (2, 5, 1, 2)
    assert (indices[..., 1] == -1).all()


def test_residual_fsq_takes_single_vectors():
    theirs, ours = (s.ResidualFSQ(**RFSQ, is_channel_first=True) for s in (package, lucidrains))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    assert_same_step(theirs.eval(), ours.eval(), x, seed=0)
    found = lucidrains.ResidualFSQ(**RFSQ).eval()(x)
    assert torch.equal(found[0], ours(x)[0])


@pytest.mark.parametrize(
    "argument", [{"return_indices": False}, {"num_codebooks": 2}, {"channel_first": True}]
)
def test_arguments_that_a_residual_grid_cannot_take_are_refused(argument):
    with pytest.raises(ValueError, match=f"expected {next(iter(argument))}="):
        lucidrains.ResidualFSQ(**RFSQ, **argument)


def test_residual_lfq_takes_maps_without_projections():
    torch.manual_seed(0)
    theirs, ours = (
        source.GroupedResidualLFQ(dim=8, codebook_size=16, num_quantizers=2, **MAPS)
        for source in (package, lucidrains)
    )
    assert_same_step(theirs.eval(), ours.eval(), torch.randn(2, 8, 5, 3), seed=0)


def test_groups_of_bits_are_quantised_along_the_channels():
    module = lucidrains.GroupedResidualLFQ(dim=8, codebook_size=16, num_quantizers=2, **MAPS)
    # As long as a group has channels: a wrong dimension would raise no error.
    x = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1))
    quantized, indices, _ = module.eval()(x)
    of_map = module(x[..., None])
    assert torch.equal(quantized, of_map[0][..., 0])
    assert torch.equal(indices, of_map[1].squeeze(3))
