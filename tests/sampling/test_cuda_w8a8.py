"""Engine `cuda_w8a8`, with its kernels executed on the CPU: the bits of engine `cpu_w8a8`.

The conditioning stack alone, which PyTorch computes, may be rounded otherwise.
"""

from copy import deepcopy
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import (
    calibrate,
    interface_of,
    sample_codes,
    teacher_forced_logits,
)
from vqvae2_fast.sampling.engines import cuda, cuda_w8a8
from vqvae2_fast.sampling.plan_network import _features
from vqvae2_fast.sampling.quantized import InputRanges
from vqvae2_fast.sampling.sampler import draw
from vqvae2_fast.sampling.settings import DrawSettings
from vqvae2_fast.testing.priors import MASKS, ODD_SIZES, prior_inputs, tiny_prior

pytestmark = [
    pytest.mark.skipif(_native.module is None, reason="this install has no compiled module"),
    # Other codes than those of the calibration are drawn here.
    pytest.mark.filterwarnings("ignore:engine .* exceeded the ranges"),
]


def calibrated(**config):
    prior = tiny_prior(**config)
    inputs = prior_inputs(prior, 3, seed=1)
    calibrate(prior, [(inputs["codes"], inputs["condition"], inputs["labels"])])
    return prior


def logits_of(prior, inputs, engine):
    return teacher_forced_logits(
        prior,
        inputs["codes"],
        condition=inputs["condition"],
        labels=inputs["labels"],
        engine=engine,
    )


def assert_same_bits(prior, inputs):
    expected = logits_of(prior, inputs, "cpu_w8a8")
    assert torch.equal(logits_of(prior, inputs, "on_cpu_w8a8"), expected)


@pytest.fixture
def features_of_the_cpu(monkeypatch):
    """The conditioning stack in the order of engine `cpu`, instead of PyTorch's."""
    monkeypatch.setattr(
        cuda, "_features", lambda plan, maps: _features(Mock(condition=plan), maps, exact=True)
    )


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_logits_are_the_bits_of_the_cpu(mask, attention, engines):
    prior = calibrated(
        mask=mask, attention=attention, size=(3, 4), num_classes=3, num_output_layers=2
    )
    assert_same_bits(prior, prior_inputs(prior, 2))


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(("mask", "kernel_size"), [("exclude", 5), ("downright", 4)])
def test_sizes_that_are_multiples_of_nothing(
    mask, kernel_size, attention, engines, features_of_the_cpu
):
    sizes = {
        "channels": 54,
        "residual_channels": 37,
        "num_heads": 3,
        "num_embeddings": 41,
        "num_output_layers": 1,
        "condition_sizes": ((1, 1), (2, 3)),
        "condition_channels": 21,
        "num_classes": 3,
    }
    prior = calibrated(
        size=(2, 3), mask=mask, kernel_size=kernel_size, attention=attention, **sizes
    )
    assert_same_bits(prior, prior_inputs(prior, 11))


def test_the_conditioning_stack_alone_is_rounded_by_pytorch(engines):
    prior = calibrated(size=(3, 4), condition_sizes=((3, 2),))
    inputs = prior_inputs(prior, 2)
    # Its sums differ in their last bits, which moves few inputs by one of 127 steps.
    error = logits_of(prior, inputs, "on_cpu_w8a8") - logits_of(prior, inputs, "cpu_w8a8")
    rounding = logits_of(prior, inputs, "cpu_w8a8") - logits_of(prior, inputs, "reference")
    assert error.square().mean() < 0.01 * rounding.square().mean()


@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_work_of_many_blocks(mask, engines, card):
    # 272 channels: whole groups of 512 inputs, and others; some weights are streamed.
    prior = calibrated(
        size=(2, 4), channels=272, residual_channels=40, num_blocks=1, num_heads=4, mask=mask
    )
    inputs = prior_inputs(prior, 3)
    expected = logits_of(prior, inputs, "cpu_w8a8")
    for blocks, shared in ((3, 32 << 10), (8, 160 << 10)):
        card[0] = cuda.Card(blocks, shared, 96)
        assert torch.equal(logits_of(prior, inputs, "on_cpu_w8a8"), expected)


def test_a_sample_is_drawn_as_by_the_cpu_in_any_batch(engines):
    prior = calibrated(size=(2, 4), num_blocks=1, num_classes=3)
    labels = torch.arange(64) % 4
    rule = {"temperature": 0.9, "top_k": 9, "top_p": 0.95, "guidance_scale": 1.5, "seed": 3}
    whole = sample_codes(prior, 64, labels=labels, engine="cpu_w8a8", **rule)
    for first, count in ((0, 64), (7, 1), (20, 3)):
        part = sample_codes(
            prior,
            count,
            labels=labels[first : first + count],
            first_sample=first,
            engine="on_cpu_w8a8",
            **rule,
        )
        assert torch.equal(part, whole[first : first + count])


@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_a_window_draws_the_same_bits(mask, engines):
    prior = calibrated(mask=mask, size=(3, 7), num_classes=3)
    drawn = {"labels": torch.tensor([2, 0]), "seed": 4}
    codes = sample_codes(prior, 2, engine="cpu_w8a8", **drawn)
    drawn |= {"engine": "on_cpu_w8a8", "return_log_prob": True}
    single, window = (sample_codes(prior, 2, window=w, **drawn) for w in (1, 3))
    assert torch.equal(single[0], codes)
    assert all(torch.equal(a, b) for a, b in zip(single, window, strict=True))


def test_many_positions_of_attention(engines):
    prior = calibrated(size=(10, 16), num_blocks=1, layers_per_block=1, channels=8, num_heads=2)
    assert_same_bits(prior, prior_inputs(prior, 1))


def test_inputs_beyond_the_calibration_are_counted_as_by_the_cpu(engines, features_of_the_cpu):
    prior = calibrated(**ODD_SIZES, num_classes=3)
    inputs = prior_inputs(prior, 3, seed=1)
    ranges = InputRanges(prior.calibration.ranges.largest, 0.5)
    prior.calibration = replace(prior.calibration, ranges=ranges)

    def clamped(engine):
        settings = DrawSettings(engine=engine)
        context = {"condition": inputs["condition"], "labels": inputs["labels"]}
        return draw(prior, 3, settings, known=inputs["codes"], **context).clamped

    own, inputs_of_all = clamped("on_cpu_w8a8")
    assert (own, inputs_of_all) == clamped("cpu_w8a8")
    assert own > 0
    assert inputs_of_all == 3 * inputs["codes"][0].numel() * ranges.inputs


def test_a_prior_without_calibration_is_refused_as_by_the_cpu():
    for engine in ("cpu_w8a8", "cuda_w8a8"):
        with pytest.raises(RuntimeError, match=f"engine {engine}: the prior has no calibration. C"):
            sample_codes(tiny_prior(), 1, engine=engine)


def test_a_calibration_of_other_weights_is_refused_by_name():
    prior = calibrated()
    with torch.no_grad():
        prior.head.bias += 1
    with pytest.raises(RuntimeError, match="engine cuda_w8a8: the prior's calibration is of weigh"):
        sample_codes(prior, 1, engine="cuda_w8a8")


def test_a_prior_elsewhere_is_refused():
    with pytest.raises(RuntimeError, match="engine cuda_w8a8: the prior is on cpu"):
        sample_codes(calibrated(), 1, engine="cuda_w8a8")


def test_weights_are_packed_as_the_cpu_folds_them(monkeypatch):
    prior = calibrated()
    elsewhere = deepcopy(prior).to("meta")
    plan = interface_of(elsewhere).new_plan()
    packed = []
    monkeypatch.setattr(cuda_w8a8, "checked_ranges", lambda *_: prior.calibration.ranges)
    monkeypatch.setattr(cuda, "pack", lambda plan, *_: packed.append(plan) or {})

    def draw_cuda(plan, request, engine, calibrated):
        cuda._packed_plan(plan, cuda.PRECISIONS[engine], calibrated)
        return Mock(clamped=(0, 0))

    monkeypatch.setattr(cuda_w8a8, "draw_cuda", draw_cuda)
    cuda_w8a8.draw_cuda_w8a8(plan, prior, Mock())
    assert packed[0].device == torch.device("cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask", MASKS)
def test_a_gpu_gives_the_bits_of_the_cpu(mask):
    prior = calibrated(size=(6, 8), mask=mask, channels=64, residual_channels=48, num_classes=3)
    inputs = prior_inputs(prior, 5)
    expected = logits_of(prior, inputs, "cpu_w8a8")
    inputs |= {name: inputs[name].cuda() for name in ("codes", "labels")}
    assert torch.equal(logits_of(prior.cuda(), inputs, "cuda_w8a8").cpu(), expected)
