"""Randomly built priors: engines `cpu` and `eager` against the reference."""

from functools import partial

import pytest
import torch
from helpers.compare import assert_close_to_float64, simd_level, simd_levels
from helpers.models import prior_inputs, tiny_prior
from helpers.near_tie import assert_near_tie
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import sample_codes, score_codes, teacher_forced_logits


@st.composite
def prior_arguments(draw):
    """Arguments of `tiny_prior`: any structure, small sizes."""
    heads = draw(st.integers(1, 4))
    sizes = []
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    for _ in range(draw(st.integers(0, 3))):
        sizes.append((height, width))
        height, width = height * draw(st.integers(1, 2)), width * draw(st.integers(1, 2))
    mask = draw(st.sampled_from(["exclude", "include", "down", "downright"]))
    kernel_size = draw(st.integers(2, 6) if mask == "downright" else st.sampled_from([3, 5]))
    classes = draw(st.sampled_from([0, 3]))
    scale = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if sizes else (2, 2)
    height, width = sizes[-1] if sizes else (height, width)
    return {
        "size": (height * scale[0], width * scale[1]),
        "num_embeddings": draw(st.integers(2, 70)),
        "channels": 2 * heads * draw(st.integers(1, 9)),
        "residual_channels": draw(st.integers(1, 70)),
        "num_blocks": draw(st.integers(1, 3)),
        "layers_per_block": draw(st.integers(1, 3)),
        "kernel_size": kernel_size,
        "mask": mask,
        "attention": draw(st.booleans()),
        "num_heads": heads,
        "num_output_layers": draw(st.integers(0, 2)),
        "condition_sizes": tuple(sizes),
        "condition_channels": draw(st.integers(1, 40)),
        "num_condition_layers": draw(st.integers(0, 2)),
        "num_classes": classes,
        "num_subclasses": draw(st.sampled_from([0, 2])),
        "num_variants": draw(st.sampled_from([0, 2])),
        "num_words": draw(st.sampled_from([0, 3])) if classes else 0,
    }


def factor_of(prior):
    """The logits of a map of one position are so few that the reference may be nearer by luck."""
    return 4 if prior.config.size == (1, 1) else 2


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(prior_arguments(), st.integers(0, 2**31), st.sampled_from([1, 3, 8]))
def test_random_priors_draw_as_the_reference_does(arguments, seed, batch_size):
    prior = tiny_prior(seed, **arguments)
    inputs = prior_inputs(prior, batch_size, seed)
    context = {"condition": inputs["condition"], "labels": inputs["labels"]}
    draw = partial(sample_codes, prior, batch_size, seed=seed, return_log_prob=True, **context)
    codes, log_prob = draw(engine="cpu")
    assert torch.equal(score_codes(prior, codes, engine="cpu", **context), log_prob)
    assert_near_tie(prior, codes, seed=seed, engine="cpu", **context)

    logits = teacher_forced_logits(prior, codes, engine="cpu", **context)
    with torch.no_grad():
        eager = prior(codes, *context.values())
        exact = prior.double()(codes, *context.values())
    prior.float()
    assert_close_to_float64(logits, eager, exact, factor=factor_of(prior), what="logits")

    for level in simd_levels()[:-1]:
        with simd_level(level):
            own = teacher_forced_logits(prior, codes, engine="cpu", **context)
        assert torch.equal(own, logits)
    last = {
        "condition": [codes[-1:] for codes in inputs["condition"]],
        "labels": None if inputs["labels"] is None else inputs["labels"][-1:],
    }
    alone = teacher_forced_logits(prior, codes[-1:], engine="cpu", **last)
    assert torch.equal(alone, logits[-1:])


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(prior_arguments(), st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_random_priors_draw_in_pytorch_calls_as_the_reference_does(arguments, seed, batch_size):
    prior = tiny_prior(seed, **arguments)
    inputs = prior_inputs(prior, batch_size, seed)
    context = {"condition": inputs["condition"], "labels": inputs["labels"]}
    codes = sample_codes(prior, batch_size, seed=seed, engine="eager", **context)
    assert_near_tie(prior, codes, seed=seed, engine="eager", **context)
    logits = teacher_forced_logits(prior, codes, engine="eager", **context)
    with torch.no_grad():
        full = prior(codes, *context.values())
        exact = prior.double()(codes, *context.values())
    assert_close_to_float64(logits, full, exact, factor=factor_of(prior), what="logits")
