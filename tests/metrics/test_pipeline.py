"""All measures of a pipeline in one pass: each equals that of its own function; images stream."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast.data import ImageTensorDataset, in_order, to_float
from vqvae2_fast.data.images import ImageSubset
from vqvae2_fast.metrics import (
    CODECS,
    CodecCurve,
    codebook_use,
    evaluate_pipeline,
    marginal_entropy,
    prior_likelihood,
)
from vqvae2_fast.metrics import pipeline as module
from vqvae2_fast.metrics.reconstruction import reconstruction_measures
from vqvae2_fast.models.configs import VQVAE2Config


def images(count: int, seed: int = 0) -> ImageTensorDataset:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    pixels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return ImageTensorDataset(pixels, torch.arange(count) % 3, ("cat", "cow", "dog"))


@pytest.fixture
def models():
    pipeline = tiny_pipeline()
    return pipeline.vqvae, list(pipeline.priors)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "_BATCH_PIXELS", 4 * 16 * 16)


def test_every_measure_is_that_of_its_own_function(models, small_batches):
    vqvae, priors = models
    held_out, train_set = images(10), images(6, seed=1)
    found = evaluate_pipeline(vqvae, priors, held_out, train_set=train_set, codec_images=3)
    batches = [batch for batch, _ in in_order(held_out, 4)]
    assert found.images == 10
    assert found.reconstruction.mse == pytest.approx(reconstruction_measures(vqvae, batches).mse)
    assert found.reconstruction.ssim == pytest.approx(
        reconstruction_measures(vqvae, batches).ssim, rel=1e-5
    )
    with torch.no_grad():
        codes = [(vqvae.encode(batch), labels) for batch, labels in in_order(held_out, 4)]
        train_codes = [(vqvae.encode(batch), labels) for batch, labels in in_order(train_set, 4)]
    for level, own in enumerate(found.levels.values()):
        expected = prior_likelihood(priors[level], codes, level)
        assert own.nats_per_code == pytest.approx(expected.nats_per_code)
        assert own.bits_per_image == pytest.approx(expected.bits_per_image)
        maps = [batch[level] for batch, _ in codes]
        use = codebook_use(maps, 13)
        assert (own.codes_used, own.perplexity) == (use.used, use.perplexity)
        assert own.marginal_bits_per_code == pytest.approx(marginal_entropy(maps, 13))
        trained = prior_likelihood(priors[level], train_codes, level)
        assert own.overfitting_gap == pytest.approx(own.nats_per_code - trained.nats_per_code)
    for name, codec in CODECS.items():
        if not codec.available():
            continue
        curve = CodecCurve(codec)
        curve.add(held_out.images[[0, 4, 9]])  # three of ten, spread evenly
        for one, other in zip(found.curves[name], curve.points(), strict=True):
            assert one.file_bits_per_image == other.file_bits_per_image
            assert one.psnr == pytest.approx(other.psnr, nan_ok=True)


def test_dropout_of_models_in_training_mode_is_not_measured(small_batches):
    pipeline = tiny_pipeline()
    dropping = [type(prior)(replace(prior.config, dropout=0.5)) for prior in pipeline.priors]
    measured = [
        evaluate_pipeline(pipeline.vqvae, [prior.train(mode) for prior in dropping], images(6))
        for mode in (False, True)
    ]
    assert measured[0] == measured[1]
    assert all(prior.training for prior in dropping)


def test_images_are_read_once_and_one_batch_is_held_at_a_time(models, small_batches, monkeypatch):
    read, alive = [], []

    def watched(images, batch_size, **share):
        for batch, labels in in_order(images, batch_size, **share):
            read.append(len(batch))
            weakref.finalize(batch, read.append, -len(batch))
            alive.append(sum(read))
            yield batch, labels
            del batch

    monkeypatch.setattr(module, "in_order", watched)
    evaluate_pipeline(*models, images(64), codec_images=1)
    assert sum(count for count in read if count > 0) == 64
    assert max(alive) <= 8  # the previous batch is released when the next one is read


def test_the_batch_gets_smaller_with_the_images():
    sizes = {
        side: module.evaluation_batch(VQVAE2Config((side, side), strides=(4, 2)).image_size)
        for side in (32, 64, 256, 1024)
    }
    assert sizes == {32: 128, 64: 128, 256: 8, 1024: 1}


def test_what_was_not_asked_for_is_not_in_the_json(models):
    values = evaluate_pipeline(*models, images(3), codec_images=1).as_json()
    assert set(values) == {
        "images",
        "reconstruction",
        "levels",
        "bits_per_image",
        "marginal_bits_per_image",
        "bits_per_dim",
        "curves",
        *(name for name, codec in CODECS.items() if codec.available()),
    }
    assert "overfitting_gap" not in values["levels"]["top"]
    assert values["reconstruction"]["lpips"] is None  # asked for or not, the field is there
    assert values["webp"]["psnr"] is None  # no setting has so few bits


def test_no_images_and_no_images_for_codecs_are_refused(models):
    with pytest.raises(ValueError, match="at least one batch of images, got none"):
        evaluate_pipeline(*models, images(0))
    with pytest.raises(ValueError, match="expected codec_images .* got 0"):
        evaluate_pipeline(*models, images(3), codec_images=0)


def test_priors_of_other_levels_and_unknown_codecs_are_refused(models):
    vqvae, priors = models
    with pytest.raises(ValueError, match="expected priors to be 2, one for each level .* got 1"):
        evaluate_pipeline(vqvae, priors[:1], images(3))
    with pytest.raises(ValueError, match=r"expected priors\[0\] to be a prior of"):
        evaluate_pipeline(vqvae, priors[::-1], images(3))
    with pytest.raises(ValueError, match="expected codecs .* 'jxl', got 'png'"):
        evaluate_pipeline(*models, images(3), codecs=("png",))


def test_reconstructions_become_a_set_of_the_same_labels(models, tmp_path, small_batches):
    from vqvae2_fast.console import Progress

    vqvae, _ = models
    held_out = images(6)
    found = module.store_reconstructions(
        vqvae, held_out, tmp_path / "r.raw", Progress(quiet=True), "held_out"
    )
    assert found.labels.tolist() == held_out.labels.tolist()
    with torch.no_grad():
        expected = vqvae.decode(vqvae.encode(to_float(held_out.images[:4]))).clamp(-1, 1)
    ((stored, _),) = in_order(ImageSubset(found, torch.arange(4)), 4)
    assert (stored - expected).abs().max() <= 1 / 127.5
