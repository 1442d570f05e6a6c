"""Without attention, engine `cpu` draws several rows at once, with the bits of single positions."""

import pytest
import torch
from helpers.compare import simd_level, simd_levels
from helpers.models import DRAWING_RULES, MASKS, prior_inputs, tiny_prior

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate, interface_of, sample_codes
from vqvae2_fast.sampling.engines.cpu import cpu_plan_of, draw_cpu_timed, packed_plan
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan
from vqvae2_fast.sampling.request import DrawNoise, DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)


def prior_of(**overrides):
    return tiny_prior(**{"attention": False, "size": (6, 16), **overrides})


def drawn(prior, inputs, *, at_once, ranges=None, **arguments):
    """Codes, log-probabilities and logits of a draw, and its number of steps."""
    batch, config = inputs["codes"].shape[0], prior.config
    height, width = config.size
    request = DrawRequest(
        batch,
        inputs["condition"],
        inputs["labels"],
        inputs.get("known"),
        DrawNoise(batch, width, config.num_embeddings, torch.device("cpu"), seed=5),
        DrawSettings(**arguments),
        want_log_prob=True,
        want_logits=True,
    )
    # A draw with a profile has single positions.
    stages = len(_native.module.SAMPLER_STAGES)
    profile = torch.zeros(height * width, stages, torch.get_num_threads(), 2)
    plan = packed_plan(pixelsnail_plan(prior), ranges)
    result, parts = draw_cpu_timed(plan, request, None if at_once else profile)
    return result, parts["steps"]


def assert_same_bits(prior, inputs, **arguments):
    expected, steps = drawn(prior, inputs, at_once=False, **arguments)
    own, fewer = drawn(prior, inputs, at_once=True, **arguments)
    assert fewer < steps == prior.config.size[0] * prior.config.size[1]
    for name in ("codes", "log_prob", "logits", "clamped"):
        a, b = getattr(own, name), getattr(expected, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_rows_at_once_have_the_same_bits(mask, kernel_size, batch_size):
    prior = prior_of(
        mask=mask,
        kernel_size=kernel_size,
        size=(6, 21),
        num_output_layers=1,
        num_classes=3,
        condition_sizes=((2, 7),),
    )
    assert_same_bits(prior, prior_inputs(prior, batch_size))


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        ((1, 9), 9),
        ((4, 1), 4),
        # Rows follow each other by segments of 4, 4, 8 and 16 columns, and the 2 that they look at.
        ((2, 8), 8 + 6),
        ((5, 7), 7 + 4 * 6),
        ((9, 33), 33 + 8 * 10),
        ((3, 100), 100 + 2 * 18),
    ],
)
def test_maps_of_any_size(size, steps):
    prior = prior_of(size=size, kernel_size=5)
    inputs = prior_inputs(prior, 1)
    expected, _ = drawn(prior, inputs, at_once=False)
    own, own_steps = drawn(prior, inputs, at_once=True)
    assert torch.equal(own.logits, expected.logits)
    assert own_steps == steps


@pytest.mark.parametrize("down", [1, 2, 3])
def test_rows_below_different_rows_of_the_condition(down):
    prior = prior_of(size=(12, 24), condition_sizes=((12 // down, 8),))
    assert_same_bits(prior, prior_inputs(prior, 1))


@pytest.mark.parametrize("rule", DRAWING_RULES, ids=str)
def test_every_rule(rule):
    prior = prior_of(num_classes=3)
    assert_same_bits(prior, prior_inputs(prior, 1), **rule)


def test_known_codes():
    prior = prior_of()
    inputs = prior_inputs(prior, 2)
    inputs["known"] = torch.where(torch.rand(inputs["codes"].shape) < 0.5, inputs["codes"], -1)
    assert_same_bits(prior, inputs)


@pytest.mark.parametrize("mask", MASKS)
def test_integer_inputs(mask):
    """Other codes than those of the calibration exceed its ranges: inputs are clamped."""
    prior = prior_of(mask=mask, condition_sizes=((3, 8),))
    inputs = prior_inputs(prior, 2)
    calibrate(prior, [(inputs["codes"], inputs["condition"], inputs["labels"])], margin=1)
    ranges = prior.calibration.ranges
    other = prior_inputs(prior, 2, seed=1)
    assert drawn(prior, other, at_once=True, ranges=ranges)[0].clamped[0] > 0
    assert_same_bits(prior, other, ranges=ranges)


@pytest.mark.parametrize("level", simd_levels())
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 2])  # with two threads, each draws a sample of two
def test_any_level_and_number_of_threads(level, threads, batch_size):
    prior = prior_of(num_embeddings=40, channels=54, size=(4, 13))
    inputs = prior_inputs(prior, batch_size)
    expected, _ = drawn(prior, inputs, at_once=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with simd_level(level):
            own, steps = drawn(prior, inputs, at_once=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(own.logits, expected.logits)
    assert steps == 13 + 3 * 5


def test_four_samples_of_a_prior_that_no_cache_holds():
    """The current taps have 33 MiB, so that sharing a reading of them pays in a larger batch."""
    prior = prior_of(
        size=(2, 12), channels=256, residual_channels=256, num_blocks=11, layers_per_block=4
    )
    inputs = prior_inputs(prior, 4)
    assert_same_bits(prior, inputs)
    assert drawn(prior, prior_inputs(prior, 5), at_once=True)[1] == 2 * 12


@pytest.mark.parametrize(("attention", "batch_size"), [(True, 1), (False, 3)])
def test_one_row_at_a_time(attention, batch_size):
    """Attention needs the whole row above, and more samples are as fast one row at a time."""
    prior = prior_of(attention=attention)
    assert drawn(prior, prior_inputs(prior, batch_size), at_once=True)[1] == 6 * 16


def test_rows_are_told_of_in_order_once_they_are_complete():
    prior, seen = prior_of(), []
    expected = sample_codes(prior, 1, engine="cpu")

    def progress(rows, height):
        seen.append(rows)

    assert torch.equal(sample_codes(prior, 1, engine="cpu", progress=progress), expected)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_draw_that_is_stopped_has_its_rows():
    prior, kept = prior_of(), []
    expected = sample_codes(prior, 1, engine="cpu", seed=5)

    def on_row(row, codes):
        kept.append(codes)
        if row == 2:
            raise KeyboardInterrupt

    noise = DrawNoise(1, 16, 13, torch.device("cpu"), seed=5)
    request = DrawRequest(1, [], None, None, noise, DrawSettings(), on_row=on_row)
    with pytest.raises(KeyboardInterrupt):
        draw_cpu_timed(cpu_plan_of(prior, interface_of(prior)), request)
    assert torch.equal(torch.stack(kept, 1), expected[:, :3])
