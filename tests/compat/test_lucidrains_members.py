"""Which public members of vector-quantize-pytorch `compat.lucidrains` has, and how code asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_near

from vqvae2_fast.compat import lucidrains
from vqvae2_fast.compat.lucidrains import arguments, residual_vq

DOCS = Path(__file__).parents[2] / "docs"
SEVERAL = {"codebook_size": 16, "num_quantizers": 2}
BUILT = {
    "VectorQuantize": {"dim": 4, "codebook_size": 16},
    "ResidualVQ": {"dim": 4, **SEVERAL},
    "GroupedResidualVQ": {"dim": 4, "groups": 2, **SEVERAL},
    "FSQ": {"levels": [5, 5]},
    "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 2},
    "GroupedResidualFSQ": {"dim": 4, "groups": 2, "levels": [5, 5], "num_quantizers": 2},
    "LFQ": {"dim": 4},
    "ResidualLFQ": {"dim": 4, **SEVERAL},
    "GroupedResidualLFQ": {"dim": 8, "groups": 2, **SEVERAL},
    "SimVQ": {"dim": 4, "codebook_size": 16},
    "ResidualSimVQ": {"dim": 4, **SEVERAL},
    "RandomProjectionQuantizer": {"dim": 4, "codebook_size": 16, "codebook_dim": 2},
}


@pytest.mark.parametrize("error", [NotImplementedError, ImportError])
def test_importing_a_class_that_is_left_out_says_why(error):
    with pytest.raises(error, match="FSP is not supported: .* nearest"):
        from vqvae2_fast.compat.lucidrains import FSP  # noqa: F401


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", ["bound", "symmetry_preserving_bound"])
def test_bounds_of_fsq_are_the_packages(name, hard):
    z = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    theirs, ours = (
        getattr(source.FSQ([8, 5, 4]), name)(z, hard_clamp=hard) for source in (package, lucidrains)
    )
    assert_near(ours, theirs, name)


def test_another_eps_of_the_bound_is_refused():
    with pytest.raises(ValueError, match="expected eps=0.001, which is fixed, got 0.01"):
        lucidrains.FSQ([8, 5, 4]).bound(torch.zeros(2, 3), 1e-2)


def test_fsq_applies_noise_in_training_only():
    codes = torch.zeros(2, 9, 2)
    for mode in (True, False):
        results = []
        for source in (package, lucidrains):
            module = source.FSQ([5, 5], preserve_symmetry=True, noise_dropout=0.5).train(mode)
            torch.manual_seed(0)
            results.append(module.maybe_apply_noise(codes))
        assert torch.equal(*results)
        assert bool(results[1].any()) == mode


@pytest.mark.parametrize("spherical", [False, True])
def test_lfq_normalises_if_it_is_spherical(spherical):
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    arguments = {"dim": 6, "spherical": spherical, "codebook_scale": 2.0}
    theirs, ours = (s.LFQ(**arguments).maybe_l2norm(x) for s in (package, lucidrains))
    assert_near(ours, theirs, "normalised")


@pytest.mark.parametrize(
    ("arguments", "orthogonal", "diverse"),
    [
        ({}, False, False),
        ({"orthogonal_reg_weight": 0.1}, True, False),
        ({"codebook_diversity_loss_weight": 0.1}, False, True),
    ],
)
def test_vector_quantize_tells_its_losses(arguments, orthogonal, diverse):
    module = lucidrains.VectorQuantize(4, 8, **arguments)
    assert module.has_codebook_orthogonal_loss == orthogonal
    assert module.has_codebook_diversity_loss == diverse


@pytest.mark.parametrize("arguments", [{}, {"ema_update": False, "learnable_codebook": True}])
def test_residual_vq_tells_whether_it_follows_averages(arguments):
    arguments = {"dim": 4, "codebook_size": 8, "num_quantizers": 2, **arguments}
    theirs, ours = (s.ResidualVQ(**arguments).vq_is_ema_updating for s in (package, lucidrains))
    assert ours == theirs


def test_the_page_of_quantisers_lists_all_that_is_left_out():
    section = (DOCS / "quantizers.md").read_text("utf-8").split("## Drop-ins")[1]
    tables = (
        lucidrains._LEFT_OUT,
        arguments.OTHER_ARGUMENTS,
        arguments.FORWARD_ARGUMENTS,
        residual_vq._OTHER_ARGUMENTS,
        residual_vq._FORWARD,
    )
    assert [name for table in tables for name in table if name not in section] == []


@pytest.mark.parametrize("name", BUILT)
def test_the_migration_page_lists_the_members_that_are_left_out(name):
    page = (DOCS / "migrating-from-lucidrains.md").read_text("utf-8")
    theirs, ours = (getattr(source, name)(**BUILT[name]) for source in (package, lucidrains))
    public = [member for member in dir(theirs) if not member.startswith("_")]
    missing = [each for each in public if hasattr(theirs, each) and not hasattr(ours, each)]
    # Attributes have the names of arguments.
    refused = residual_vq._OTHER_ARGUMENTS | arguments.OTHER_ARGUMENTS
    assert [each for each in missing if f"`{each}`" not in page and each not in refused] == []
