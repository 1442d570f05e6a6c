"""Colours of codes: similar codes look alike, bright ones are bright, and every one has its own."""

from __future__ import annotations

import pytest
import torch

import vqvae2_fast as vq2
from vqvae2_fast.models.code_colours import (
    code_colours,
    code_patches,
    code_shares,
    codes_of,
    level_colours,
)
from vqvae2_fast.modules import MultiHeadVQ, VectorQuantizer


@pytest.fixture(scope="module")
def vqvae():
    return vq2.from_preset("emoji32").vqvae


def test_similar_codes_look_alike(vqvae):
    for colours, quantizer in zip(level_colours(vqvae), vqvae.quantizers, strict=True):
        apart = torch.cdist(colours.float(), colours.float())
        nearest = torch.cdist(quantizer.codebook, quantizer.codebook).fill_diagonal_(torch.inf)
        of_nearest = apart[torch.arange(256), nearest.argmin(1)].mean()
        assert of_nearest < 0.75 * apart.mean()
        assert len(colours.unique(dim=0)) > 250


def test_codes_of_bright_patches_are_bright(vqvae):
    for level, colours in enumerate(level_colours(vqvae)):
        brightness = code_patches(vqvae, level).mean((1, 2, 3))
        seen = torch.stack([brightness, colours.float().mean(1)])
        assert torch.corrcoef(seen)[0, 1] > 0.3


def test_brightness_decides_the_light_end():
    codebook = torch.linspace(-1, 1, 9)[:, None]
    equal = torch.full((9,), 1 / 9)
    for brightness in (codebook[:, 0], -codebook[:, 0]):
        lightness = code_colours(codebook, equal, brightness).float().mean(1)
        assert torch.corrcoef(torch.stack([lightness, brightness]))[0, 1] > 0.9


@pytest.mark.parametrize(
    "quantizer",
    [
        vq2.VectorQuantizerEMA(24, 2),
        VectorQuantizer(24, 5),
        vq2.FSQ([4, 3, 3]),
        vq2.LFQ(32, 6),
        vq2.ResidualVQ((4, 6), 5, joint_code=True),
        MultiHeadVQ(2, 5, 4, joint_code=True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_every_quantiser_has_colours(quantizer):
    count = getattr(quantizer, "num_embeddings", 24)
    colours = code_colours(codes_of(quantizer, count), code_shares(quantizer))
    assert colours.shape == (count, 3)
    assert colours.dtype == torch.uint8
    assert len(colours.unique(dim=0)) > count // 2


def test_shares_are_those_of_training():
    quantizer = vq2.VectorQuantizerEMA(4, 2)
    quantizer.cluster_size.copy_(torch.tensor([1.0, 2.0, 4.0, 1.0]))
    assert code_shares(quantizer).tolist() == [0.125, 0.25, 0.5, 0.125]


def test_a_quantiser_without_counts_has_no_shares():
    assert code_shares(vq2.FSQ([4, 3, 3])) is None
