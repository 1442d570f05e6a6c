"""`benchmarks/against_port.py`: on which images its bits are measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

CODES, LEVEL = 4, 0


class Biased(nn.Module):
    """Expects code 0 everywhere."""

    def forward(self, codes, condition=None):
        logits = torch.zeros(len(codes), CODES, *codes.shape[1:])
        logits[:, 0] = 9.0
        return logits


class BiasedPort(Biased):
    def forward(self, codes, condition=None):
        return super().forward(codes, condition), None


@pytest.fixture
def port_training(script, monkeypatch):
    """Its priors know the first of every two held-out images, and training does nothing."""
    module = script("shared.port_training")
    monkeypatch.setattr(module, "prior_of", lambda _, port: BiasedPort() if port else Biased())
    monkeypatch.setattr(module, "BATCH", 2)
    module.selected_by = []

    def train(model, loss, seconds, ours, validate=None):
        module.selected_by.append(validate and validate())
        return 1

    monkeypatch.setattr(module, "train", train)
    return module


@pytest.mark.parametrize("name", ["port", "port, our recipe", "vqvae2_fast"])
def test_bits_are_of_other_images_than_those_that_select_weights(port_training, name):
    maps = torch.zeros(6, 2, 2, dtype=torch.int64)
    maps[1::2] = 1
    contender = port_training.CONTENDERS[name]
    found, _ = port_training.bits_of_prior(LEVEL, contender, [maps], [maps], 1.0)
    assert found["bits"] > 4 * 9
    (selected_by,) = port_training.selected_by
    if contender.port_recipe:
        assert selected_by is None
    else:
        assert selected_by < 0.1
