"""`sample_images`: levels chained, each with its own noise stream."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from helpers.models import tiny_pipeline, tiny_prior

from vqvae2_fast.sampling import (
    Pipeline,
    sample_codes,
    sample_images,
    sample_levels,
)
from vqvae2_fast.sampling.labels import class_number, class_numbers


@dataclass
class Decoder:
    """Keeps the codes it gets; returns an image that leaves [-1, 1]."""

    seen: list = field(default_factory=list)

    def decode(self, codes):
        self.seen = codes
        return codes[-1][:, None].float() - 6


def levels(num_classes=0):
    top = tiny_prior(0, size=(2, 3), num_classes=num_classes)
    middle = tiny_prior(1, size=(2, 6), condition_sizes=((2, 3),))
    bottom = tiny_prior(
        2, size=(4, 6), condition_sizes=((2, 3), (2, 6)), attention=False, num_classes=num_classes
    )
    return [top, middle, bottom]


def test_each_level_draws_its_stream_given_all_levels_before():
    decoder, priors = Decoder(), levels()
    sample_images(Pipeline(decoder, priors), 1, seed=3, first_sample=5)
    maps = []
    for level, prior in enumerate(priors):
        maps.append(sample_codes(prior, 1, condition=maps, seed=3, first_sample=5, stream=level))
    assert all(torch.equal(a, b) for a, b in zip(decoder.seen, maps, strict=True))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_compiled_prior_draws_what_its_original_does(engine):
    prior = tiny_prior(0, size=(2, 3))
    compiled = torch.compile(prior, backend="eager")
    drawn = sample_codes(compiled, 2, engine=engine)
    assert torch.equal(drawn, sample_codes(prior, 2, engine=engine))


def test_images_are_decoded_one_at_a_time():
    # PyTorch's convolutions of a batch may add in another order than those of one image.
    decoder = Decoder()
    images = sample_images(Pipeline(decoder, levels()), 3)
    assert len(images) == 3
    assert {len(codes) for codes in decoder.seen} == {1}


def test_images_are_clamped_to_their_range():
    images = sample_images(Pipeline(Decoder(), levels()), 2)
    assert images.shape == (2, 1, 4, 6)
    assert images.min() >= -1
    assert images.max() <= 1


def test_settings_are_one_for_all_or_one_per_level():
    pipeline = Pipeline(Decoder(), levels())
    greedy = sample_levels(pipeline, 1, temperature=0.0)
    mixed = sample_levels(pipeline, 1, temperature=[0.0, 0.0, 1.0], seed=4)
    assert torch.equal(mixed[0], greedy[0])
    assert torch.equal(mixed[1], greedy[1])
    assert not torch.equal(mixed[2], greedy[2])


def test_labels_reach_every_level_with_classes():
    pipeline = Pipeline(Decoder(), levels(num_classes=3))
    first = sample_levels(pipeline, 4, labels=torch.zeros(4, dtype=torch.int64))
    same_top = [first[0], first[1], torch.full_like(first[2], -1)]
    other = sample_levels(pipeline, 4, labels=torch.ones(4, dtype=torch.int64), known=same_top)
    assert torch.equal(other[1], first[1])
    assert not torch.equal(other[2], first[2])


def test_known_codes_are_per_level():
    pipeline = Pipeline(Decoder(), levels())
    known = torch.full((1, 2, 6), -1)
    known[:, 0] = 5
    maps = sample_levels(pipeline, 1, known=[None, known, None])
    assert (maps[1][:, 0] == 5).all()


def test_progress_names_the_level():
    calls = []
    sample_images(Pipeline(Decoder(), levels()), 1, progress=lambda *call: calls.append(call))
    assert calls == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2), *((2, n, 4) for n in (1, 2, 3, 4))]


def test_priors_that_do_not_chain_are_an_error():
    with pytest.raises(
        ValueError, match=r"expected priors\[1\] to be a prior of .* sizes 2x3, .*got one"
    ):
        Pipeline(Decoder(), [levels()[0], levels()[2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": [1.0, 1.0]}, "temperature to be one value or 3, .* got 2"),
        ({"known": [None]}, "known to be a list of 3 maps or None, .* got 1"),
        ({"seed": [1, 2, 3]}, r"seed to be one integer for all levels, got \[1, 2, 3\]"),
        ({"labels": torch.tensor([0])}, "no labels: no prior has classes"),
        ({"guidance_scale": 2.0}, "guidance_scale=1: no prior has classes, got 2.0"),
    ],
)
def test_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        sample_images(Pipeline(Decoder(), levels()), 1, **arguments)


def test_labels_are_taken_by_number_and_by_name():
    pipeline = replace(tiny_pipeline(3), class_names=("cat", "cow", "dog"))
    by_number = sample_images(pipeline, 3, labels=torch.tensor([0, 2, 3]))
    for labels in ([0, 2, 3], ["cat", "dog", None], ("CAT", "d", "none"), [0, "2", 3]):
        assert torch.equal(sample_images(pipeline, 3, labels=labels), by_number)


def test_a_name_wins_over_a_number():
    assert class_number("10", 3, ("1", "10", "2")) == 1
    assert class_number("0", 3, ("1", "10", "2")) == 0


def test_a_group_stands_for_all_its_classes():
    names = ("Food - fruit", "Flags", "Food - drink")
    assert class_numbers("food", 3, names) == [0, 2]
    assert class_numbers("foo", 3, names) == [0, 2]
    assert class_numbers("food - d", 3, names) == [2]
    assert class_numbers("flags", 3, names) == [1]
    assert class_numbers("none", 3, names) == [3]


def test_samples_of_a_group_get_its_classes_in_turn():
    pipeline = replace(tiny_pipeline(3), class_names=("Pet - cat", "Cow", "Pet - dog"))
    by_number = sample_images(pipeline, 5, labels=[0, 1, 2, 3, 0])
    by_group = sample_images(pipeline, 5, labels=["pet", "cow", "pet", None, "pet"])
    assert torch.equal(by_group, by_number)


def test_a_number_and_no_class_go_before_the_beginning_of_a_group():
    assert class_numbers("1", 2, ("10", "20")) == [1]
    assert class_numbers("none", 2, ("Nonet - a", "Nonet - b")) == [2]


def test_a_class_goes_before_a_group_of_its_name():
    assert class_numbers("flags", 2, ("Flags", "Flags - flag")) == [0]
    with pytest.raises(ValueError, match="'ab' is the beginning of Ab, aB"):
        class_numbers("ab", 2, ("Ab", "aB"))


def test_case_tells_names_apart_that_are_else_equal():
    assert class_numbers("cat", 2, ("Cat", "cat")) == [1]
    assert class_numbers("Cat", 3, ("Cat - 0", "cat - 0", "Cat - 1")) == [0, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["mouse"], "expected a label below 3 or the beginning .* got 'mouse'"),
        (["c"], "the label 'c' is the beginning of cat, cow"),
        ([4], "expected a label from 0 to 3, .* got 4"),
        ([True], "expected a label from 0 to 3, .* got True"),
        ({0}, r"expected labels to be a list, one per sample, got \{0\}: a set has no order"),
        ([0, 1], r"expected labels \[1\], got \[2\]"),
    ],
)
def test_bad_labels_are_named(labels, message):
    pipeline = replace(tiny_pipeline(3), class_names=("cat", "cow", "dog"))
    with pytest.raises(ValueError, match=message):
        sample_images(pipeline, 1, labels=labels)


@pytest.mark.parametrize("subclasses", [0, 2])
def test_labels_of_another_dtype_are_named(subclasses):
    classes = {"num_classes": 3, "num_subclasses": subclasses}
    pipeline = Pipeline(Decoder(), [tiny_prior(size=(2, 3), **classes)])
    message = r"^expected labels int64, got \[\d+\] bool"
    with pytest.raises(TypeError, match=message):
        sample_images(pipeline, 2, labels=torch.tensor([True, False]))


def test_priors_of_other_classes_are_an_error():
    three, four = tiny_pipeline(3), tiny_pipeline(4)
    with pytest.raises(ValueError, match="the same classes or of none, got 3 .* and 4 "):
        replace(three, priors=[three.priors[0], four.priors[1]])
    for prior, names in zip(three.priors, ("abc", "acb"), strict=True):
        prior.class_names = tuple(names)
    with pytest.raises(ValueError, match=r"got 3 \(a, b, c\) and 3 \(a, c, b\): a label would"):
        replace(three)
    unconditional = tiny_pipeline(0)
    assert replace(three, priors=[three.priors[0], unconditional.priors[1]]).num_classes == 3


@pytest.mark.parametrize(
    ("recommended", "message"),
    [
        ({"seed": 3}, "recommended to name some of temperature, .*, got seed"),
        ({"temperature": [1.0]}, "temperature to be one value or 2"),
    ],
)
def test_a_recommended_setting_that_is_none_is_an_error(recommended, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny_pipeline(3), recommended=recommended)


def test_a_pipeline_moves_and_changes_mode_as_a_module_does():
    pipeline = tiny_pipeline()
    modules = [pipeline.vqvae, *pipeline.priors]
    assert pipeline.train() is pipeline and all(module.training for module in modules)
    assert pipeline.eval() is pipeline and not any(module.training for module in modules)
    assert pipeline.to("meta") is pipeline
    assert {parameter.device.type for m in modules for parameter in m.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"vqvae": p.priors[0]}, r"vqvae to be a model with decode\(codes\)"),
        (lambda p: {"priors": p.priors[0]}, "priors to be a list"),
        (lambda p: {"priors": [p.priors[0], p.vqvae]}, "draw from a VQ"),
        (lambda p: {"priors": p.priors[:1]}, "priors to be 2, .* got 1"),
        (lambda p: {"class_names": "cat"}, "class_names to be a list .* got 'cat'"),
        (lambda p: {"class_names": ("cat", "dog")}, "class_names of 3 names, .* got 2"),
    ],
)
def test_parts_that_are_no_pipeline_are_refused(change, message):
    pipeline = tiny_pipeline(3)
    with pytest.raises((TypeError, ValueError), match=message):
        replace(pipeline, **change(pipeline))
