"""Engine `cpu`: the same bits for every batch, thread count and SIMD level; and its parts."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import simd_level, simd_levels
from helpers.cpu_memory import cache_bytes
from helpers.models import ODD_SIZES, prior_inputs, tiny_prior

from vqvae2_fast import ops
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import (
    choose_engine,
    interface_of,
    plan_of,
    sample_codes,
    teacher_forced_logits,
)
from vqvae2_fast.sampling.engines import cpu
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.sampling.quantized import quantized
from vqvae2_fast.sampling.settings import DrawSettings

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)

# More codes than a noise block.
ODD = ODD_SIZES | {"kernel_size": 5, "num_classes": 3}
MASKS = ["exclude", "include", "down", "downright"]


def logits_of(prior, inputs):
    return teacher_forced_logits(
        prior, inputs["codes"], condition=inputs["condition"], labels=inputs["labels"], engine="cpu"
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", [True, False])
def test_logits_are_bit_equal_with_any_number_of_threads(mask, attention, threads):
    prior = tiny_prior(mask=mask, attention=attention, **ODD)
    inputs = prior_inputs(prior, 3)
    threads(1)
    expected = logits_of(prior, inputs)
    for count in (2, 3, 5):
        threads(count)
        assert torch.equal(logits_of(prior, inputs), expected)


@pytest.mark.parametrize("level", simd_levels())
def test_a_sample_is_the_same_in_any_batch_and_at_any_level(level, threads):
    prior = tiny_prior(num_classes=3, num_embeddings=40)
    labels = torch.arange(64) % 4
    arguments = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "guidance_scale": 1.5}
    with simd_level(level):
        threads(1)
        alone = sample_codes(
            prior, 1, labels=labels[2:3], seed=3, first_sample=2, engine="cpu", **arguments
        )
        threads(2)
        for batch_size in (3, 64):
            codes = sample_codes(
                prior, batch_size, labels=labels[:batch_size], seed=3, engine="cpu", **arguments
            )
            assert torch.equal(codes[2], alone[0])


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.8},
        {"top_k": 1000, "top_p": 1e-6},
    ],
    ids=str,
)
def test_codes_are_drawn_by_the_rule(rule):
    prior = tiny_prior(num_embeddings=71)
    codes = sample_codes(prior, 4, seed=5, first_sample=2, stream=1, engine="cpu", **rule)
    logits = teacher_forced_logits(prior, codes, engine="cpu")
    noise = ops.gumbel_noise(torch.arange(2, 6), torch.arange(24), 71, seed=5, stream=1)
    by_position = logits.permute(0, 2, 3, 1).reshape(-1, 71)
    expected = DrawSettings(**rule).draw(by_position, noise.flatten(0, 1))
    assert torch.equal(codes.flatten(), expected)


def test_many_equal_shares_are_added_without_rounding_at_every_step():
    prior = tiny_prior(num_embeddings=2000)
    with torch.no_grad():
        for parameter in (prior.head.bias, prior.head.kernel.weight_g):
            parameter.zero_()
    # Position n's noise favours code 990 + n, and the first 1,000 are kept.
    favoured = 990 + torch.arange(24)
    noise = 1e3 * F.one_hot(favoured, 2000).float().view(1, 4, 6, 2000)
    codes = sample_codes(prior, 1, noise=noise, top_p=0.5, engine="cpu")
    assert codes.flatten().tolist() == [code if code < 1000 else 0 for code in favoured.tolist()]


def test_equal_logits_take_the_lowest_code():
    prior = tiny_prior(num_embeddings=40)
    with torch.no_grad():
        for parameter in (prior.head.bias, prior.head.kernel.weight_g):
            parameter.zero_()
    assert sample_codes(prior, 2, temperature=0.0, engine="cpu").eq(0).all()
    noise = torch.zeros(2, 4, 6, 40)
    assert sample_codes(prior, 2, noise=noise, engine="cpu").eq(0).all()
    assert (
        sample_codes(prior, 2, noise=noise - torch.arange(40) % 3, top_k=7, engine="cpu")
        .eq(0)
        .all()
    )


def test_int8_scales_span_the_largest_weight_of_each_output():
    weights = torch.tensor([[[1.0, -0.5, 0.0], [-2.54, 0.5, 0.0]]])  # [1, inputs, outputs]
    integers, scale = quantized(weights)
    torch.testing.assert_close(scale, torch.tensor([[0.02, 0.5 / 127, 1.0]]))
    assert integers.tolist() == [[[50, -127, 0], [-127, 127, 0]]]


def test_packed_weights_live_as_long_as_their_prior():
    prior = tiny_prior()
    first = weakref.ref(cpu.cpu_plan_of(prior, interface_of(prior)))
    assert cpu.cpu_plan_of(prior, interface_of(prior)) is first()
    del prior
    gc.collect()
    assert first() is None


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("conditioned", [True, False])
def test_caches_take_the_bytes_of_the_formula(mask, attention, conditioned):
    sizes = ODD["condition_sizes"] if conditioned else ()
    prior = tiny_prior(mask=mask, attention=attention, **ODD | {"condition_sizes": sizes})
    plan = plan_of(prior, interface_of(prior))
    packed = cpu.packed_plan(plan).packed
    for batch, guided in ((1, False), (5, True)):
        schedule = packed.schedule(rows=2 * batch if guided else batch)
        by_formula = sum(cache_bytes(plan, batch, schedule, guided=guided).values())
        assert packed.cache_bytes(batch=batch, guided=guided) == by_formula


def test_a_plan_that_lacks_values_is_refused():
    with pytest.raises(ValueError, match="sampler: bad plan: no 'format'"):
        _native.module.SamplerPlan(integers={}, sizes={})
    plan = plan_of(tiny_prior(), interface_of(tiny_prior()))
    described = described_plan(plan)
    described.sizes["head.bias"] = 5
    with pytest.raises(ValueError, match="tensor 'head.bias': expected 32 values, got 5"):
        described.packed(_native.module, 1)


def test_a_prior_that_does_not_fit_is_refused_with_the_reason():
    assert cpu.why_not_cpu(torch.device("cpu"), torch.float32) is None
    assert "the prior is on cuda:0" in cpu.why_not_cpu(torch.device("cuda:0"), torch.float32)
    prior = tiny_prior().double()
    with pytest.raises(RuntimeError, match="engine cpu: .* are float64") as refused:
        sample_codes(prior, 1, engine="cpu")
    assert str(refused.value).endswith(" Draw with engine='auto', which takes an engine that can.")
    name, reason = choose_engine("auto", prior)
    assert (name, "float64" in reason) == ("eager", True)
