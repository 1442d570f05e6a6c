"""The alarm for codebooks that collapse."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.training import TrainConfig, train, vqvae_stage
from vqvae2_fast.training.stage1 import collapsed_levels

VQVAE = VQVAE2Config(
    image_size=(16, 16),
    strides=(2, 2),
    hidden_channels=8,
    residual_channels=4,
    num_embeddings=512,
    embedding_dim=4,
    restart=0.02,
)


@pytest.mark.parametrize(
    ("used", "perplexity", "said"),
    [
        (1, 1.0, "use only 1 of the 512 codes of level top, which therefore says nothing"),
        (19, 9.0, "use only 19 of the 512 codes of level top"),
        (500, 12.0, "the 512 codes of level top so unevenly that their perplexity is only 12.0"),
        (447, 210.0, None),
    ],
)
def test_levels_that_have_collapsed_are_named_with_what_to_do(used, perplexity, said):
    metrics = {
        "top_codes_used": used,
        "top_perplexity": perplexity,
        "bottom_codes_used": 512,
        "bottom_perplexity": 300.0,
    }
    found = collapsed_levels(VQVAE, metrics, 1000)
    assert found.keys() == ({"top"} if said else set())
    if said:
        assert said in found["top"]
        assert "Raise restart=0.02, " in found["top"]


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "simvq", "lfq", "residual:4,4"])
def test_every_quantiser_is_validated_in_training(quantizer):
    model = VQVAE2(replace(VQVAE, num_embeddings=16, quantizer=(quantizer,)))
    images = ImageTensorDataset(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    config = TrainConfig(steps=1, batch_size=4, validate_every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stage = vqvae_stage(model, images, images, config)
        assert "psnr" in train(stage, config, progress=Progress(quiet=True)).metrics


def test_a_small_set_is_not_held_to_the_size_of_the_codebook():
    metrics = {
        "top_codes_used": 10,
        "top_perplexity": 8.0,
        "bottom_codes_used": 40,
        "bottom_perplexity": 30.0,
    }
    assert not collapsed_levels(VQVAE, metrics, 1)


def test_training_warns_once_when_a_level_collapses(monkeypatch):
    monkeypatch.setattr("vqvae2_fast.training.stage1._SETTLING", 0)
    torch.manual_seed(0)
    model = VQVAE2(replace(VQVAE, num_embeddings=64, restart=0.0))
    with torch.no_grad():
        for layer in model.pre_quantize:  # all vectors are alike
            layer.weight.zero_()
    pixels = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8)
    images = ImageTensorDataset(pixels)
    config = TrainConfig(steps=3, batch_size=4, learning_rate=1e-9, validate_every=1)
    with pytest.warns(UserWarning, match="use only 1 of the 64 codes of level") as told:
        train(vqvae_stage(model, images, images, config), config, progress=Progress(quiet=True))
    assert len(told) == 2  # once for each level
