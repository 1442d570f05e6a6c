"""Presets, and the recipe from images to a pipeline."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.models import SMALL_TOP, SMALL_VQVAE

from vqvae2_fast import load, preset, preset_names
from vqvae2_fast.console import Progress
from vqvae2_fast.data import ImageTensorDataset
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.training import (
    Preset,
    PresetTraining,
    TrainConfig,
    Variants,
    train_pipeline,
)

TRAIN = TrainConfig(
    steps=4, batch_size=4, warmup_steps=1, average_decay=0.9, validate_every=4, save_every=2
)
PRIOR = replace(SMALL_TOP, size=(1, 1))
# Three levels, because nothing here may assume two.
TINY = Preset(
    replace(SMALL_VQVAE, strides=(2, 2, 2)),
    (
        PRIOR,
        replace(PRIOR, size=(2, 2), condition_sizes=((1, 1),)),
        replace(PRIOR, size=(4, 4), condition_sizes=((1, 1), (2, 2))),
    ),
    PresetTraining(TRAIN, (TRAIN, TRAIN, TRAIN), variants=Variants(flip=True, copies=1)),
)
QUIET = Progress(quiet=True)


def images(count: int, seed: int) -> ImageTensorDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageTensorDataset(pixels, torch.arange(count) % 2, ("even", "odd"))


trained = partial(train_pipeline, TINY, images(10, 0), images(5, 1), progress=QUIET)


def assert_equal(first: Pipeline, second: Pipeline) -> None:
    for one, other in zip(
        (first.vqvae, *first.priors), (second.vqvae, *second.priors), strict=True
    ):
        states = one.state_dict(), other.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_callers_generator_goes_on_as_before(tmp_path):
    state = torch.random.get_rng_state()
    trained(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_recipe_trains_a_pipeline_of_three_levels(tmp_path):
    result = trained(tmp_path)
    assert_equal(load(tmp_path / "pipeline", expect=Pipeline), result.pipeline)
    assert [prior.config.num_classes for prior in result.pipeline.priors] == [2, 2, 2]
    assert (len(result.codes), len(result.held_out_codes)) == (30, 5)  # mirrored, copied
    assert list(result.logs) == ["vqvae", "prior_top", "prior_middle", "prior_bottom"]
    assert all(log[-1]["step"] == 4 for log in result.logs.values())


def test_a_notebook_shows_the_pipeline_and_the_time_of_each_part(tmp_path):
    result = trained(tmp_path)
    assert result._repr_html_().startswith(result.pipeline._repr_html_())
    for name in ("vqvae", "codes", "prior_top", "prior_middle", "prior_bottom"):
        assert f'<td>{name}</td><td class="number">0:' in result._repr_html_()


@pytest.mark.parametrize("part", ["extract", "prior"])
def test_an_interrupted_recipe_ends_as_an_unbroken_one(part, tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:

        def fail(*arguments, **keywords):
            raise KeyboardInterrupt

        if part == "extract":
            patch.setattr("vqvae2_fast.training.recipe.extract_codes", fail)
        else:
            patch.setattr("vqvae2_fast.training.recipe.prior_stage", fail)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts")
    parts = trained(tmp_path / "parts", resume=True)
    assert_equal(whole.pipeline, parts.pipeline)
    assert [len(log) for log in whole.logs.values()] == [len(log) for log in parts.logs.values()]


def test_a_group_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "of_group", lambda: Ranks(0, 2))
    with pytest.raises(NotImplementedError, match="expected one process, .* got a group of 2"):
        trained(tmp_path)


def test_the_recipe_does_not_write_over_a_run(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="already. Continue it with resume, or name"):
        trained(tmp_path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_training_for_each_of_its_models(name):
    known = preset(name)
    assert len(known.training.priors) == len(known.priors) == known.vqvae.num_levels


def test_a_preset_needs_a_prior_and_a_training_for_each_level():
    with pytest.raises(ValueError, match="expected priors to be 3, one for each level .* got 2"):
        replace(TINY, priors=TINY.priors[:2])
    with pytest.raises(ValueError, match=r"training\.priors to have one entry .* 3 levels, got 1"):
        replace(TINY, training=PresetTraining(TRAIN, (TRAIN,)))


def test_a_preset_whose_prior_models_other_codes_is_refused():
    with pytest.raises(ValueError, match=r"expected priors\[2\] .* num_embeddings 8 .* 16"):
        replace(TINY, priors=(*TINY.priors[:2], replace(TINY.priors[2], num_embeddings=16)))


def test_a_scaled_training_warms_up_no_longer_than_it_runs():
    training = TINY.training.scaled(0.25)
    assert {(c.steps, c.warmup_steps) for c in (training.vqvae, *training.priors)} == {(1, 1)}
    assert TINY.training.scaled(2).vqvae == replace(TRAIN, steps=8)


def test_codebooks_of_a_scaled_preset_begin_at_the_same_part_of_it():
    waiting = replace(TINY, vqvae=replace(TINY.vqvae, quantize_after=8))
    assert waiting.scaled(0.25).vqvae.quantize_after == 2
    assert waiting.scaled(0.25).training == TINY.training.scaled(0.25)
    assert waiting.scaled(3).vqvae.quantize_after == 8
