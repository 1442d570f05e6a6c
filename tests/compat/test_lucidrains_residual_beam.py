"""Beam search of `compat.lucidrains.ResidualVQ`, and codebooks that it was asked to freeze."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as package

from vqvae2_fast.compat import lucidrains
from vqvae2_fast.testing.drop_ins import assert_same_step

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
