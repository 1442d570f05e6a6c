"""`vqvae2-fast finetune-decoder`: what it leaves, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.models import tiny_pipeline
from PIL import Image

from vqvae2_fast.checkpoints import load, save
from vqvae2_fast.commands import finetune_decoder, plan
from vqvae2_fast.metrics import perceptual
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.patch_discriminator import PatchDiscriminator
from vqvae2_fast.sampling.pipeline import Pipeline

SHORT = (
    *("--train.steps", "3", "--train.batch-size", "4", "--train.validate-every", "3"),
    *("--adversary.channels", "8", "--adversary.start", "0", "--adversary.ramp", "1", "--quiet"),
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "pipeline"
    save(tiny_pipeline(), path)
    return path


@pytest.fixture(scope="module")
def large_images(tmp_path_factory):
    """12 images to train on and 3 held out, 16×16."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(15):
        path = root / ("held_out" if number < 3 else "train") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(path)
    return root


def test_the_decoder_of_a_pipeline_is_replaced(pipeline, large_images, run, tmp_path):
    out = tmp_path / "decoder"
    given = ["--vqvae", pipeline, "--data", large_images, "--out", out, "--lpips-weight", "0"]
    code, told, _ = run("finetune-decoder", *given, *SHORT)
    assert code == 0
    assert f"pipeline: {out / 'pipeline'}" in told
    before, after = (load(path, expect=Pipeline) for path in (pipeline, out / "pipeline"))
    pixels = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = before.vqvae.encode(pixels)
    assert all(map(torch.equal, codes, after.vqvae.encode(pixels)))
    assert not torch.equal(before.vqvae.decode(codes), after.vqvae.decode(codes))
    # The run itself goes with the old priors, too.
    code, _, _ = run(
        *("sample", "--vqvae", out, "--priors", pipeline / "prior_top", pipeline / "prior_bottom"),
        *("--n", "2", "--engine", "reference", "--quiet", "--out", tmp_path / "samples"),
    )
    assert code == 0
    assert json.loads((out / "result.json").read_text())["held_out"]["psnr"] > 0
    assert load(out, expect=VQVAE2).vqvae_hash


def test_the_plan_counts_gradients_and_moments_of_the_decoder_and_the_discriminator(
    pipeline, large_images, run, tmp_path
):
    given = ["--vqvae", pipeline, "--data", large_images, "--out", tmp_path / "run"]
    code, told, _ = run(
        *("finetune-decoder", *given, *SHORT, "--lpips-weight", "0", "--dry-run", "--json")
    )
    assert code == 0
    values, vqvae = json.loads(told), load(pipeline, expect=Pipeline).vqvae
    averaged, trained = (
        sum(weight.nbytes for weight in part.parameters()) for part in (vqvae, vqvae.decoder)
    )
    discriminator = PatchDiscriminator(vqvae.config.image_channels, channels=8)
    beside = sum(weight.nbytes for weight in discriminator.parameters())
    # One gradient and AdamW's two moments of what is trained, the average of all weights, and the
    # discriminator's own weights too.
    counted = 3 * trained + averaged + 4 * beside
    assert values["training_bytes"] - values["model_bytes"] == counted


def test_a_decoder_that_cannot_fit_is_refused_before_the_model_is_copied(
    pipeline, large_images, run, tmp_path, monkeypatch
):
    def copied(model):
        raise AssertionError("the model was copied")

    monkeypatch.setattr(finetune_decoder, "deepcopy", copied)
    monkeypatch.setattr(plan, "free_memory", lambda device: 1)
    given = ["--vqvae", pipeline, "--data", large_images, "--out", tmp_path / "run"]
    code, _, error = run("finetune-decoder", *given, *SHORT, "--lpips-weight", "0")
    assert code == 2
    assert "for weights, gradients, optimiser and average)" in error


def test_small_images_are_refused_before_the_first_step(vqvae, images, run, tmp_path):
    given = ["--vqvae", vqvae, "--data", images, "--out", tmp_path / "run", "--lpips-weight", "0"]
    code, _, error = run("finetune-decoder", *given)
    assert code == 2
    assert "at least 16 pixels a side" in error
    assert not (tmp_path / "run").exists()


def test_lpips_network_is_the_one_whose_features_are_compared(
    pipeline, large_images, run, tmp_path, monkeypatch
):
    used = set()

    class Named(perceptual.LPIPS):
        def __init__(self, trunk):
            super().__init__(trunk)
            self.trunk = trunk

        def forward(self, images, others):
            used.add(self.trunk)
            return super().forward(images, others)

    monkeypatch.setattr(finetune_decoder, "load_lpips", Named)  # needs no weights
    given = ["--vqvae", pipeline, "--data", large_images, "--out", tmp_path / "run"]
    code, _, error = run("finetune-decoder", *given, "--lpips-network alexnet", *SHORT)
    assert code == 0, error
    assert used == {"alexnet"}


@pytest.mark.parametrize(("start", "warns"), [(2, True), (1, False)])
def test_a_run_that_ends_before_its_discriminator_judges_is_told(
    pipeline, large_images, run, tmp_path, start, warns
):
    given = ["--vqvae", pipeline, "--data", large_images, "--out", tmp_path / "run"]
    options = ("--lpips-weight", "0", *SHORT, "--adversary.start", start)
    code, told, _ = run("finetune-decoder", *given, *options)
    assert code == 0
    assert ("the run of 3 steps ended before its discriminator took part" in told) == warns
