"""Weights folded for drawing: norms with the same bits on every machine, and the bounds."""

from __future__ import annotations

import pytest
import torch
from helpers.models import tiny_prior
from torch import nn

from vqvae2_fast.modules.causal_conv import ConvWeight
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import interface_of, plan_of, sample_codes
from vqvae2_fast.sampling.folding import LEAST_NORM, Folding

compiled = pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
# Weights of fewer values than the 16 sums, of odd numbers of them, and of several pieces of work.
SHAPES = [
    (3, 1, 1, 1),
    (5, 7, 1, 3),
    (2, 33, 5, 5),
    (40, 17, 3, 3),
    (700, 96, 3, 3),
    (4, 300000, 1, 1),
]


def kernel_of(shape: tuple[int, int, int, int], num_live: int | None = None) -> ConvWeight:
    torch.manual_seed(0)
    return ConvWeight(shape, num_live=num_live)


def defined_norms(kernel: ConvWeight) -> torch.Tensor:
    """The sums of `csrc/cpu/weights/weight_norms.h`, in its order."""
    v = kernel.masked_v().detach().flatten(1).double()
    sums = torch.zeros(len(v), 16, dtype=torch.float64)
    for part in nn.functional.pad(v, (0, -v.shape[1] % 16)).square().split(16, dim=1):
        sums += part
    while sums.shape[1] > 1:
        low, high = sums.chunk(2, 1)
        sums = low + high
    return sums[:, 0].sqrt().float()


def native_norms(kernel: ConvWeight, threads: int) -> torch.Tensor:
    v = kernel.weight_v.detach()
    norms = torch.empty(len(v))
    weights = [(v, *v.flatten(2).shape, kernel.num_live, norms)]
    _native.module.weight_norms(weights, threads)
    return norms


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norms_are_those_of_the_fixed_order(shape, threads):
    for num_live in {1, shape[2] * shape[3]}:
        kernel = kernel_of(shape, num_live)
        assert torch.equal(native_norms(kernel, threads), defined_norms(kernel))


@compiled
def test_the_norms_are_those_of_a_weight_in_another_order_of_memory():
    kernel = kernel_of((5, 7, 3, 3), 4)
    expected = defined_norms(kernel)
    kernel.weight_v.data = kernel.weight_v.data.to(memory_format=torch.channels_last)
    scale = Folding(kernel).scale(kernel).detach()
    assert torch.equal(scale, kernel.weight_g / expected.view(-1, 1, 1, 1))


@pytest.mark.parametrize("library", ["compiled", "torch"])
def test_a_folded_weight_is_that_of_the_forward_pass(library, monkeypatch):
    if library == "torch":
        monkeypatch.setattr(_native, "module", None)
    kernel = kernel_of((9, 5, 3, 3), 5)
    kernel.weight_v.data[:, :, 2, 1] = torch.nan  # a dead tap, which may hold anything
    torch.testing.assert_close(Folding(kernel).weight(kernel), kernel())


def test_a_weight_that_is_not_normed_is_only_masked():
    kernel = ConvWeight((4, 3, 3, 3), num_live=2, weight_norm=False)
    folding = Folding(kernel)
    assert folding.scale(kernel) is None
    assert torch.equal(folding.weight(kernel), kernel())


@pytest.mark.parametrize("library", ["compiled", "torch"])
def test_too_small_a_norm_gives_nan(library, monkeypatch):
    if library == "torch":
        monkeypatch.setattr(_native, "module", None)
    kernel = ConvWeight((3, 1, 1, 1))
    with torch.no_grad():
        kernel.weight_v.copy_(torch.tensor([LEAST_NORM, 0.99 * LEAST_NORM, 0.0]).view(3, 1, 1, 1))
        kernel.weight_g.fill_(2.0**-40)
    assert Folding(kernel).scale(kernel).isnan().flatten().tolist() == [False, True, True]


@compiled
def test_the_plan_of_a_prior_has_these_norms():
    prior = tiny_prior()
    kernel = prior.blocks[0].layers[0].conv1.kernel
    scale = plan_of(prior, interface_of(prior)).layers.conv1.scales[0]
    assert torch.equal(scale.flatten(), kernel.weight_g.detach().flatten() / defined_norms(kernel))


@pytest.mark.parametrize("engine", ["cpu", "eager"])
def test_one_layer_without_its_norm_keeps_the_scales_of_the_others(engine):
    if engine == "cpu" and _native.module is None:
        pytest.skip("this install has no compiled module")
    prior = tiny_prior(layers_per_block=2)
    wanted = sample_codes(prior, 2, engine=engine)
    kernel = prior.blocks[0].layers[0].conv1.kernel
    kernel.weight_v.data = Folding(prior).weight(kernel).detach()
    kernel.weight_g = None
    assert torch.equal(sample_codes(prior, 2, engine=engine), wanted)


VALUES = [0.0, -0.0, 1e-45, 8.0, -8.0]
BEYOND = [8.000001, -8.000001, 3e38, float("inf"), float("-inf"), float("nan"), -float("nan")]


@compiled
@pytest.mark.parametrize("count", [1, 5, 16, 31, 1 << 18, (1 << 19) + 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_within_finds_a_value_beyond_wherever_it_is(count, threads):
    values = torch.tensor(VALUES).repeat(-(-count // len(VALUES)))[:count].contiguous()
    assert _native.module.within([], 8.0, threads)
    assert _native.module.within([values], 8.0, threads)
    for place in {0, count // 2, count - 1}:
        kept = values[place].clone()
        for beyond in BEYOND:
            values[place] = beyond
            assert not _native.module.within([values], 8.0, threads)
        values[place] = kept
