"""The noise is pinned bit for bit: published Philox vectors, a golden table, and statistics."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.compare import simd_level, simd_levels
from safetensors.torch import load_file

from vqvae2_fast import ops
from vqvae2_fast.ops import _native
from vqvae2_fast.ops.gumbel_noise.op import (
    GUMBEL_NOISE,
    fixed_log,
    gumbel_noise_reference,
    philox4x32,
    random_word,
    random_words,
    uniform_from_words,
)

GOLDEN = Path(__file__).parents[1] / "data" / "gumbel_golden.safetensors"


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, words):
    actual = philox4x32(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(int(word) for word in actual) == words


@pytest.mark.parametrize("seed", [0, -3, 2**40 + 5, 2**63])
def test_a_word_without_tensors_is_the_first_of_those_with_them(seed):
    zero = torch.zeros((), dtype=torch.int64)
    word = random_words(zero, zero, zero, seed=seed, stream=3 << 8, purpose=2)
    assert random_word(seed=seed, stream=3 << 8, purpose=2) == word.item()


def golden_arguments():
    return torch.tensor([0, 1, 7, 2**31, 2**32 - 1]), torch.arange(8) * 131, 250, 2**40 + 17, 2


def test_reference_gives_the_golden_table():
    noise = gumbel_noise_reference(*golden_arguments())
    assert noise.numel() == 10_000
    assert torch.equal(noise, load_file(GOLDEN)["noise"])


@pytest.mark.parametrize("level", simd_levels())
def test_kernel_gives_the_golden_table(level):
    samples, positions, num_embeddings, seed, stream = golden_arguments()
    with simd_level(level):
        noise = ops.gumbel_noise(samples, positions, num_embeddings, seed=seed, stream=stream)
    assert torch.equal(noise, load_file(GOLDEN)["noise"])


def test_logarithm_is_accurate_to_two_ulp():
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).clamp(min=2.0**-24)
    exact = x.double().log()
    assert ((fixed_log(x) - exact).abs() <= 2 * 2.0**-24 * exact.abs().clamp(min=2.0**-24)).all()


def test_uniforms_never_reach_the_ends():
    ends = uniform_from_words(torch.tensor([0, 0xFFFFFFFF]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]


def test_noise_has_the_moments_of_a_gumbel():
    noise = ops.gumbel_noise(torch.arange(64), torch.arange(64), 256).double()
    assert abs(noise.mean() - 0.5772157) < 0.01
    assert abs(noise.var() - torch.pi**2 / 6) < 0.02


def test_argmax_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    noise = ops.gumbel_noise(torch.arange(200), torch.arange(500), 4, seed=3)
    frequency = torch.bincount((logits + noise).argmax(dim=2).flatten(), minlength=4) / 100_000
    torch.testing.assert_close(frequency, logits.softmax(0), rtol=0, atol=0.006)


def test_seed_stream_sample_and_position_all_matter():
    one = torch.zeros(1, dtype=torch.int64)
    base = ops.gumbel_noise(one, one, 8)
    for other in (
        ops.gumbel_noise(one + 1, one, 8),
        ops.gumbel_noise(one, one + 1, 8),
        ops.gumbel_noise(one, one, 8, seed=1),
        ops.gumbel_noise(one, one, 8, seed=1 << 32),
        ops.gumbel_noise(one, one, 8, stream=1),
    ):
        assert (base != other).all()


def test_numbers_count_modulo_2_to_the_32():
    samples, positions = torch.tensor([2**32 + 5, -1]), torch.tensor([2**32 + 1, -(2**33)])
    inside = gumbel_noise_reference(samples % 2**32, positions % 2**32, 9, 3, 1)
    assert torch.equal(gumbel_noise_reference(samples, positions, 9, 3, 1), inside)
    assert torch.equal(ops.gumbel_noise(samples, positions, 9, seed=3, stream=1), inside)


def test_dropout_keeps_its_share():
    keep = ops.dropout_mask(torch.tensor(0), 4, 100, 500, 0.3)
    assert abs(keep.float().mean() - 0.7) < 0.005


def test_a_driver_that_is_too_old_is_a_reason_for_the_reference(monkeypatch):
    reason = "the driver supports CUDA 12.4 and the kernels were built with CUDA 13.0"
    asked = []
    module = SimpleNamespace(why_not_cuda=lambda: asked.append("runtime") or reason)
    monkeypatch.setattr(_native, "module", module)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    _native.why_not_cuda.cache_clear()
    noise = replace(GUMBEL_NOISE, owners={"cuda": "cuda"})
    call = (SimpleNamespace(device=torch.device("cuda", 0)),)
    assert noise.choose(*call) == reason
    assert noise.choose(*call) == reason
    assert asked == ["runtime"]
    _native.why_not_cuda.cache_clear()
