"""Words beside the classes of a draw: which are refused, and that all engines add them alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import DRAWING_RULES, prior_inputs, tiny_pipeline, tiny_prior
from helpers.near_tie import assert_near_tie

from vqvae2_fast.codec import encode_codes
from vqvae2_fast.modules.gated import GatedResidual
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import (
    Pipeline,
    calibrate,
    sample_codes,
    sample_images,
    sample_levels,
    teacher_forced_logits,
    with_words,
)
from vqvae2_fast.sampling.request import EngineError
from vqvae2_fast.sampling.words import word_numbers

NAMES = ("beard=full", "glasses=any", "glasses=none", "glasses=round")
ENGINES = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(_native.module is None, reason="there is no compiled module"),
    ),
    "eager",
    "reference",
]
KIND = {"num_classes": 2, "num_words": 4, "condition_sizes": ((2, 3),)}


def pipeline_with_words(**top) -> Pipeline:
    """Two classes and four words; the top prior may have others."""
    made = replace(tiny_pipeline(2, words=NAMES), class_names=("lorelei", "gaze"))
    if not top:
        return made
    other = tiny_prior(size=(4, 4), **{"num_classes": 2, "num_words": 4, **top})
    return replace(made, priors=[other, made.priors[1]])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draw_with_words_is_that_of_a_class_whose_row_is_the_sum(engine):
    prior = tiny_prior(**KIND)
    inputs = prior_inputs(prior, 2)
    codes, maps = inputs["codes"], inputs["condition"]
    told = torch.tensor([[1, 3, 6], [1, 3, 6]])
    own = teacher_forced_logits(prior, codes, condition=maps, labels=told, engine=engine)
    with torch.no_grad():
        for layer in prior.modules():
            if isinstance(layer, GatedResidual) and layer.classes is not None:
                rows = layer.classes.weight
                rows[0] = rows[1] + rows[3] + rows[6]
    classes = torch.tensor([0, 0])
    expected = teacher_forced_logits(prior, codes, condition=maps, labels=classes, engine=engine)
    assert torch.equal(own, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", DRAWING_RULES, ids=str)
def test_engines_draw_with_words_as_the_reference_does(engine, rule):
    prior = tiny_prior(**KIND)
    labels = torch.tensor([[1, 3, -1], [0, 4, 6], [2, -1, -1]])
    context = {"condition": prior_inputs(prior, 3)["condition"], "labels": labels}
    codes = sample_codes(prior, 3, seed=5, engine=engine, **context, **rule)
    assert_near_tie(prior, codes, seed=5, engine=engine, **context, **rule)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_class_without_words_is_drawn_as_before(engine):
    prior = tiny_prior(**KIND)
    inputs = prior_inputs(prior, 2)
    codes, maps, classes = inputs["codes"], inputs["condition"], torch.tensor([1, 0])
    bare = torch.tensor([[1, -1], [0, -1]])
    own, expected = (
        teacher_forced_logits(prior, codes, condition=maps, labels=labels, engine=engine)
        for labels in (bare, classes)
    )
    assert torch.equal(own, expected)


@pytest.mark.filterwarnings("ignore:engine cpu_w8a8")  # of inputs beyond so small a calibration
@pytest.mark.skipif(_native.module is None, reason="there is no compiled module")
def test_int8_draws_with_words_as_with_the_class_of_the_sum():
    prior = tiny_prior(**KIND)
    inputs = prior_inputs(prior, 4)
    with torch.no_grad():
        for layer in prior.modules():
            if isinstance(layer, GatedResidual) and layer.classes is not None:
                rows = layer.classes.weight
                rows[0] = rows[1] + rows[3] + rows[6]
    calibrate(prior, [(inputs["codes"], inputs["condition"], torch.tensor([0, 1, 0, 1]))])
    own, expected = (
        sample_codes(prior, 4, condition=inputs["condition"], labels=labels, engine="cpu_w8a8")
        for labels in (torch.tensor([[1, 3, 6]] * 4), torch.tensor([0] * 4))
    )
    assert torch.equal(own, expected)


def test_engine_cuda_refuses_words_by_name():
    prior = tiny_prior(num_classes=2, num_words=4)
    with pytest.raises(EngineError, match="engine cuda: it draws from labels without words only"):
        sample_codes(prior, 1, labels=torch.tensor([[0, 3]]), engine="cuda")


def test_each_level_counts_words_after_its_own_labels():
    pipeline = pipeline_with_words(num_variants=1)
    labels = with_words(pipeline, ["gaze"] * 2, ["glasses=any"])
    assert labels.tolist() == [[1, 4], [1, 4]]
    top = sample_levels(pipeline, 2, labels=labels)[0]
    own = torch.tensor([[1, 3 + 3 + 1]] * 2)  # after classes, none, and those of the variant
    assert torch.equal(top, sample_codes(pipeline.priors[0], 2, labels=own))


def test_a_level_without_words_is_told_the_class():
    pipeline = pipeline_with_words(num_words=0)
    labels = with_words(pipeline, ["gaze"] * 2, ["glasses=any"])
    top = sample_levels(pipeline, 2, labels=labels)[0]
    assert torch.equal(top, sample_codes(pipeline.priors[0], 2, labels=torch.tensor([1, 1])))


def test_words_change_the_images():
    pipeline = pipeline_with_words()
    labels = with_words(pipeline, ["gaze"] * 2, ["glasses=round"])
    with_them, without = (sample_images(pipeline, 2, labels=x) for x in (labels, labels[:, 0]))
    assert not torch.equal(with_them, without)


def test_words_are_added_in_one_order():
    assert word_numbers(["glasses=round", "beard=full"], NAMES) == [0, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["glases=any"], "words part=value of the parts beard, glasses, got glases=any. Perhaps"),
        (["glasses=rond"], "words glasses=any, .* got glasses=rond. Perhaps you meant glasses=rou"),
        (["glasses"], "expected words glasses=any, glasses=none, glasses=round, got glasses"),
        (["glasses=any", "glasses=none"], "one value of glasses, .* contradict one another"),
        ("glasses=any", "expected words to be a list"),
    ],
)
def test_words_that_cannot_be_told_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        word_numbers(words, NAMES)


def test_a_pipeline_without_words_says_so():
    with pytest.raises(ValueError, match="expected no words: the priors have none, got x=y"):
        with_words(tiny_pipeline(), [0], ["x=y"])
    with pytest.raises(ValueError, match="labels without words: the priors have none"):
        sample_images(tiny_pipeline(), 1, labels=torch.tensor([[0, 4]]))


def test_words_need_a_class():
    with pytest.raises(ValueError, match="expected a class with the words glasses=any"):
        with_words(pipeline_with_words(), ["none"], ["glasses=any"])


def test_numbers_that_are_no_words_are_refused():
    with pytest.raises(ValueError, match=r"expected words in 3\.\.6"):
        sample_images(pipeline_with_words(), 1, labels=torch.tensor([[0, 7]]))


def test_priors_of_other_words_make_no_pipeline():
    with pytest.raises(ValueError, match="the same words or none, got 3 and 4 words"):
        pipeline_with_words(num_words=3)


@pytest.mark.skipif(_native.module is None, reason="there is no compiled module")
def test_compressed_files_hold_no_words():
    pipeline = pipeline_with_words()
    maps = sample_levels(pipeline, 1, labels=["gaze"])
    labels = with_words(pipeline, ["gaze"], ["glasses=any"])
    with pytest.raises(ValueError, match=r"expected labels \[1\], got \[1, 2\]"):
        encode_codes(pipeline, maps, labels=labels)
