"""Engines against the reference: the same logits, and the same codes by the near-tie rule."""

import pytest
import torch
from helpers.models import prior_inputs, tiny_configs, tiny_prior
from helpers.near_tie import assert_near_tie

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import sample_codes, teacher_forced_logits

CONFIGS = tiny_configs()
ENGINES = ["eager"] + ([] if _native.module is None else ["cpu"])
# Larger than `tiny_prior`, as a top and a bottom of the presets: two levels of a pipeline.
TOP = {
    "size": (8, 8),
    "num_embeddings": 64,
    "channels": 32,
    "residual_channels": 32,
    "kernel_size": 5,
    "num_heads": 4,
    "num_output_layers": 2,
    "num_classes": 5,
}
BOTTOM = {
    "size": (16, 12),
    "num_embeddings": 64,
    "channels": 32,
    "residual_channels": 32,
    "kernel_size": 5,
    "attention": False,
    "condition_sizes": ((4, 6), (8, 6)),
    "condition_channels": 16,
    "num_condition_layers": 2,
    "num_classes": 5,
}


def drawn(prior, inputs, engine, **arguments):
    batch = inputs["codes"].shape[0]
    return sample_codes(
        prior,
        batch,
        condition=inputs["condition"],
        labels=inputs["labels"],
        engine=engine,
        **arguments,
    )


def assert_same_draws(prior, inputs, engine, **arguments):
    codes = drawn(prior, inputs, engine, **arguments)
    return assert_near_tie(
        prior,
        codes,
        engine=engine,
        condition=inputs["condition"],
        labels=inputs["labels"],
        **arguments,
    )


def assert_logits_of_the_forward(prior, engine, batch_size=2):
    inputs = prior_inputs(prior, batch_size)
    logits = teacher_forced_logits(
        prior,
        inputs["codes"],
        condition=inputs["condition"],
        labels=inputs["labels"],
        engine=engine,
    )
    with torch.no_grad():
        expected = prior(inputs["codes"], inputs["condition"], inputs["labels"])
    # Both are float32 sums in different orders; the largest error seen was 1e-6 of the largest.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_full_forward(name, engine):
    assert_logits_of_the_forward(tiny_prior(**CONFIGS[name]), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_output_layers": 2},
        {"kernel_size": 5, "mask": "exclude"},
        {"kernel_size": 2, "mask": "downright"},
        {"kernel_size": 7, "mask": "down"},
        {"weight_norm": False},
        {"size": (1, 6)},
        {"size": (6, 1)},
        {"size": (5, 2)},
        {"num_blocks": 1, "layers_per_block": 1},
        {"size": (4, 6), "condition_sizes": ((4, 6),)},
        {"size": (4, 6), "condition_sizes": ((1, 1), (4, 3)), "num_condition_layers": 0},
    ],
    ids=str,
)
def test_logits_of_unusual_priors(changes, engine):
    assert_logits_of_the_forward(tiny_prior(**changes), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_after_a_change_of_the_weights(engine):
    prior = tiny_prior()
    assert_logits_of_the_forward(prior, engine)
    with torch.no_grad():
        prior.head.bias[3] += 1.0
    assert_logits_of_the_forward(prior, engine)
    # Autograd does not count versions of writes through .data.
    prior.blocks[0].layers[0].conv1.kernel.weight_g.data.mul_(1.5)
    assert_logits_of_the_forward(prior, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mask", ["exclude", "include", "down", "downright"])
@pytest.mark.parametrize("level", ["top", "bottom"])
def test_draws_are_the_references(level, mask, engine):
    prior = tiny_prior(mask=mask, **(TOP if level == "top" else BOTTOM))
    assert_same_draws(prior, prior_inputs(prior, 8), engine, seed=3, stream=1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("level", ["top", "bottom"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9},
        {"guidance_scale": 2.5},
        {"guidance_scale": 0.0},
        {"guidance_scale": 3.0, "temperature": 0.8, "top_k": 10},
    ],
    ids=str,
)
def test_draws_by_every_rule_are_the_references(level, arguments, engine):
    prior = tiny_prior(**(TOP if level == "top" else BOTTOM))
    assert_same_draws(prior, prior_inputs(prior, 4), engine, seed=1, **arguments)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name", ["include, attention, conditioned, classes", "exclude, no attention, alone"]
)
def test_maps_equal_those_drawn_one_full_forward_at_a_time(name, engine):
    # On these seeds no code is a near tie: the maps are equal to the last code.
    prior = tiny_prior(**CONFIGS[name])
    inputs = prior_inputs(prior, 3)
    codes, log_prob = drawn(prior, inputs, engine, return_log_prob=True)
    expected, expected_log_prob = drawn(prior, inputs, "reference", return_log_prob=True)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(log_prob, expected_log_prob)


@pytest.mark.parametrize("engine", ENGINES)
def test_guided_draws_equal_the_references_one_forward_at_a_time(engine):
    prior = tiny_prior(num_classes=3)
    inputs = prior_inputs(prior, 3)
    rule = {"guidance_scale": 2.0, "top_k": 6, "top_p": 0.9, "temperature": 0.9}
    expected = drawn(prior, inputs, "reference", **rule)
    assert torch.equal(drawn(prior, inputs, engine, **rule), expected)


@pytest.mark.parametrize("rule", [{"top_k": 3}, {"top_p": 0.8}])
def test_filters_take_the_logits_of_a_bfloat16_prior(rule):
    prior = tiny_prior().to(torch.bfloat16)
    assert_same_draws(prior, prior_inputs(prior, 3), "eager", **rule)


@pytest.mark.parametrize("engine", ["reference", *ENGINES])
def test_known_codes_are_kept_and_the_rest_is_drawn_given_them(engine):
    prior = tiny_prior(mask="include")
    inputs = prior_inputs(prior, 2)
    known = inputs["codes"].clone()
    known[:, 1:, 2:] = -1
    codes = drawn(prior, inputs, engine, known=known, seed=5)
    assert torch.equal(codes[known >= 0], known[known >= 0])
    assert_near_tie(prior, codes, engine="eager", known=known, seed=5)


@pytest.mark.parametrize("engine", ["reference", *ENGINES])
def test_log_probability_is_the_raw_models(engine):
    prior = tiny_prior(num_classes=3)
    inputs = prior_inputs(prior, 2)
    codes, log_prob = drawn(
        prior, inputs, engine, temperature=0.5, top_k=3, guidance_scale=2.0, return_log_prob=True
    )
    with torch.no_grad():
        logits = prior(codes, labels=inputs["labels"])
    expected = logits.log_softmax(dim=1).gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(log_prob, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_given_noise_decides(engine):
    prior = tiny_prior()
    noise = torch.zeros(2, 4, 6, 13)
    wanted = torch.arange(2 * 4 * 6).view(2, 4, 6) % 13
    noise.scatter_(3, wanted[..., None], 1e6)
    assert torch.equal(sample_codes(prior, 2, noise=noise, engine=engine), wanted)
