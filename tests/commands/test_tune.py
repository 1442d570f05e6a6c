"""`vqvae2-fast tune`: the search, and what it leaves."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.checkpoints import load
from vqvae2_fast.commands import tune
from vqvae2_fast.data import load_emoji
from vqvae2_fast.data.images import ImageSubset
from vqvae2_fast.sampling.pipeline import Pipeline


@pytest.mark.parametrize("option", ["--classifier", "--inception-weights"])
def test_what_the_features_do_not_use_is_refused(option, error_of):
    text = error_of(["tune", "--preset", "emoji32", "--features", "efficientnet", option, "file"])
    assert f"{option}: expected --features" in text


class Pixels:
    """In place of a network: coarse pixels as features."""

    name = "pixels"

    def __call__(self, images):
        return SimpleNamespace(features=F.avg_pool2d(images, 8).flatten(1))


@pytest.fixture
def drawn(monkeypatch):
    """Samples that are real images with as much noise as the settings are away from the best ones;
    settings with guidance at the top repeat a few exact images."""
    train = load_emoji("train", subcategories=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train), generator=generator)[:200]
    real = torch.stack([train[int(i)][0] for i in order]).float() / 127.5 - 1
    calls = []

    def sample(pipeline, count, *, first_sample, temperature, guidance_scale, top_p, **rest):
        calls.append((temperature, guidance_scale, top_p))
        rows = torch.arange(first_sample, first_sample + count)
        if guidance_scale[0] > 1:
            return real[rows % 6]
        away = abs(temperature[1] - 0.8) + abs(top_p[0] - 0.9)
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
        return (real * (1 - away) + away * noise)[rows]

    monkeypatch.setattr(tune, "sample_images", sample)
    monkeypatch.setattr(tune, "open_features", lambda *_, **__: Pixels())
    return calls


IMAGES = ("--data", "emoji:subcategories")
ARGUMENTS = ("tune", "--preset", "emoji32", *IMAGES, "--images", "200", "--quiet")
VALUES = ["--temperature", "0.9", "0.8", "0.6", "--guidance-scale", "2", "--top-p", "0.9"]


def test_the_nearest_settings_that_keep_the_recall_are_recommended(drawn, run, tmp_path):
    out = tmp_path / "tuned"
    code, told, _ = run(*ARGUMENTS, *VALUES, "--out", out)
    assert code == 0
    pipeline = load(out / "pipeline", expect=Pipeline)
    assert pipeline.recommended == {"temperature": [1.0, 0.8], "top_p": [0.9, 1.0]}
    assert "temperature bottom 0.8, top p top 0.9" in told
    found = json.loads((out / "tuning.json").read_text())
    assert found["best"]["distance"] < found["plain"]["distance"]
    trials = {json.dumps(one["settings"]): one for one in found["trials"]}
    assert len(trials) == 1 + 2 * 3 + 2 * 1 + 2 * 1
    assert any(one["recall"] < 0.8 * found["plain"]["recall"] for one in trials.values())


@pytest.mark.parametrize(
    ("recall", "keep", "warned"),
    [
        (0.12, 0.8, "24 of 200 images. Among so few, chance"),
        (0, 0.8, "0 of 200 images. All settings have a share of nothing"),
        (0.125, 0.8, None),
        (0.12, 0, None),
        (0, 0, None),
    ],
)
def test_a_recall_of_few_images_is_warned_of(
    drawn, run, tmp_path, monkeypatch, recwarn, recall, keep, warned
):
    shares = SimpleNamespace(value=recall)
    found = SimpleNamespace(precision=shares, recall=shares)
    monkeypatch.setattr(tune, "neighbour_measures", lambda *_: found)
    assert run(*ARGUMENTS, *VALUES, "--keep-recall", str(keep), "--out", tmp_path)[0] == 0
    said = [str(one.message) for one in recwarn]
    told = [one for one in said if "the plain settings recall" in one]
    assert len(told) == (warned is not None)
    assert all(warned in one for one in told)


def test_recall_may_be_given_up(drawn, run, tmp_path):
    code, _, _ = run(*ARGUMENTS, *VALUES, "--keep-recall", "0", "--out", tmp_path)
    assert code == 0
    best = json.loads((tmp_path / "tuning.json").read_text())["best"]
    assert best["distance"] == min(
        one["distance"] for one in json.loads((tmp_path / "tuning.json").read_text())["trials"]
    )


def test_fewer_images_than_a_distance_can_bear(run, tmp_path):
    arguments = [*ARGUMENTS[:-3], "--images", "199", "--out", tmp_path]
    code, _, error = run(*arguments)
    assert code == 2
    assert "--images: expected 200 to 2819, the number of training images, got 199" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "0"], "top_p"),
        (["--temperature", "0.9", "-1"], "temperature"),
        (["--keep-recall", "nan"], "--keep-recall: expected a share from 0 to 1, got nan"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_drawn(
    run, tmp_path, options, message
):
    code, _, error = run(*ARGUMENTS[:-3], *options, "--out", tmp_path)
    assert code == 2
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_pipeline_is_refused_before_anything_is_drawn(run, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "notes.txt").write_text("mine")
    code, _, error = run(*ARGUMENTS[:-3], "--out", tmp_path)
    assert code == 2
    assert "exists and is not a checkpoint" in error


def small_set(monkeypatch, number):
    """Has `tune` open a set of so many training images."""
    images = ImageSubset(load_emoji("train", subcategories=True), torch.arange(number))
    monkeypatch.setattr(tune, "open_images", lambda *_, **__: images)


def test_all_images_of_a_small_set_are_compared_by_default(drawn, run, tmp_path, monkeypatch):
    small_set(monkeypatch, 200)
    values = ["--temperature", "0.9", "--guidance-scale", "2", "--top-p", "0.9"]
    assert run(*ARGUMENTS[:-3], *values, "--quiet", "--out", tmp_path)[0] == 0
    assert json.loads((tmp_path / "tuning.json").read_text())["images"] == 200


def test_the_table_is_not_replaced_before_the_pipeline(drawn, run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "cannot write: No space left on device")

    (tmp_path / "tuning.json").write_text("{}")
    monkeypatch.setattr(tune, "save", full)
    values = ["--temperature", "0.9", "--guidance-scale", "2", "--top-p", "0.9"]
    code, _, error = run(*ARGUMENTS, *values, "--keep-recall", "0", "--out", tmp_path)
    assert code == 1
    assert "cannot write" in error
    assert (tmp_path / "tuning.json").read_text() == "{}"
