"""An architecture that this file alone adds is trained, saved, drawn from, scored and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from helpers.codes import random_codes
from helpers.models import tiny_pipeline
from torch import Tensor, nn

from vqvae2_fast import Pipeline, cli, load, presets, sample_codes, sample_images, save
from vqvae2_fast.codec import encode_codes
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.metrics import evaluate_pipeline, prior_likelihood
from vqvae2_fast.models.prior import PRIORS, Prior, PriorConfig, make_prior, register_prior
from vqvae2_fast.sampling import choose_engine
from vqvae2_fast.sampling.sampler import score_codes
from vqvae2_fast.training import TrainConfig, prior_stage, train
from vqvae2_fast.training.preset import Preset, PresetTraining

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class LastCodeConfig(PriorConfig):
    """Its fields stand in another order than those of `PixelSNAILConfig`."""

    width: int = 8
    num_classes: int = 0
    num_embeddings: int = 13
    condition_sizes: tuple[tuple[int, int], ...] = ()
    size: tuple[int, int] = (4, 4)

    def summary(self) -> str:
        return f"two layers of {self.width} channels"

    def at_least(self) -> tuple[int, int]:
        return 3, self.width * self.num_embeddings


class LastCode(Prior):
    """A perceptron that sees the code before, the class and the means of the coarser maps."""

    config: LastCodeConfig

    def __init__(self, config: LastCodeConfig) -> None:
        super().__init__(config)
        self.before = nn.Embedding(config.num_embeddings + 1, config.width)
        self.label = nn.Embedding(config.num_classes + 1, config.width)
        self.coarser = nn.Embedding(config.num_embeddings, config.width)
        self.head = nn.Linear(config.width, config.num_embeddings)

    def logits(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        before = F.pad(codes.flatten(1), (1, 0), value=self.config.num_embeddings)[:, :-1]
        features = self.before(before)  # [B, h·W, C]
        if labels is not None:
            features = features + self.label(labels)[:, None]
        for coarser in maps:
            features = features + self.coarser(coarser).mean((1, 2))[:, None]
        return self.head(F.elu(features)).unflatten(1, codes.shape[1:]).permute(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_prior("last_code", LastCodeConfig)(LastCode)
    yield
    del PRIORS["last_code"]


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    config = LastCodeConfig(num_classes=3)
    bottom = replace(config, size=(8, 8), condition_sizes=((4, 4),))
    return Pipeline(tiny_pipeline().vqvae, [make_prior(config).eval(), make_prior(bottom).eval()])


def test_it_is_trained_and_goes_on(tmp_path: Path) -> None:
    codes = random_codes(13, 8, sizes=((4, 4), (8, 8))).write(tmp_path / "codes")
    config = LastCodeConfig(size=(8, 8), condition_sizes=((4, 4),), num_classes=3)

    def trained(steps: int, out: Path, *, resume: bool = False) -> Prior:
        torch.manual_seed(0)
        prior, settings = make_prior(config), TrainConfig(steps=steps, batch_size=4)
        train(prior_stage(prior, codes, codes, settings, level=1), settings, out=out, resume=resume)
        return prior

    trained(1, tmp_path / "run")
    continued, whole = trained(2, tmp_path / "run", resume=True), trained(2, tmp_path / "whole")
    torch.testing.assert_close(continued.state_dict(), whole.state_dict(), rtol=0, atol=0)
    loaded = load(tmp_path / "run", expect=Prior)
    assert isinstance(loaded, LastCode)
    assert loaded.vqvae_hash == codes.checkpoint_hash


def test_the_command_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "held_out"):
        random_codes(13, 8, sizes=((4, 4), (8, 8))).write(tmp_path / "codes" / split)
    known, settings = presets.preset("emoji32"), TrainConfig(steps=1, batch_size=4)
    top = LastCodeConfig(size=(8, 8), num_embeddings=known.vqvae.num_embeddings)
    other = Preset(
        known.vqvae,
        (top, replace(top, size=(16, 16), condition_sizes=((8, 8),))),
        PresetTraining(settings, (settings, settings)),
    )
    monkeypatch.setitem(presets._PRESETS, "other", other)
    arguments = ["train-prior", "--preset", "other", "--codes", str(tmp_path / "codes")]
    assert cli.main([*arguments, "--out", str(tmp_path / "run"), "--model.width", "5"]) == 0
    saved = load(tmp_path / "run").config
    assert saved == LastCodeConfig(width=5, size=(4, 4), num_embeddings=13, num_classes=3)


def test_a_saved_pipeline_draws_the_same(tmp_path: Path, pipeline: Pipeline) -> None:
    save(pipeline, tmp_path / "pipeline")
    images = sample_images(pipeline, 2, labels=[0, 2], guidance_scale=1.5)
    loaded = load(tmp_path / "pipeline", expect=Pipeline)
    assert torch.equal(sample_images(loaded, 2, labels=[0, 2], guidance_scale=1.5), images)
    assert images.shape == (2, 3, 16, 16)


def test_it_is_drawn_from_and_scored_by_the_reference(pipeline: Pipeline) -> None:
    prior = pipeline.priors[0]
    assert choose_engine("auto", prior)[0] == "reference"
    labels = torch.tensor([0, 1])
    drawn, log_prob = sample_codes(prior, 2, labels=labels, return_log_prob=True)
    assert torch.equal(score_codes(prior, drawn, labels=labels), log_prob)
    nats = prior_likelihood(prior, [([drawn], labels)], 0).nats_per_code
    assert nats == pytest.approx(-float(log_prob.double().mean()), rel=1e-6)
    assert prior.loss(drawn, None, labels).item() == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize("engine", ["cpu", "cuda", "eager", "cpu_w8a8"])
def test_other_engines_say_that_they_cannot(pipeline: Pipeline, engine: str) -> None:
    with pytest.raises(RuntimeError, match="no sampling plan.*engine='reference'"):
        sample_codes(pipeline.priors[0], 1, labels=torch.tensor([0]), engine=engine)


def test_the_codec_says_that_it_cannot(pipeline: Pipeline) -> None:
    maps = [torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64)]
    with pytest.raises(RuntimeError, match="engine cpu cannot code here: .* no sampling plan"):
        encode_codes(pipeline, maps)


def test_a_pipeline_of_it_is_evaluated(pipeline: Pipeline) -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    held_out = ImageTensorDataset(images, torch.tensor([0, 1, 2, -1]), ("a", "b", "c"))
    found = evaluate_pipeline(*pipeline.networks(), held_out)
    assert set(found.levels) == {"top", "bottom"}
    assert found.bits_per_image > 0


def test_a_file_that_describes_a_larger_one_is_refused(tmp_path: Path) -> None:
    save(make_prior(LastCodeConfig()), tmp_path / "prior")
    config = tmp_path / "prior" / "config.json"
    config.write_text(config.read_text().replace('"width": 8', '"width": 1000000000'))
    (tmp_path / "prior" / "files.json").unlink()
    with pytest.raises(ValueError, match="describes a larger model than the 5 tensors"):
        load(tmp_path / "prior")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="the name 'last_code' is taken"):
        register_prior("last_code", LastCodeConfig)(LastCode)


def test_a_configuration_that_is_not_registered_is_refused() -> None:
    del PRIORS["last_code"]
    with pytest.raises(TypeError, match="registered prior, got a LastCodeConfig"):
        make_prior(LastCodeConfig())
    register_prior("last_code", LastCodeConfig)(LastCode)
