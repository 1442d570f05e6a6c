"""`vq2.train` and its command on small images and models, in seconds."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import SMALL_TOP, SMALL_VQVAE
from PIL import Image

import vqvae2_fast as vq2
from vqvae2_fast.checkpoints.locate import latest, step_of
from vqvae2_fast.cli import main
from vqvae2_fast.console import Progress
from vqvae2_fast.data.images import ImageTensorDataset
from vqvae2_fast.pipeline_training import plan, result, training
from vqvae2_fast.report.pipeline import DrawnImages
from vqvae2_fast.training import (
    Preset,
    PresetTraining,
    TrainConfig,
    Variants,
    recipe,
    timed,
)
from vqvae2_fast.training.cost import StepCost

TRAIN = TrainConfig(batch_size=4, precision="float32")
PRIOR = replace(SMALL_TOP, size=(4, 4))
TINY = Preset(
    replace(SMALL_VQVAE, image_size=(16, 16), strides=(2, 2)),
    (PRIOR, replace(PRIOR, size=(8, 8), condition_sizes=((4, 4),))),
    PresetTraining(TRAIN, (TRAIN, TRAIN), variants=Variants(copies=1)),
)
QUIET = Progress(quiet=True)


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    """Models of 16x16 images, whose steps take 0.4 s by a clock that goes on when it is read."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.2 * next(ticks))
    for module in (plan, result, training):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(timed, "time", clock)
    monkeypatch.setattr("vqvae2_fast.training.loop.time", clock)
    for module in (timed, result):
        monkeypatch.setattr(module, "measure_step", lambda stage, config: StepCost(0.4, 0, 0))
    monkeypatch.setattr(plan, "_LEAST_STEPS", 10)
    monkeypatch.setattr(plan, "_MOST_PASSES", {"prior_top": 1000, "prior_bottom": 1000})

    def fitting(image_shape, images, *, flip=False):
        vqvae = replace(TINY.vqvae, image_channels=image_shape[0])
        return "tiny", replace(TINY, vqvae=vqvae, training=replace(TINY.training, flip=flip))

    monkeypatch.setattr(training, "fitting_preset", fitting)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, *shape), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """60 images of two classes, 16x16."""
    for number, image in enumerate(pixels(60, 16, 16, 3)):
        path = tmp_path / "images" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def steps(out) -> dict[str, int]:
    return {run: step_of(latest(out / run)) for run in ("vqvae", "prior_top", "prior_bottom")}


def test_the_command_leaves_a_pipeline_and_a_report(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", str(folder), "--out", str(out), "--minutes", "1", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert vq2.load(out / "pipeline").class_names == ("cat", "dog")
    html = (out / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 5
    assert str(out / "report.html") in told
    assert "a small classifier of the training images puts" in told


def test_a_classifier_reads_what_was_drawn(tmp_path):
    """Black and white images are told apart by everybody, so that a class of black samples is."""
    white = torch.arange(60) % 2
    images = (255 * white).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    real = ImageTensorDataset(images.contiguous(), white, ("black", "white"))
    drawn = DrawnImages(torch.full((6, 3, 16, 16), -1.0), [0, 0, 0, 1, 1, 1], real.class_names)
    found, words = result.read_as_their_classes(
        drawn, real, real, 40.0, device=torch.device("cpu"), seed=0, progress=QUIET
    )
    assert found["held_out"]["top1"] == 1
    assert found["drawn"]["by_class"] == [1, 0]
    assert words[1].startswith("Not read as what they are: white.")


def test_runs_share_the_time_until_their_deadline(monkeypatch, tmp_path):
    now = 0.0
    monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: now))
    budget = timed.TimeBudget(
        deadline=110.0,
        step_seconds={"vqvae": 0.5, "prior_top": 0.25, "prior_bottom": 1.0},
        shares={"vqvae": 0.4, "prior_top": 0.2, "prior_bottom": 0.4},
        most_steps={"prior_bottom": 25},
        between=10.0,
    )
    assert budget.seconds_of(tmp_path, "vqvae") == pytest.approx(40)
    settings, corrected = budget.planned(tmp_path, "vqvae", TrainConfig())
    assert settings.steps == 78  # 40 s less a thirtieth, at 0.5 s
    now = 20.0
    assert corrected(20) == 38  # 20 s a step took 1 s, so 18.8 s are left for 18
    now = 50.0
    assert budget.seconds_of(tmp_path, "prior_top") == pytest.approx(20)
    now = 80.0
    assert budget.seconds_of(tmp_path, "prior_bottom") == pytest.approx(30)
    assert budget.planned(tmp_path, "prior_bottom", TrainConfig())[0].steps == 25


def test_a_finished_training_is_not_repeated_and_more_minutes_train_the_priors(folder, tmp_path):
    out = tmp_path / "out"
    vq2.train(folder, 1, out=out, progress=QUIET)
    before = steps(out)
    vq2.train(folder, 1, out=out, progress=QUIET)
    assert steps(out) == before
    vq2.train(folder, 2, out=out, progress=QUIET)
    after = steps(out)
    assert after["vqvae"] == before["vqvae"]
    assert after["prior_top"] > before["prior_top"]
    assert after["prior_bottom"] > before["prior_bottom"]


def test_an_interrupted_training_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vqvae2_fast.training.recipe.prior_stage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vq2.train(folder, 1, out=out, progress=QUIET)
    before = (out / "vqvae" / "log.jsonl").read_bytes()
    vq2.train(folder, 1, out=out, progress=QUIET)
    assert (out / "vqvae" / "log.jsonl").read_bytes() == before
    assert (out / "report.html").exists()


def test_a_folder_that_was_begun_otherwise_is_refused(folder, tmp_path):
    begun = {"size": 16, "flip": False, "seed": 0}
    (tmp_path / "plan.json").write_text(json.dumps(begun))
    with pytest.raises(ValueError, match=r"flip: expected False, with which .* got True"):
        vq2.train(folder, 1, out=tmp_path, flip=True, progress=QUIET)


def test_images_without_classes_may_be_a_tensor(tmp_path):
    images = torch.from_numpy(pixels(60, 1, 16, 16))
    trained = vq2.train(images, 1, out=tmp_path / "out", progress=QUIET)
    assert trained.pipeline.num_classes == 0
    assert trained.vqvae.config.image_channels == 1


def test_too_few_minutes_are_refused_before_anything_is_trained(folder, tmp_path):
    with pytest.raises(ValueError, match=r"minutes: expected \S+ or more, .* got 0\.1"):
        vq2.train(folder, 0.1, out=tmp_path / "out", progress=QUIET)
    assert not (tmp_path / "out").exists()


def test_too_little_disk_is_refused_before_anything_is_trained(folder, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=5 * 2**10)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"out: expected \S+ MiB free .* got 0\.0 MiB"):
        vq2.train(folder, 1, out=tmp_path / "new" / "out", progress=QUIET)
    assert not (tmp_path / "new" / "out" / "vqvae").exists()


def test_a_picture_shows_what_was_learnt_until_the_report_does(folder, tmp_path, monkeypatch):
    sheet, sizes = tmp_path / "out" / training.SO_FAR, []

    def look_then(call):
        def looked(*arguments, **keywords):
            with Image.open(sheet) as image:
                sizes.append(image.size)
            return call(*arguments, **keywords)

        return looked

    monkeypatch.setattr(recipe, "extract_codes", look_then(recipe.extract_codes))
    monkeypatch.setattr(training, "finish", look_then(training.finish))
    vq2.train(folder, 1, out=tmp_path / "out", progress=QUIET)
    assert len(set(sizes)) == 2, "reconstructions by the VQ-VAE, and then drawn images"
    assert not sheet.exists()
