"""Beam search of `compat.lucidrains.ResidualVQ`, and codebooks that it was asked to freeze."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package
from helpers.drop_ins import assert_same_step

from vqvae2_fast.compat import lucidrains

BASE = {"dim": 8, "num_quantizers": 3, "codebook_size": 12}
SEQUENCE = (2, 9, 8)


def pair(**arguments):
    modules = []
    for source in (package, lucidrains):
        torch.manual_seed(0)
        modules.append(source.ResidualVQ(**(BASE | arguments)))
    return modules


def test_a_beam_samples_at_the_temperature_of_a_call():
    theirs, ours = pair(stochastic_sample_codes=True, sample_codebook_temp=0.0, beam_size=2)
    torch.manual_seed(1)
    x = torch.randn(SEQUENCE)
    assert_same_step(theirs, ours, x, seed=0, sample_codebook_temp=5.0)


FROZEN = {
    "at_once": {},
    "one_by_one": {"use_cosine_sim": True},
    "beam": {"beam_size": 2},
    "shared": {"shared_codebook": True, "threshold_ema_dead_code": 2},
    "shared_beam": {"shared_codebook": True, "beam_size": 2},
}


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize(
    ("constructor", "call"),
    [({"freeze_codebook": True}, {}), ({}, {"freeze_codebook": True})],
    ids=["constructor", "call"],
)
def test_a_frozen_codebook_never_moves(name, constructor, call):
    ours = pair(**FROZEN[name], **constructor)[1]
    before = ours.codebooks.clone()
    for _ in range(2):
        ours(torch.randn(SEQUENCE), **call)
    assert torch.equal(ours.codebooks, before)


def test_the_layers_after_a_frozen_one_still_see_its_residual():
    frozen, free = (pair()[1] for _ in range(2))
    frozen.layers[0].freeze_codebook = True
    x = torch.randn(SEQUENCE)
    frozen(x)
    free(x)
    assert torch.equal(frozen.codebooks[1:], free.codebooks[1:])
    assert not torch.equal(frozen.codebooks[0], free.codebooks[0])


@pytest.mark.parametrize("arguments", [{"commitment_weight": 0.0}, {"diveq": True}])
def test_a_beam_that_nothing_ranks_is_refused(arguments):
    ours = pair(**arguments, beam_size=2)[1]
    x = torch.randn(SEQUENCE)
    with pytest.raises(ValueError, match="expected commitment_weight > 0"):
        ours(x)
    ours(x, beam_size=1)
    ours.eval()(x)
