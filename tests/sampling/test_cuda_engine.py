"""Engine `cuda`, with its kernels executed on the CPU: every thread is a fiber, and five blocks are
resident.

This shows that they compute what the reference does and wait for each other as they must. Races are
looked for by the thread sanitizer (.ci/cuda_sampler); speed and a GPU's own arithmetic are not.
"""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior
from helpers.near_tie import assert_near_tie
from safetensors.torch import load_file

from vqvae2_fast import ops
from vqvae2_fast.compat import rosinality
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import (
    choose_engine,
    interface_of,
    plan_of,
    sample_codes,
    teacher_forced_logits,
)
from vqvae2_fast.sampling.bounds import SAMPLING_BOUND
from vqvae2_fast.sampling.engines import cuda
from vqvae2_fast.sampling.settings import DrawSettings

CARD = cuda.Card(blocks=5, shared_bytes=48 << 10, threads=64)
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MASKS = ("exclude", "include", "down", "downright")


def logits_of(prior, inputs, engine="on_cpu"):
    return teacher_forced_logits(
        prior,
        inputs["codes"],
        condition=inputs["condition"],
        labels=inputs["labels"],
        engine=engine,
    )


KINDS = {
    f"{mask}, {'attention' if attention else 'no attention'}": {
        "mask": mask,
        "attention": attention,
        # Every second kind is conditioned, every second pair has classes, parts and variants.
        "condition_sizes": ((1, 2), (3, 2)) if n % 2 else (),
        "num_classes": 3 if n // 2 % 2 else 0,
        "num_subclasses": 2,
        "num_variants": 1,
        "num_output_layers": n % 3,
    }
    for n, (mask, attention) in enumerate(product(MASKS, (True, False)))
}


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_logits_that_are_too_large_are_refused_as_by_the_other_engines(guidance_scale, engines):
    prior = tiny_prior(num_classes=3, size=(3, 4))
    with torch.no_grad():
        # Under guidance only the logits without a class, number 3, are spoiled.
        for layer in prior.blocks[0].layers:
            layer.classes.weight[0 if guidance_scale == 1.0 else 3] = SAMPLING_BOUND
    labels = torch.tensor([0 if guidance_scale == 1.0 else 1])
    for engine in ("reference", "on_cpu"):
        with pytest.raises(ValueError, match="got larger ones or NaN"):
            sample_codes(prior, 1, labels=labels, engine=engine, guidance_scale=guidance_scale)


@pytest.mark.parametrize("kind", KINDS)
def test_priors_of_every_kind_draw_as_the_reference_does(kind, engines):
    prior = tiny_prior(size=(3, 4), **KINDS[kind])
    inputs = prior_inputs(prior, 2)
    context = {"condition": inputs["condition"], "labels": inputs["labels"], "seed": 5}
    codes = sample_codes(prior, 2, engine="on_cpu", **context)
    result = assert_near_tie(prior, codes, engine="on_cpu", **context)
    assert result.logit_error < 2e-6  # logits of order one, sums in a different order
    assert torch.equal(codes, sample_codes(prior, 2, engine="reference", **context))


@pytest.mark.parametrize("name", ["pixelsnail_top", "pixelsnail_bottom"])
def test_the_ports_golden_maps_are_drawn(name, engines):
    spec = json.loads((GOLDEN / "golden.json").read_text())[name]
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    prior = rosinality.PixelSNAIL(*spec["constructor"], **spec["keywords"]).eval()
    prior.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("state.")})
    codes = sample_codes(
        prior, 2, condition=tensors.get("condition"), noise=tensors["gumbel"], engine="on_cpu"
    )
    assert torch.equal(codes, tensors["sampled"])


@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_work_of_many_blocks(mask, engines, card):
    # 64 channels and 5×5 kernels: every block has units of every stage, some weights are streamed.
    prior = tiny_prior(
        size=(2, 5),
        channels=64,
        residual_channels=40,
        kernel_size=5,
        num_heads=4,
        mask=mask,
        num_embeddings=70,
    )
    inputs = prior_inputs(prior, 3)
    with torch.no_grad():
        expected = prior(inputs["codes"])
    logits = logits_of(prior, inputs)
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-6)
    for blocks, shared in ((3, 32 << 10), (8, 160 << 10)):
        card[0] = cuda.Card(blocks, shared, 96)
        assert torch.equal(logits_of(prior, inputs), logits)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(("mask", "kernel_size"), [("exclude", 5), ("downright", 4)])
def test_sizes_that_are_multiples_of_nothing(mask, kernel_size, attention, engines):
    prior = tiny_prior(
        size=(2, 3),
        mask=mask,
        kernel_size=kernel_size,
        attention=attention,
        channels=54,
        residual_channels=37,
        num_heads=3,
        num_embeddings=41,
        num_output_layers=1,
        condition_sizes=((1, 1), (2, 3)),
        condition_channels=21,
        num_classes=3,
    )
    inputs = prior_inputs(prior, 11)
    with torch.no_grad():
        expected = prior(inputs["codes"], inputs["condition"], inputs["labels"])
    torch.testing.assert_close(logits_of(prior, inputs), expected, rtol=0, atol=3e-6)
    rounded = logits_of(prior, inputs, "on_cpu_bfloat16")
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.1)  # 2^-8 of sums of order ten


def test_a_sample_is_the_same_in_any_batch(engines):
    prior = tiny_prior(size=(2, 4), num_blocks=1, num_classes=3)
    labels = torch.arange(64) % 4
    arguments = {"temperature": 0.9, "top_k": 9, "top_p": 0.95, "guidance_scale": 1.5, "seed": 3}
    whole = sample_codes(prior, 64, labels=labels, engine="on_cpu", **arguments)
    for first, count in ((7, 1), (20, 3)):
        part = sample_codes(
            prior,
            count,
            labels=labels[first : first + count],
            first_sample=first,
            engine="on_cpu",
            **arguments,
        )
        assert torch.equal(part, whole[first : first + count])


def test_more_positions_than_a_chunk_of_attention(engines):
    prior = tiny_prior(size=(10, 16), num_blocks=1, layers_per_block=1, channels=8, num_heads=2)
    inputs = prior_inputs(prior, 1)
    with torch.no_grad():
        expected = prior(inputs["codes"])
    torch.testing.assert_close(logits_of(prior, inputs), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "rule",
    [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.8},
        {"top_k": 1000, "top_p": 1e-6},
    ],
    ids=str,
)
def test_codes_are_drawn_by_the_rule(rule, engines):
    prior = tiny_prior(
        size=(2, 4), num_embeddings=71, attention=False, num_blocks=1, layers_per_block=1
    )
    codes = sample_codes(prior, 3, seed=5, first_sample=2, stream=1, engine="on_cpu", **rule)
    logits = teacher_forced_logits(prior, codes, engine="on_cpu")
    noise = ops.gumbel_noise(torch.arange(2, 5), torch.arange(8), 71, seed=5, stream=1)
    by_position = logits.permute(0, 2, 3, 1).reshape(-1, 71)
    expected = DrawSettings(**rule).draw(by_position, noise.flatten(0, 1))
    assert torch.equal(codes.flatten(), expected)


def test_known_codes_given_noise_and_log_prob(engines):
    prior = tiny_prior(size=(2, 4), attention=False, num_blocks=1)
    noise = ops.gumbel_noise(torch.arange(2), torch.arange(8), 13, seed=2**40 + 1)
    known = torch.full((2, 2, 4), -1)
    known[:, 0, 1:3] = 7
    codes, log_prob = sample_codes(
        prior, 2, noise=noise.view(2, 2, 4, 13), known=known, engine="on_cpu", return_log_prob=True
    )
    assert codes[:, 0, 1:3].eq(7).all()
    same = sample_codes(prior, 2, seed=2**40 + 1, known=known, engine="reference")
    assert torch.equal(codes, same)
    logits = teacher_forced_logits(prior, codes, engine="on_cpu")
    expected = torch.log_softmax(logits.double(), 1).gather(1, codes[:, None])[:, 0]
    # Logits of order one: a few roundings of the sum and the logarithm.
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "bits"), [("on_cpu_tf32", 11), ("on_cpu_bfloat16", 8)], ids=["tf32", "bfloat16"]
)
@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_products_on_tensor_cores_round_their_inputs(engine, bits, mask, engines):
    prior = tiny_prior(size=(3, 4), mask=mask, condition_sizes=((3, 2),), num_output_layers=1)
    inputs = prior_inputs(prior, 2)
    exact = logits_of(prior, inputs)
    error = (logits_of(prior, inputs, engine) - exact).abs().max()
    # Each product has two rounded factors; logits of order one sum the errors of all layers.
    assert 0 < error < 16 * 2.0**-bits


def test_out_of_memory_says_which_batch_would_fit(sampler_on_cpu, monkeypatch):
    plan = plan_of(tiny_prior(), interface_of(tiny_prior()))
    values = cuda.plan_values(plan, CARD, cuda.PRECISIONS["cuda"], 40, guided=False)
    needed = [sampler_on_cpu.sizes({**values, "batch": b}).workspace_bytes for b in (16, 17)]
    assert cuda.largest_batch(sampler_on_cpu, values, needed[1] - 1) == 16
    assert cuda.largest_batch(sampler_on_cpu, values, 0) == 0

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "zeros", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed[0], 1 << 40))
    with pytest.raises(torch.OutOfMemoryError, match=r"a batch of 40 needs .* 16 would fit"):
        cuda.zeroed_workspace(sampler_on_cpu, values, 1 << 40, torch.device("cpu"))


def test_a_prior_too_large_for_the_card_is_refused_with_the_reason(sampler_on_cpu):
    prior = tiny_prior(channels=512, kernel_size=9)
    plan = plan_of(prior, interface_of(prior))
    assert cuda.why_not_plan(sampler_on_cpu, CARD, plan) is None
    small = cuda.Card(blocks=4, shared_bytes=8 << 10, threads=64)
    assert "bytes of shared memory per block" in cuda.why_not_plan(sampler_on_cpu, small, plan)
    tall = tiny_prior(kernel_size=21)
    plan = plan_of(tall, interface_of(tall))
    assert "20 rows above, more than 8" in cuda.why_not_plan(sampler_on_cpu, CARD, plan)


@pytest.fixture
def _conv_precision_returns():
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    yield
    cudnn.allow_tf32 = True
    cudnn.conv.fp32_precision = before


@pytest.mark.usefixtures("_conv_precision_returns")
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_features_are_in_float32_and_the_settings_return(precision, monkeypatch):
    cudnn, found = torch.backends.cudnn, []

    def settings():
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision

    def features(_, maps):
        found.append(settings())
        return torch.zeros(1)

    monkeypatch.setattr(cuda, "condition_features", features)
    cudnn.conv.fp32_precision = precision
    before = settings()
    cuda._features(None, [torch.zeros(2, 3, 3)])
    assert found == [(True, False, True, "ieee")] * 2
    assert settings() == before


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
def test_a_prior_elsewhere_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.why_not_cuda(torch.device("cpu"), torch.float32) == "the prior is on cpu"
    with pytest.raises(RuntimeError, match="engine cuda: the prior is on cpu") as refused:
        sample_codes(tiny_prior(), 1, engine="cuda")
    assert "Move it with device=cuda, or draw with engine='auto'" in str(refused.value)
    assert choose_engine("auto", tiny_prior())[0] == "cpu"


def test_packed_weights_are_written_before_and_kept_until_any_stream_has_read_them(monkeypatch):
    done = []

    class Weight:
        def record_stream(self, stream):
            done.append(f"used on {stream.name}")

    class Stream:
        def __init__(self, name):
            self.name = name

        def synchronize(self):
            done.append(f"await {self.name}")

    class Plan:
        device = torch.device("cuda")

    monkeypatch.setattr(cuda, "pack", lambda *_: done.append("pack") or {"head": Weight()})
    plan = Plan()
    for name in ("first", "second"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda name=name: Stream(name))
        cuda._packed_plan(plan, cuda.PRECISIONS["cuda"])
    assert done == ["pack", "await first", "used on first", "used on second"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_priors_of_every_kind_on_a_gpu(kind):
    prior = tiny_prior(size=(6, 8), channels=64, residual_channels=48, **KINDS[kind]).cuda()
    inputs = prior_inputs(prior, 5)
    context = {
        "condition": [codes.cuda() for codes in inputs["condition"]],
        "labels": None if inputs["labels"] is None else inputs["labels"].cuda(),
    }
    assert choose_engine("auto", prior)[0] == "cuda"
    codes = sample_codes(prior, 5, seed=5, engine="cuda", **context)
    assert_near_tie(prior, codes, seed=5, engine="cuda", **context)
    last = {
        "condition": [codes[-1:] for codes in context["condition"]],
        "labels": None if context["labels"] is None else context["labels"][-1:],
    }
    alone = sample_codes(prior, 1, seed=5, first_sample=4, engine="cuda", **last)
    assert torch.equal(alone, codes[-1:])


def test_a_draw_with_other_noise_is_not_planned_anew(engines, sampler_on_cpu, monkeypatch):
    prior = tiny_prior(size=(2, 3))
    sample_codes(prior, 2, seed=1, engine="on_cpu")
    calls, call = [], sampler_on_cpu._call
    monkeypatch.setattr(
        sampler_on_cpu, "_call", lambda name, *rest: (calls.append(name), call(name, *rest))[1]
    )
    sample_codes(prior, 2, seed=2, engine="on_cpu")
    assert "sizes" not in calls and "program" in calls
