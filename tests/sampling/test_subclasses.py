"""Hidden parts of classes: which part a sample is of, and what the priors are told of it."""

from types import SimpleNamespace

import pytest
import torch
from helpers.models import tiny_prior
from helpers.near_tie import assert_near_tie

from vqvae2_fast.sampling import Pipeline, interface_of, sample_codes, sample_levels
from vqvae2_fast.sampling.subclasses import subclass_labels

CLASSES, PARTS = 3, 5
KIND = {"num_classes": CLASSES, "num_subclasses": PARTS}


def parts_of(labels, samples, seed=0, known=()):
    return subclass_labels(
        interface_of(tiny_prior(**KIND)), labels, samples, seed=seed, known=known
    )


def pipeline_of(**bottom):
    top = tiny_prior(0, size=(2, 3), **KIND)
    of_top = {"size": (4, 6), "condition_sizes": ((2, 3),)}
    return Pipeline(SimpleNamespace(decode=list), [top, tiny_prior(1, **of_top, **bottom)])


@pytest.mark.parametrize("label", range(CLASSES))
def test_each_part_of_the_class_is_as_likely(label):
    told = parts_of(torch.full((4000,), label), torch.arange(4000))
    first = CLASSES + 1 + label * PARTS
    counts = torch.bincount(told - first, minlength=PARTS)
    assert len(counts) == PARTS
    assert (counts - 800).abs().max() < 100  # four standard deviations


def test_the_part_is_a_function_of_seed_and_sample():
    labels, samples = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    together = parts_of(labels, samples, seed=4)
    alone = [parts_of(labels[:1], samples[n : n + 1], seed=4) for n in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, parts_of(labels, samples, seed=5))


def test_no_class_and_a_part_stay_as_they_are():
    labels = torch.tensor([CLASSES, CLASSES + 1, CLASSES + CLASSES * PARTS])
    assert torch.equal(parts_of(labels, torch.arange(3)), labels)


def test_a_sample_with_known_codes_keeps_its_class():
    known = torch.full((3, 2, 2), -1)
    known[1, 0, 0] = 4
    told = parts_of(torch.tensor([0, 1, 2]), torch.arange(3), known=[None, known])
    assert (told > CLASSES).tolist() == [True, False, True]
    assert told[1] == 1


@pytest.mark.parametrize(
    "bottom", [KIND, {"num_classes": CLASSES}, {}], ids=["parts", "classes", ""]
)
def test_a_pipeline_draws_the_part_at_every_level_that_knows_it(bottom):
    pipeline, labels = pipeline_of(**bottom), torch.tensor([2, 0, 1, 3])
    maps = sample_levels(pipeline, 4, labels=labels, seed=3, first_sample=7)
    told = parts_of(labels, torch.arange(7, 11), seed=3)
    of_bottom = {KIND["num_subclasses"]: told, 0: labels}[bottom.get("num_subclasses", 0)]
    draw = {"seed": 3, "first_sample": 7}
    top = sample_codes(pipeline.priors[0], 4, labels=told, **draw)
    expected = sample_codes(
        pipeline.priors[1],
        4,
        labels=of_bottom if bottom else None,
        condition=[top],
        stream=1,
        **draw,
    )
    assert torch.equal(maps[0], top)
    assert torch.equal(maps[1], expected)


@pytest.mark.parametrize("engine", ["eager", "cpu"])
def test_engines_draw_what_the_prior_says_of_a_part(engine):
    prior, labels = tiny_prior(**KIND), torch.tensor([0, 3, 4, 11, CLASSES + CLASSES * PARTS])
    draw = {"labels": labels, "guidance_scale": 2.0, "seed": 1}
    codes = sample_codes(prior, len(labels), engine=engine, **draw)
    assert_near_tie(prior, codes, engine=engine, **draw)


def test_a_negative_label_is_refused_and_no_part():
    with pytest.raises(ValueError, match="labels in 0..18, got values in -1"):
        sample_levels(pipeline_of(**KIND), 1, labels=torch.tensor([-1]))


def test_levels_with_different_parts_are_no_pipeline():
    with pytest.raises(ValueError, match=r"\(num_subclasses\) or none, got 4 and 5"):
        pipeline_of(num_classes=CLASSES, num_subclasses=4)
