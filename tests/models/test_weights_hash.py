"""Priors and the VQ-VAE whose codes they model."""

from __future__ import annotations

import importlib

import pytest
from torch import nn

from vqvae2_fast.models.weights_hash import check_made_for


@pytest.mark.parametrize("kept", ["", "kept"])
def test_the_weights_are_hashed_once_for_any_number_of_priors(monkeypatch, kept) -> None:
    # As an attribute of the package, this name is the function.
    module = importlib.import_module("vqvae2_fast.models.weights_hash")
    vqvae, calls = nn.Linear(2, 2), []
    vqvae.vqvae_hash = kept
    real = module.weights_hash
    own = real(vqvae)
    monkeypatch.setattr(module, "weights_hash", lambda m: calls.append(m) or real(m))
    check_made_for(vqvae, {"top": own, "middle": kept, "bottom": own})
    assert len(calls) == 1
