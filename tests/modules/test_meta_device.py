"""Modules on the meta device: forwards give shapes and dtypes, and compute nothing."""

from __future__ import annotations

import pytest
import torch

import vqvae2_fast as vq2
from vqvae2_fast.presets import preset

PRESET = preset("emoji32")


@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
@pytest.mark.parametrize(
    "start",
    [{"init": "kmeans"}, {"init": "normal"}, {"update": "step", "quantize_after": 5}],
    ids=str,
)
def test_quantizer(start, train):
    quantizer = vq2.VectorQuantizerEMA(8, 4, restart=0.03, **start).train(train).to("meta")
    z_q, indices, loss = quantizer(torch.zeros(2, 3, 4, device="meta"))
    assert (z_q.shape, indices.shape, loss.shape) == ((2, 3, 4), (2, 3), ())
    assert z_q.is_meta and indices.is_meta and loss.is_meta


def test_quantizers_in_use_are_all_where_their_number_cannot_be_drawn():
    quantizer = vq2.ResidualVQ(8, 4, 3, quantizer_dropout=True).to("meta")
    z_q, indices, _ = quantizer(torch.zeros(2, 5, 4, device="meta"))
    assert z_q.is_meta
    assert indices.shape == (2, 5, 3)


def test_codes_too_many_for_a_table():
    quantizer = vq2.FSQ([129, 129, 129])
    z_q, indices, _ = quantizer(torch.zeros(2, 5, 3, device="meta"))
    assert z_q.is_meta
    assert indices.shape == (2, 5)
    assert quantizer.perplexity.shape == ()


@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
def test_vqvae(train):
    model = vq2.VQVAE2(PRESET.vqvae).train(train).to("meta")
    output = model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert output.reconstruction.is_meta
    assert output.reconstruction.shape == (2, 3, 32, 32)
    assert [list(codes.shape) for codes in output.codes] == [[2, 8, 8], [2, 16, 16]]
    assert model.decode(output.codes).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
@pytest.mark.parametrize("config", PRESET.priors, ids=["top", "bottom"])
def test_prior(config, train):
    prior = vq2.PixelSNAIL(config).train(train).to("meta")
    codes, *condition = (
        torch.zeros(2, *size, dtype=torch.int64, device="meta")
        for size in (config.size, *config.condition_sizes)
    )
    logits = prior(codes, condition or None, torch.zeros(2, dtype=torch.int64, device="meta"))
    assert logits.is_meta
    assert logits.shape == (2, config.num_embeddings, *config.size)
