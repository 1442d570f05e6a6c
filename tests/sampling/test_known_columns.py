"""Engine `cpu` computes several columns at once where all codes are known: the bits of a draw."""

import pytest
import torch
from helpers.compare import simd_level, simd_levels
from helpers.models import DRAWING_RULES, MASKS, prior_inputs, tiny_prior

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate
from vqvae2_fast.sampling.engines.cpu import draw_cpu_timed, packed_plan
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan
from vqvae2_fast.sampling.quantized import InputRanges, calibration_of, checked_ranges
from vqvae2_fast.sampling.request import DrawNoise, DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)


def drawn(prior, inputs, known=None, ranges=None, **rule):
    """A draw with everything that it can return, and its steps."""
    batch, config = inputs["codes"].shape[0], prior.config
    request = DrawRequest(
        batch,
        inputs["condition"],
        inputs["labels"],
        known,
        DrawNoise(batch, config.size[1], config.num_embeddings, torch.device("cpu"), seed=5),
        DrawSettings(**rule),
        want_log_prob=True,
        want_logits=True,
        want_intervals=True,
    )
    result, parts = draw_cpu_timed(packed_plan(pixelsnail_plan(prior), ranges), request)
    return result, parts["steps"]


def assert_same(own, expected):
    for name in ("codes", "log_prob", "logits", "intervals"):
        assert torch.equal(getattr(own, name), getattr(expected, name)), name
    assert own.clamped == expected.clamped


def test_as_many_columns_as_are_fast_are_computed_at_once():
    prior = tiny_prior()
    inputs = prior_inputs(prior, 2)
    height, width = prior.config.size
    one_unknown = inputs["codes"].clone()
    one_unknown[0, -1, -1] = -1
    assert drawn(prior, inputs, one_unknown)[1] == height * width
    assert drawn(prior, inputs, inputs["codes"])[1] == height
    many = prior_inputs(prior, 150)
    assert drawn(prior, many, many["codes"])[1] == height * width


# 50 samples: two columns at once, the last of nine alone.
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("batch_size", [1, 50])
def test_known_codes_have_the_bits_of_their_draw(mask, attention, batch_size):
    prior = tiny_prior(
        mask=mask,
        attention=attention,
        kernel_size=5,
        size=(4, 9),
        num_output_layers=1,
        num_classes=3,
        condition_sizes=((2, 3),),
    )
    inputs = prior_inputs(prior, batch_size)
    expected, _ = drawn(prior, inputs)
    own, steps = drawn(prior, inputs, expected.codes)
    assert_same(own, expected)
    assert steps == {1: 4, 50: 4 * 5}[batch_size]


@pytest.mark.parametrize("rule", DRAWING_RULES, ids=str)
def test_they_have_them_under_every_rule(rule):
    prior = tiny_prior(num_classes=3, mask="include")
    inputs = prior_inputs(prior, 2)
    expected, _ = drawn(prior, inputs, **rule)
    assert_same(drawn(prior, inputs, expected.codes, **rule)[0], expected)


@pytest.mark.parametrize("level", simd_levels())
def test_they_have_them_at_any_level_and_threads(level, threads):
    prior = tiny_prior(attention=True, num_embeddings=40, channels=54, num_heads=3)
    inputs = prior_inputs(prior, 7)
    expected, _ = drawn(prior, inputs)
    with simd_level(level):
        for count in (1, 2, 5):
            threads(count)
            assert_same(drawn(prior, inputs, expected.codes)[0], expected)


@pytest.mark.parametrize("threads_of_draw", [1, 2])
@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_they_have_them_in_int8_and_clamp_as_many_inputs(mask, threads_of_draw, threads):
    prior = tiny_prior(mask=mask)
    inputs = prior_inputs(prior, 3)
    calibrate(prior, [(inputs["codes"], None, None)])
    ranges = checked_ranges(prior, calibration_of(prior))
    ranges = InputRanges(ranges.largest, 0.3)
    threads(threads_of_draw)
    expected, _ = drawn(prior, inputs, ranges=ranges)
    assert expected.clamped[0] > 0
    assert_same(drawn(prior, inputs, expected.codes, ranges)[0], expected)
