"""The weights that engine `cpu` packs: byte for byte those of the definition in PyTorch."""

from dataclasses import replace

import pytest
import torch
from helpers.models import ODD_SIZES, prior_inputs, tiny_prior
from helpers.packed import packed_words, panels_of, with_panels

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate, interface_of, plan_of
from vqvae2_fast.sampling.engines.cpu_pack import described_plan

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)

# Enough weights for several threads, and for more inputs than are read together.
LARGE = {"channels": 160, "residual_channels": 96, "kernel_size": 5}
FORMATS = ["float32", "w8a8"]


def described_as(prior, weights):
    plan = plan_of(prior, interface_of(prior))
    if weights == "float32":
        return described_plan(plan)
    inputs = prior_inputs(prior, 2)
    calibrate(prior, [(inputs["codes"], inputs["condition"], inputs["labels"])])
    return described_plan(plan, prior.calibration.ranges)


def assert_packed_as_defined(described, threads):
    made = described.packed(_native.module, threads)
    packed = set()
    for packing in described.packings:
        for name, parts in packed_words(packing).items():
            size = described.sizes[name]
            expected = torch.zeros(size, dtype=torch.int32)
            for place, words in parts.items():
                expected[place : place + len(words)] = words
            words = torch.frombuffer(made.memory(name), dtype=torch.int32)
            assert torch.equal(words, expected), name
            packed.add(name)
    plain = {name for name, size in described.sizes.items() if size} - packed
    assert plain <= set(described.tensors)
    for name in plain:
        words = torch.frombuffer(made.memory(name), dtype=torch.float32)
        assert torch.equal(words.view(described.tensors[name].shape), described.tensors[name])


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("mask", ["exclude", "include", "down", "downright"])
@pytest.mark.parametrize("attention", [True, False])
def test_padded_shapes_are_packed_as_defined(weights, mask, attention):
    prior = tiny_prior(mask=mask, attention=attention, **ODD_SIZES)
    assert_packed_as_defined(described_as(prior, weights), 1)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_packs_as_defined(weights, threads):
    assert_packed_as_defined(described_as(tiny_prior(**LARGE), weights), threads)


@pytest.mark.parametrize("weights", FORMATS)
def test_extreme_weights_are_packed_as_defined(weights):
    described = described_as(tiny_prior(**ODD_SIZES), weights)
    for n, packing in enumerate(described.packings):
        panels = panels_of(packing)
        panels[..., 0] = -0.0
        panels[..., 1] *= 1e-40  # subnormal
        panels[..., 2] = 3e38
        # Halfway between integers in steps of 1, the largest being 127.
        panels[..., 3] = (
            torch.arange(panels[..., 3].numel()).view(panels.shape[:-1]) % 509 / 2 - 127
        )
        scales = packing.input_scales
        ones = None if scales is None else torch.ones_like(scales)
        described.packings[n] = replace(with_panels(packing, panels), input_scales=ones)
    assert_packed_as_defined(described, 1)


def test_weights_in_another_order_of_memory_are_packed_as_defined():
    prior = tiny_prior(**ODD_SIZES).to(memory_format=torch.channels_last)
    described = described_as(prior, "float32")
    assert not described.packings[0].weights[0].is_contiguous()
    assert_packed_as_defined(described, 1)
