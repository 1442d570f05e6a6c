"""Weights and activations at the edges of float32: engines equal the reference, or all refuse."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior
from helpers.near_tie import assert_same_draw

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate, sample_codes
from vqvae2_fast.sampling.bounds import SAMPLING_BOUND, watched_activations

COMPILED = [] if _native.module is None else ["cpu"]
EXACT = ["eager", *COMPILED]
ROUNDING = ["cpu_w8a8"] if COMPILED else []
WEIGHTS = "expected finite weights of absolute values up to 1048576. The prior's weights are not"
LOGITS = "expected logits of absolute values up to"

SMALL = {"size": (2, 3), "num_embeddings": 7, "num_blocks": 2}
KINDS = [
    {},
    {"attention": False},
    {"num_classes": 2},
    {"condition_sizes": ((1, 3),), "num_classes": 2},
    {"num_output_layers": 1},
    {"weight_norm": False},
]
VALUES = [1e-45, 1e-38, 1e-30, 1e-20, 1e-10, 1e3, 1e4, 1e5, 3e5, 1e6]
VALUES += [2.0**20, 1.1e6, 1e9, 1e15, 1e19, 3e38, float("inf"), float("nan")]
SETTINGS = [{}, {"temperature": 0.0}, {"temperature": 1e-3}, {"temperature": 1e30}, {"top_p": 0.5}]


def context_of(prior) -> dict:
    inputs = prior_inputs(prior, 2)
    return {"condition": inputs["condition"], "labels": inputs["labels"]}


def drawn(prior, engine: str, **settings):
    """Codes and log-probabilities, or what the engine said."""
    try:
        return sample_codes(prior, 2, engine=engine, return_log_prob=True, **settings)
    except ValueError as error:
        return str(error)


@torch.no_grad()
def spoil(prior, rng: random.Random) -> str:
    """Changes some weights to extreme values; says how."""
    parameters = list(prior.parameters())

    def value() -> float:
        return rng.choice(VALUES) * rng.choice((-1, 1))

    def one(parameter, to: float) -> None:
        flat = parameter.view(-1)
        flat[rng.randrange(len(flat))] = to

    how = rng.choice(["one", "two", "one of each", "a whole one", "all"])
    to = value()
    if how == "one":
        one(rng.choice(parameters), to)
    elif how == "two":
        one(rng.choice(parameters), to)
        one(rng.choice(parameters), value())
    elif how == "one of each":
        for parameter in parameters:
            one(parameter, to * rng.choice((-1, 1)))
    elif how == "a whole one":
        parameter = rng.choice(parameters)
        parameter.mul_(to / float(parameter.abs().max().clamp(min=1e-6)))
    else:
        to = rng.choice([10.0, 100.0, 1e3, 1e4, 1e5, 1e-3, 1e-10, 1e-20, 1e-25])
        for parameter in parameters:
            parameter.mul_(to)
    return f"{how}: {to}"


def check_alike(number: int, exact: list[str]) -> bool:
    """Whether the reference refused a random prior."""
    rng = random.Random(number)
    prior = tiny_prior(number, **SMALL, **rng.choice(KINDS))
    context = context_of(prior)
    said = f"prior {number}, {spoil(prior, rng)}"
    settings = {**rng.choice(SETTINGS), **context}
    if prior.config.num_classes and rng.random() < 0.3:
        settings["guidance_scale"] = rng.choice([1.5, -2.0])
    reference = drawn(prior, "reference", **settings)
    refused = isinstance(reference, str)
    for engine in exact:
        found = drawn(prior, engine, **settings)
        if refused or isinstance(found, str):
            assert found == reference, f"{said}: {engine} {found}, reference {reference}"
        else:
            assert_same_draw(prior, found, reference, engine=engine, what=said, **settings)
    return refused


def test_engines_draw_what_the_reference_draws_or_refuse_in_its_words():
    refusals = [check_alike(number, EXACT) for number in range(100)]
    assert 25 < sum(refusals) < 75  # both ends are tried


def test_the_kernels_for_cuda_do_so_too(engines):
    refusals = [check_alike(number, ["on_cpu"]) for number in range(1000, 1030)]
    assert 5 < sum(refusals) < 25


LARGEST = torch.finfo(torch.float32).max
NOISE = [0.0, 1e-45, 1e-38, 50.0, 1e30, 1e38, LARGEST, -1.0, -1e-45, -1e38, -LARGEST]
EDGES = {
    "temperature": [1.0, 0.0, 1e-45, 1e-16, 1e-15, 1e-7, 0.5, 1e7, 1e15, 1e16],
    "top_p": [None, None, 1e-45, 1e-20, 1e-15, 1e-7, 0.5, 1 - 1e-7, 1 - 1e-9, 1.0],
    "top_k": [None, None, None, 1, 2, 7, 100, 2**62],
    "guidance_scale": [1.0, 1.0, 1.0, 0.0, 1e-15, -1e15, 1e15, 1e7, 1e16, 1.5],
}


def settings_at_the_edges(rng: random.Random) -> dict:
    settings = {name: rng.choice(values) for name, values in EDGES.items()}
    if rng.random() < 0.6:
        noise = torch.randn(
            2, 2, 3, 7, generator=torch.Generator().manual_seed(rng.getrandbits(31))
        )
        values = NOISE if rng.random() < 0.9 else [float("inf"), float("nan")]
        for index in rng.sample(range(noise.numel()), 30):
            noise.view(-1)[index] = rng.choice(values)
        settings["noise"] = noise
    return settings


def test_settings_and_noise_at_the_edges_too():
    refusals = 0
    for number in range(50):
        rng = random.Random(number)
        prior = tiny_prior(number, **SMALL, num_classes=2)
        settings = {**settings_at_the_edges(rng), **context_of(prior)}
        reference = drawn(prior, "reference", **settings)
        refusals += isinstance(reference, str)
        for engine in EXACT:
            found = drawn(prior, engine, **settings)
            if isinstance(reference, str) or isinstance(found, str):
                assert found == reference, f"settings {number}, {engine}"
            else:
                what = f"settings {number}"
                assert_same_draw(prior, found, reference, engine=engine, what=what, **settings)
    assert 10 < refusals < 40


@pytest.mark.parametrize("engine", ["reference", *EXACT])
@pytest.mark.parametrize("value", [1.1 * SAMPLING_BOUND, 3e38, float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["weight", "embedding", "condition", "background"])
def test_a_weight_beyond_the_bound_is_refused_wherever_it_is(name, value, engine):
    prior = tiny_prior(num_classes=3, size=(4, 4), condition_sizes=((2, 2),))
    tensor = {
        "weight": prior.blocks[0].layers[0].conv2.kernel.weight_v,
        "embedding": prior.blocks[0].layers[0].classes.weight,
        "condition": prior.condition.stems[0].bias,
        "background": prior.background,
    }[name]
    with torch.no_grad():
        tensor.view(-1)[-1] = value
    with pytest.raises(ValueError, match=WEIGHTS):
        sample_codes(prior, 2, engine=engine, **context_of(prior))


@pytest.mark.parametrize("engine", ["reference", *EXACT])
@pytest.mark.parametrize("small", [1.0, 1e-15])
def test_a_norm_that_underflows_is_refused(engine, small):
    prior = tiny_prior(size=(3, 4))
    with torch.no_grad():
        prior.blocks[0].layers[0].conv1.kernel.weight_v[0] *= 1e-25
        prior.blocks[0].layers[0].conv1.kernel.weight_g[0] *= small
    with pytest.raises(ValueError, match=WEIGHTS):
        sample_codes(prior, 2, engine=engine)


def large_in(prior, place: str) -> None:
    """Weights within the bound that make an activation of one place too large."""
    block = prior.blocks[0]
    if place == "the stem":
        prior.stem.above.bias.fill_(SAMPLING_BOUND)
        prior.stem.left.bias.fill_(SAMPLING_BOUND)
    elif place == "between the convolutions":
        block.layers[0].conv1.bias.fill_(SAMPLING_BOUND)
        block.layers[0].conv1.kernel.weight_g.fill_(SAMPLING_BOUND)
    elif place == "a gate":
        block.layers[-1].conv2.bias.fill_(SAMPLING_BOUND)
        block.layers[-1].classes.weight.fill_(SAMPLING_BOUND)
    elif place == "the condition":
        prior.condition.stems[0].bias.fill_(SAMPLING_BOUND)
        prior.condition.stems[0].kernel.weight_g.fill_(SAMPLING_BOUND)
    elif place == "the keys":
        block.attention.key.bias.fill_(SAMPLING_BOUND)
        block.attention.key.kernel.weight_g.fill_(SAMPLING_BOUND)
    elif place == "the attended values":
        block.attention.value.bias.fill_(SAMPLING_BOUND)
        block.attention.value.kernel.weight_g.fill_(SAMPLING_BOUND)
    else:
        block.merge.bias.fill_(0.0)
        for layer in block.layers:
            layer.conv2.bias.fill_(-SAMPLING_BOUND)
            layer.classes.weight.fill_(-SAMPLING_BOUND)
            half = layer.conv2.bias.shape[0] // 2
            layer.conv2.bias[half:] = SAMPLING_BOUND
            layer.classes.weight[:, half:] = SAMPLING_BOUND


PLACES = [
    "the stem",
    "between the convolutions",
    "a gate",
    "the condition",
    "the keys",
    "the attended values",
    "what is merged",
]


@pytest.mark.parametrize("engine", ["reference", *EXACT, *ROUNDING])
@pytest.mark.parametrize("place", PLACES)
def test_an_activation_beyond_the_bound_is_refused_although_the_logits_are_small(place, engine):
    check_refusal(place, engine)


@pytest.mark.parametrize("place", PLACES)
def test_the_kernels_for_cuda_refuse_it_too(place, engines):
    check_refusal(place, "on_cpu")
    check_refusal(place, "on_cpu_bfloat16")


def check_refusal(place: str, engine: str) -> None:
    kinds = {"condition_sizes": ((2, 2),), "num_classes": 2, "attention": "merged" not in place}
    prior = tiny_prior(size=(4, 4), **kinds)
    with torch.no_grad():
        large_in(prior, place)
        # The head reads nothing: without the check there would be nothing to see.
        prior.head.kernel.weight_g.zero_()
    context = context_of(prior)
    maps = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=LOGITS):
        if engine.endswith("_w8a8"):  # refused before there are ranges to draw with
            calibrate(prior, [(maps, context["condition"], context["labels"])])
        sample_codes(prior, 2, engine=engine, **context)


def test_the_watch_leaves_no_hooks():
    prior = tiny_prior()
    with watched_activations(prior) as watch:
        prior(torch.zeros(1, *prior.config.size).long())
    assert not watch.beyond
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in prior.modules()]
    assert not any(hooks)
