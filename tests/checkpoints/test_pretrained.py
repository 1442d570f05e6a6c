"""Pretrained pipelines: found by the names of presets, described by a card."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.models import TINY_PRIOR, TINY_VQVAE

from vqvae2_fast.checkpoints import from_preset, pretrained_folder, pretrained_names, save
from vqvae2_fast.checkpoints import pretrained as module
from vqvae2_fast.checkpoints.pretrained import pretrained_card
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.presets import preset
from vqvae2_fast.sampling.pipeline import Pipeline

CARD = {"licence": "MIT", "data": "squares", "command": "train", "metrics": {"psnr": 26.0}}
PACKAGED = pretrained_names()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A package that has only the weights of emoji32."""
    torch.manual_seed(0)
    vqvae = VQVAE2(TINY_VQVAE)
    prior = PixelSNAIL(TINY_PRIOR)
    pipeline = Pipeline(vqvae, [prior])
    save(pipeline, tmp_path / "emoji32", dtype=torch.bfloat16, class_names=("cat", "dog"))
    (tmp_path / "emoji32" / "card.json").write_text(json.dumps(CARD))
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    return pipeline


def test_from_preset_gives_the_pipeline_in_the_package(tiny):
    loaded = from_preset("emoji32")
    assert loaded.vqvae.config == tiny.vqvae.config
    weight = tiny.priors[0].head.bias.bfloat16().float()
    assert torch.equal(loaded.priors[0].head.bias, weight)
    assert not loaded.vqvae.training


def test_a_preset_without_weights_names_those_that_have_them(tiny):
    with pytest.raises(ValueError, match="no weights of 'emoji64'; it has those of emoji32"):
        from_preset("emoji64")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("photos64", r"those of emoji32\. The other presets, .* have to be trained"),
        ("emoji23", r"those of emoji32\. Perhaps you meant emoji32\. The other"),
    ],
)
def test_a_name_without_weights_is_told_the_most_like_it_and_how_to_train(tiny, name, remedy):
    with pytest.raises(ValueError, match=remedy):
        from_preset(name)


def test_the_card_says_licence_and_metrics(tiny):
    assert pretrained_card("emoji32") == CARD


def test_a_card_without_a_licence_is_refused(tiny):
    path = pretrained_folder("emoji32") / "card.json"
    path.write_text(json.dumps({name: CARD[name] for name in ("data", "command", "metrics")}))
    with pytest.raises(ValueError, match=r"card\.json: expected licence to be of type str"):
        pretrained_card("emoji32")


@pytest.mark.skipif(not PACKAGED, reason="the package has no pretrained pipeline")
@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_pipeline_fits_its_preset_and_has_a_card(name):
    pipeline, config = from_preset(name), preset(name)
    assert pipeline.vqvae.config.level_sizes == config.vqvae.level_sizes
    assert [prior.config.size for prior in pipeline.priors] == list(config.vqvae.level_sizes)
    assert pretrained_card(name)["metrics"]


@pytest.mark.skipif(not PACKAGED, reason="the package has no pretrained pipeline")
@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_pipeline_is_small(name):
    files = [path for path in pretrained_folder(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * 10**6  # bytes
