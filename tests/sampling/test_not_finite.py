"""Priors whose logits are NaN or too large for float32: every engine refuses them alike.

Weights and activations that are too large are tested in test_bounds.py.
"""

import pytest
import torch
from helpers.models import tiny_pipeline, tiny_prior

from vqvae2_fast import codec
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import sample_codes, score_codes, teacher_forced_logits
from vqvae2_fast.sampling.bounds import SAMPLING_BOUND
from vqvae2_fast.sampling.settings import DrawSettings

COMPILED = [] if _native.module is None else ["cpu"]
ENGINES = ["reference", "eager", *COMPILED]
LABELS = torch.tensor([0, 1])
NOT_FINITE = "The prior's weights are not finite, or too large for float32: load another"
REFUSED = (
    "expected logits of absolute values up to .*, and activations up to 1048576 within the prior, "
    f"got larger ones or NaN. {NOT_FINITE}"
)


# Settings that make numbers beyond float32 of large logits.
EXTREME = {"temperature": 1e-15, "guidance_scale": 1e15}


def spoiled(value: float = SAMPLING_BOUND):
    """A prior whose last layer gives spoiled logits to one code."""
    prior = tiny_prior(num_classes=3, size=(3, 4))
    with torch.no_grad():
        prior.blocks[-1].layers[-1].conv2.bias.fill_(1000.0)  # large features
        prior.head.kernel.weight_g[1] = value
    return prior


def too_active(prior):
    """The prior with weights within the bound whose activations are beyond it."""
    with torch.no_grad():
        prior.blocks[0].layers[0].conv1.kernel.weight_g.fill_(SAMPLING_BOUND)
        prior.blocks[0].layers[0].conv1.bias.fill_(SAMPLING_BOUND)
    return prior


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_words_name_the_largest_logit(engine):
    with pytest.raises(ValueError, match=REFUSED):
        sample_codes(spoiled(), 2, labels=LABELS, engine=engine, **EXTREME)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_is_refused_that_the_rounding_of_gates_would_hide(engine):
    prior = tiny_prior(num_classes=3, size=(3, 4))
    with torch.no_grad():
        prior.blocks[0].layers[0].classes.weight[2] = torch.nan  # a class that is not drawn
    with pytest.raises(ValueError, match=f"up to 1048576. {NOT_FINITE}"):
        sample_codes(prior, 2, labels=LABELS, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("read", [score_codes, teacher_forced_logits])
def test_known_codes_are_not_scored_by_them(read, engine):
    with pytest.raises(ValueError, match=REFUSED):
        read(
            too_active(tiny_prior(num_classes=3, size=(3, 4))),
            torch.zeros(2, 3, 4).long(),
            labels=LABELS,
            engine=engine,
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_without_a_class_count_under_guidance(engine):
    prior = tiny_prior(num_classes=3, size=(3, 4))
    with torch.no_grad():
        for layer in prior.blocks[0].layers:
            layer.classes.weight[3] = SAMPLING_BOUND
    sample_codes(prior, 2, labels=LABELS, engine=engine)
    with pytest.raises(ValueError, match=REFUSED):
        sample_codes(prior, 2, labels=LABELS, engine=engine, guidance_scale=1.5)


@pytest.mark.skipif(not COMPILED, reason="this install has no compiled module")
def test_samples_of_several_threads_are_checked():
    prior = spoiled()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match=REFUSED):
            sample_codes(prior, 8, labels=LABELS.repeat(4), engine="cpu", **EXTREME)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not COMPILED, reason="this install has no compiled module")
def test_codes_are_not_compressed_by_them():
    pipeline = tiny_pipeline(num_classes=0)
    codes = [torch.zeros(1, side, side).long() for side in (4, 8)]
    too_active(pipeline.priors[1])
    with pytest.raises(ValueError, match=REFUSED):
        codec.encode_codes(pipeline, codes)


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        ({}, 2.0**125),
        ({"temperature": 0.0}, 2.0**125),
        ({"temperature": 2.0}, 2.0**125),
        ({"temperature": 0.25}, 2.0**123),
        ({"guidance_scale": 1.5}, 2.0**123),
        ({"guidance_scale": -1.5, "temperature": 0.25}, 2.0**121),
    ],
)
def test_the_largest_logit_leaves_room_for_the_settings(settings, largest):
    assert DrawSettings(**settings).largest_logit == largest


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_up_to_the_largest_are_drawn_from(engine):
    prior = spoiled()
    with torch.no_grad():
        prior.head.kernel.weight_g.fill_(SAMPLING_BOUND)
    logits = teacher_forced_logits(prior, torch.zeros(2, 3, 4).long(), labels=LABELS)
    # These settings leave logits of up to twice the largest here, or more under other codes.
    scale = 1e-15 * 2.0**125 / (4 * float(logits.abs().max()))
    rule = {"temperature": 1e-15, "guidance_scale": scale, "top_p": 0.5}
    codes = sample_codes(prior, 2, labels=LABELS, engine=engine, **rule)
    if engine in ("eager", "cpu"):
        reference = sample_codes(prior, 2, labels=LABELS, engine="reference", **rule)
        assert torch.equal(codes, reference)
    with pytest.raises(ValueError, match=REFUSED):
        rule["guidance_scale"] *= 8
        sample_codes(prior, 2, labels=LABELS, engine=engine, **rule)
