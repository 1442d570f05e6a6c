"""Engine `cpu_w8a8`: the bits of its reference, whatever the level, batch and threads."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.compare import simd_level, simd_levels
from helpers.models import ODD_SIZES, prior_inputs, tiny_prior
from helpers.plan_network import plan_logits

from vqvae2_fast import load, save
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import (
    calibrate,
    interface_of,
    plan_of,
    sample_codes,
    score_codes,
    teacher_forced_logits,
)
from vqvae2_fast.sampling.quantized import InputRanges, quantized, quantized_inputs
from vqvae2_fast.sampling.sampler import draw
from vqvae2_fast.sampling.settings import DrawSettings

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)

ODD = ODD_SIZES | {"num_embeddings": 41, "num_classes": 3}


def calibrated_prior(**overrides) -> PixelSNAIL:
    prior = tiny_prior(**ODD | overrides)
    inputs = prior_inputs(prior, 3, seed=1)
    calibrate(prior, [(inputs["codes"], inputs["condition"], inputs["labels"])])
    return prior


def logits_of(prior, inputs, rows=slice(None)):
    labels = inputs["labels"]
    return teacher_forced_logits(
        prior,
        inputs["codes"][rows],
        condition=[codes[rows] for codes in inputs["condition"]],
        labels=None if labels is None else labels[rows],
        engine="cpu_w8a8",
    )


WIDE_INSIDE = {"channels": 16, "residual_channels": 256, "num_output_layers": 0}


def quantized_multiply(ranges):
    """The product of `quantized.py`, for `plan_logits`."""

    def multiply(name, n, x, weight, bias):
        scales = ranges.scales(name, x.shape[-1])[n]
        inputs = quantized_inputs(x, scales).flatten(-2)
        scaled = weight * scales.repeat(x.shape[-2])[:, None]
        integers, by_output = quantized(scaled[None])
        sums = inputs.double() @ integers[0].double()  # exact: below 2^53
        return sums.float() * by_output[0] + bias

    return multiply


@pytest.mark.parametrize(
    "overrides",
    [
        {"mask": "exclude"},
        {"mask": "include", "attention": False},
        {"mask": "down", "attention": False},
        {"attention": False, **WIDE_INSIDE},
    ],
    ids=str,
)
def test_every_level_gives_the_bits_of_the_reference(overrides):
    prior = calibrated_prior(**overrides)
    inputs = prior_inputs(prior, 2)
    with torch.inference_mode():
        plan = plan_of(prior, interface_of(prior))
        expected = plan_logits(
            plan,
            inputs["codes"],
            inputs["condition"],
            inputs["labels"],
            quantized_multiply(prior.calibration.ranges),
        )
    for level in simd_levels():
        with simd_level(level):
            assert torch.equal(logits_of(prior, inputs), expected), level


@pytest.mark.parametrize("mask", ["exclude", "downright"])
def test_bits_depend_on_neither_batch_nor_threads(mask, threads):
    prior = calibrated_prior(mask=mask)
    inputs = prior_inputs(prior, 64)
    drawn = {"condition": inputs["condition"], "labels": inputs["labels"], "engine": "cpu_w8a8"}
    threads(1)
    expected = logits_of(prior, inputs)
    codes = sample_codes(prior, 64, **drawn)
    for count in (2, 3, 8):
        threads(count)
        assert torch.equal(logits_of(prior, inputs, slice(5, 6)), expected[5:6])
        assert torch.equal(logits_of(prior, inputs, slice(1, 9)), expected[1:9])
    assert torch.equal(sample_codes(prior, 64, **drawn), codes)


def test_any_rounding_mode_gives_the_same_bits(other_rounding):
    inputs = prior_inputs(calibrated_prior(), 2)
    expected = logits_of(calibrated_prior(), inputs)
    prior = calibrated_prior()  # not packed yet
    with other_rounding():
        assert torch.equal(logits_of(prior, inputs), expected)


def test_scores_are_those_of_the_draw():
    prior = calibrated_prior()
    inputs = prior_inputs(prior, 2)
    drawn = {"condition": inputs["condition"], "labels": inputs["labels"], "engine": "cpu_w8a8"}
    codes, log_prob = sample_codes(prior, 2, return_log_prob=True, **drawn)
    assert torch.equal(score_codes(prior, codes, **drawn), log_prob)


def test_a_saved_prior_draws_the_same_bits(tmp_path):
    prior = calibrated_prior()
    inputs = prior_inputs(prior, 2)
    save(prior, tmp_path / "prior")
    assert torch.equal(logits_of(load(tmp_path / "prior"), inputs), logits_of(prior, inputs))


def test_a_prior_saved_in_bfloat16_stays_calibrated(tmp_path):
    prior = calibrated_prior()
    save(prior, tmp_path / "prior", dtype=torch.bfloat16)
    logits_of(load(tmp_path / "prior"), prior_inputs(prior, 1))


def test_a_prior_without_calibration_is_refused_with_the_remedy():
    prior = tiny_prior()
    with pytest.raises(RuntimeError, match="no calibration. Calibrate it with vqvae2-fast calib"):
        sample_codes(prior, 1, engine="cpu_w8a8")


def test_a_calibration_of_other_weights_is_refused():
    prior = calibrated_prior()
    with torch.no_grad():
        prior.head.bias += 1
    inputs = prior_inputs(prior, 1)
    with pytest.raises(RuntimeError, match="calibration is of weights .*, but its weights are"):
        logits_of(prior, inputs)


def drawn_with_ranges(factor: float, prior: PixelSNAIL | None = None):
    """A draw of the codes of the calibration, whose ranges are multiplied by a factor."""
    prior = copy.deepcopy(prior) if prior else calibrated_prior()
    inputs = prior_inputs(prior, 3, seed=1)
    ranges = InputRanges(prior.calibration.ranges.largest, factor)
    prior.calibration = replace(prior.calibration, ranges=ranges)
    context = {"condition": inputs["condition"], "labels": inputs["labels"]}
    return draw(prior, 3, DrawSettings(engine="cpu_w8a8"), known=inputs["codes"], **context)


def test_inputs_beyond_the_calibration_are_counted_and_told(threads):
    threads(1)
    with pytest.warns(RuntimeWarning, match=r"inputs \(\d+.\d%\) exceeded the ranges of the"):
        clamped = drawn_with_ranges(0.5, prior := calibrated_prior()).clamped
    assert 0 < clamped[0] < clamped[1]
    threads(3)
    for level in simd_levels():
        with simd_level(level), pytest.warns(RuntimeWarning, match="exceeded the ranges"):
            assert drawn_with_ranges(0.5, prior).clamped == clamped, level


def test_nothing_is_told_of_codes_within_the_calibration(recwarn):
    clamped, inputs = drawn_with_ranges(2.0).clamped
    assert clamped == 0 < inputs
    assert not recwarn


def test_inputs_are_rounded_to_even_and_clamped():
    x = torch.tensor([0.5, 1.5, -2.5, 300.0, -300.0])
    assert quantized_inputs(x, torch.ones(5)).tolist() == [0.0, 2.0, -2.0, 127.0, -127.0]


def squared_errors(prior, inputs) -> torch.Tensor:
    """Of the rounded inputs of each matrix of the prior, by its calibration."""
    ranges, errors = prior.calibration.ranges, []

    def multiply(name, n, x, weight, bias):
        scales = ranges.scales(name, x.shape[-1])[n]
        errors.append((quantized_inputs(x, scales) * scales - x).square().sum())
        return x.flatten(-2) @ weight + bias

    with torch.inference_mode():
        plan = plan_of(prior, interface_of(prior))
        plan_logits(plan, inputs["codes"], inputs["condition"], inputs["labels"], multiply)
    return torch.stack(errors)


def test_by_default_the_ranges_have_less_squared_error_than_those_of_all_values():
    prior = tiny_prior(**ODD)
    inputs = prior_inputs(prior, 400, seed=1)  # enough positions that a few values stand out
    batch = (inputs["codes"], inputs["condition"], inputs["labels"])
    calibrate(prior, [batch], margin=1)
    of_all = squared_errors(prior, inputs)
    calibrate(prior, [batch])
    assert (squared_errors(prior, inputs) < 0.99 * of_all).all()


def test_a_prior_that_is_not_float32_is_not_calibrated():
    prior = tiny_prior().double()
    with pytest.raises(ValueError, match="expected a prior with float32 weights"):
        calibrate(prior, [(prior_inputs(prior, 2)["codes"], None, None)])


@pytest.mark.parametrize("margin", [0.5, float("nan"), float("inf")])
def test_a_margin_below_one_or_infinite_is_refused(margin):
    with pytest.raises(ValueError, match="expected margin to be None or a finite number"):
        calibrate(tiny_prior(), [], margin=margin)
