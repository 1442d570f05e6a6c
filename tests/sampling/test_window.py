"""Several codes per step (`window`): the same bits as one code per step, whatever the guesses."""

import pytest
import torch

from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import Pipeline, interface_of, plan_of, sample_codes, sample_images
from vqvae2_fast.sampling.engines.cpu import draw_cpu_timed, packed_plan
from vqvae2_fast.sampling.noise import DrawNoise
from vqvae2_fast.sampling.request import DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings
from vqvae2_fast.testing.compare import simd_level, simd_levels
from vqvae2_fast.testing.priors import DRAWING_RULES, MASKS, prior_inputs, tiny_prior

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)


def drawn(prior, inputs, window, **arguments):
    """Codes, log-probabilities and logits of a draw, and its steps."""
    batch, config = inputs["codes"].shape[0], prior.config
    noise = DrawNoise(batch, config.size[1], config.num_embeddings, torch.device("cpu"), seed=5)
    request = DrawRequest(
        batch,
        inputs["condition"],
        inputs["labels"],
        inputs.get("known"),
        noise,
        DrawSettings(**arguments, window=window),
        want_log_prob=True,
        want_logits=True,
    )
    result, parts = draw_cpu_timed(plan_of(prior, interface_of(prior)), request)
    return (result.codes, result.log_prob, result.logits), parts["steps"]


def test_known_codes_are_scored_in_wide_steps():
    prior = tiny_prior()
    inputs = prior_inputs(prior, 2)
    height, width = prior.config.size
    one_unknown = inputs["codes"].clone()
    one_unknown[0, -1, -1] = -1
    assert drawn(prior, {**inputs, "known": one_unknown}, 1)[1] == height * width
    assert drawn(prior, {**inputs, "known": inputs["codes"]}, 1)[1] == height
    many = prior_inputs(prior, 150)
    assert drawn(prior, {**many, "known": many["codes"]}, 1)[1] == height * width


def assert_same_bits(prior, inputs, windows, **arguments):
    expected, steps = drawn(prior, inputs, 1, **arguments)
    height, width = prior.config.size
    rows = inputs["codes"].shape[0] * (2 if "guidance_scale" in arguments else 1)
    # Without a window, several rows may be drawn at once (test_rows_at_once.py).
    _, lag, _ = packed_plan(plan_of(prior, interface_of(prior))).schedule(rows=rows)
    assert steps == width + (height - 1) * lag
    for window in windows:
        own, steps = drawn(prior, inputs, window, **arguments)
        assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
        assert height * -(-width // window) <= steps <= height * width


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_window_draws_the_same_bits(mask, attention, batch_size):
    prior = tiny_prior(
        mask=mask,
        attention=attention,
        kernel_size=5,
        size=(4, 9),
        num_output_layers=1,
        num_classes=3,
        condition_sizes=((2, 3),),
    )
    assert_same_bits(prior, prior_inputs(prior, batch_size), [2, 3, 8, 9, 50])


@pytest.mark.parametrize("rule", DRAWING_RULES, ids=str)
def test_a_window_draws_by_every_rule(rule):
    prior = tiny_prior(num_classes=3, mask="include")
    assert_same_bits(prior, prior_inputs(prior, 2), [4], **rule)


def test_a_window_keeps_known_codes():
    prior = tiny_prior(mask="include")
    inputs = prior_inputs(prior, 2)
    inputs["known"] = torch.where(torch.rand(inputs["codes"].shape) < 0.5, inputs["codes"], -1)
    assert_same_bits(prior, inputs, [3])


def test_a_window_draws_from_given_noise():
    prior = tiny_prior()
    noise = torch.randn(2, 4, 6, 13)
    one = sample_codes(prior, 2, noise=noise, engine="cpu")
    assert torch.equal(sample_codes(prior, 2, noise=noise, engine="cpu", window=4), one)


@pytest.mark.parametrize("level", simd_levels())
def test_a_window_draws_the_same_bits_at_any_level_and_threads(level):
    prior = tiny_prior(attention=True, num_embeddings=40, channels=54, num_heads=3)
    inputs = prior_inputs(prior, 2)
    expected, _ = drawn(prior, inputs, 1)
    before = torch.get_num_threads()
    with simd_level(level):
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            own, _ = drawn(prior, inputs, 5)
            assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
    torch.set_num_threads(before)


def test_right_guesses_are_kept():
    # All codes but the last are known: every guess before it is right, and a row takes ceil(6 / 4)
    # steps.
    prior = tiny_prior()
    inputs = prior_inputs(prior, 2)
    inputs["known"] = inputs["codes"].clone()
    inputs["known"][0, -1, -1] = -1
    assert drawn(prior, inputs, 4)[1] == 4 * 2


def test_an_engine_of_single_codes_refuses_a_window():
    for engine in ("eager", "reference"):
        with pytest.raises(NotImplementedError, match=f"engine {engine} draws one code at a time"):
            sample_codes(tiny_prior(), 1, engine=engine, window=2)
    for window in (0, 2.5):
        with pytest.raises(ValueError, match=f"window to be an integer .*, got {window}"):
            sample_codes(tiny_prior(), 1, window=window)


def test_images_are_drawn_with_a_window_per_level():
    pipeline = Pipeline(
        VQVAE2(
            VQVAE2Config(
                image_size=(16, 24),
                strides=(2, 2),
                hidden_channels=8,
                residual_channels=8,
                num_embeddings=13,
                embedding_dim=8,
            )
        ).eval(),
        [tiny_prior(), tiny_prior(size=(8, 12), condition_sizes=((4, 6),))],
    )
    one = sample_images(pipeline, 1, engine="cpu")
    assert torch.equal(sample_images(pipeline, 1, engine="cpu", window=(2, 4)), one)
    with pytest.raises(ValueError, match="expected window to be one value or 2"):
        sample_images(pipeline, 1, window=(1, 2, 3))
