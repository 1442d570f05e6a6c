"""Layouts of `compat.lucidrains.ResidualVQ`, and what is set on single layers of it."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package

from vqvae2_fast.compat import lucidrains
from vqvae2_fast.testing.drop_ins import assert_near, assert_same_step

BASE = {"dim": 8, "num_quantizers": 3, "codebook_size": 12}
SEQUENCE = (2, 9, 8)


def pair(kind: str = "ResidualVQ", **arguments):
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(0)
        modules.append(getattr(source, kind)(**(BASE | arguments)))
    return modules


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ({"channel_last": False}, (2, 8, 8)),
        ({"channel_last": False}, (2, 8)),
        ({"accept_3d_fmap": True}, (2, 8, 8, 8, 8)),
    ],
)
def test_channels_before_positions_are_those_of_the_package(layout, shape):
    """The package takes only positions of dim steps."""
    theirs, ours = pair(**layout)
    torch.manual_seed(1)
    for mode in (True, False):
        assert_same_step(theirs.train(mode), ours.train(mode), torch.randn(shape), seed=0)


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ"])
@pytest.mark.parametrize(
    ("layout", "positions"),
    [({"channel_last": False}, (5,)), ({"accept_3d_fmap": True}, (2, 3, 4))],
)
def test_channels_before_positions_are_sequences_of_them(kind, layout, positions):
    groups = {"groups": 2} if kind == "GroupedResidualVQ" else {}
    ours = pair(kind, codebook_dim=3, **groups, **layout)[1]
    sequences = pair(kind, codebook_dim=3, **groups)[1]
    x = torch.randn(2, 8, *positions)
    quantized, indices, losses = ours(x)
    expected, expected_indices, expected_losses = sequences(x.flatten(2).mT)
    assert_near(quantized.flatten(2).mT, expected, "quantized")
    assert torch.equal(indices.reshape(expected_indices.shape), expected_indices)
    assert_near(losses, expected_losses, "losses")


def test_a_residual_layout_that_does_not_fit_is_explained():
    with pytest.raises(ValueError, match=r"ResidualVQ: expected x \[B, dim, N\] with dim=8"):
        lucidrains.ResidualVQ(**BASE, channel_last=False)(torch.randn(2, 9, 8))
