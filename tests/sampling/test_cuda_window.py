"""Several codes per step of engine `cuda`, with its kernels executed on the CPU: the same bits as
one code per step, whatever the guesses, in every precision."""

import pytest
import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import interface_of, plan_of
from vqvae2_fast.sampling.engines import cuda
from vqvae2_fast.sampling.engines.cpu import draw_cpu_timed
from vqvae2_fast.sampling.noise import DrawNoise
from vqvae2_fast.sampling.request import DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings
from vqvae2_fast.testing.priors import DRAWING_RULES, MASKS, prior_inputs, tiny_prior

CARD = cuda.Card(blocks=5, shared_bytes=48 << 10, threads=64)


@pytest.fixture
def drawn(sampler_on_cpu):
    """Draws; returns codes, log-probabilities and logits, and the steps that windows took."""

    def draw(prior, inputs, window, precision="cuda", card=CARD, first_sample=0, **rule):
        batch, config = inputs["codes"].shape[0], prior.config
        noise = DrawNoise(
            batch, config.size[1], config.num_embeddings, torch.device("cpu"), 5, first_sample
        )
        request = DrawRequest(
            batch,
            inputs["condition"],
            inputs["labels"],
            inputs.get("known"),
            noise,
            DrawSettings(**rule, window=window),
            want_log_prob=True,
            want_logits=True,
        )
        plan, steps = plan_of(prior, interface_of(prior)), torch.zeros(1, dtype=torch.int64)
        result = cuda.draw_with(
            sampler_on_cpu, card, 0, plan, request, cuda.PRECISIONS[precision], steps
        )
        return (result.codes, result.log_prob, result.logits), int(steps)

    return draw


@pytest.fixture
def assert_same_bits(drawn):
    def check(prior, inputs, windows, **arguments):
        expected, _ = drawn(prior, inputs, 1, **arguments)
        height, width = prior.config.size
        for window in windows:
            own, steps = drawn(prior, inputs, window, **arguments)
            assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
            assert height * -(-width // window) <= steps <= height * width

    return check


def samples(inputs, chosen):
    """The inputs of some samples of a batch."""
    return {
        name: value[chosen]
        if isinstance(value, torch.Tensor)
        else [codes[chosen] for codes in value]
        if value
        else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attention", [True, False])
def test_a_window_draws_the_same_bits(mask, attention, assert_same_bits):
    prior = tiny_prior(
        mask=mask,
        attention=attention,
        kernel_size=5,
        size=(3, 7),
        num_output_layers=1,
        num_blocks=2,
        layers_per_block=2,
        num_classes=3,
        condition_sizes=((3, 7),),
    )
    assert_same_bits(prior, prior_inputs(prior, 2), [3, 20])
    assert_same_bits(prior, prior_inputs(prior, 1), [2])


@pytest.mark.parametrize("mask", ["exclude", "include"])
@pytest.mark.parametrize("precision", ["cuda_tf32", "cuda_bfloat16"])
def test_a_window_draws_the_same_bits_in_every_precision(mask, precision, assert_same_bits):
    prior = tiny_prior(mask=mask, size=(2, 6), num_output_layers=1)
    assert_same_bits(prior, prior_inputs(prior, 2), [4], precision=precision)


@pytest.mark.parametrize("rule", DRAWING_RULES, ids=str)
def test_a_window_draws_by_every_rule(rule, assert_same_bits):
    prior = tiny_prior(size=(2, 6), num_classes=3, mask="include", num_blocks=1)
    assert_same_bits(prior, prior_inputs(prior, 2), [4], **rule)


def test_a_window_of_many_blocks_and_more_rows_than_fit_at_once(drawn):
    # 64 channels and 5×5 kernels: every block has units of every stage, some weights are streamed,
    # and the inputs of a window's 12 rows are staged in several parts.
    prior = tiny_prior(
        size=(2, 6),
        channels=64,
        residual_channels=40,
        kernel_size=5,
        num_heads=4,
        mask="include",
        num_embeddings=70,
    )
    inputs = prior_inputs(prior, 2)
    expected, _ = drawn(prior, inputs, 1)
    for blocks, shared in ((3, 40 << 10), (8, 160 << 10)):
        own, _ = drawn(prior, inputs, 6, card=cuda.Card(blocks, shared, 96))
        assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))


def test_a_window_behind_a_chunk_of_attention(assert_same_bits):
    # Position 128 begins a chunk: columns of one window merge one part or two.
    prior = tiny_prior(size=(9, 15), num_blocks=1, layers_per_block=1, channels=8, num_heads=2)
    inputs = prior_inputs(prior, 1)
    inputs["known"] = inputs["codes"].clone()
    inputs["known"][:, -1] = -1
    assert_same_bits(prior, inputs, [6])


def test_windows_of_a_batch_go_on_each_by_itself(drawn):
    prior = tiny_prior(size=(1, 24), num_embeddings=3, num_blocks=1, layers_per_block=1)
    inputs = prior_inputs(prior, 4)
    inputs["known"] = inputs["codes"].clone()
    for n in range(4):
        inputs["known"][n, :, 5 * n :] = -1
    _, together = drawn(prior, inputs, 6)
    alone = [drawn(prior, samples(inputs, slice(n, n + 1)), 6, first_sample=n)[1] for n in range(4)]
    assert len(set(alone)) > 1
    assert together == max(alone)


def test_right_guesses_are_kept(drawn):
    prior = tiny_prior(size=(2, 6))
    inputs = prior_inputs(prior, 2)
    inputs["known"] = inputs["codes"]
    assert drawn(prior, inputs, 4)[1] == 2 * 2


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
def test_a_sample_takes_as_many_steps_as_by_engine_cpu(drawn):
    # So what trained priors keep per step, measured on a CPU, is also what a GPU keeps.
    prior = tiny_prior(size=(4, 12), num_embeddings=3, attention=False, num_blocks=1)
    inputs = prior_inputs(prior, 1)
    noise = DrawNoise(1, 12, 3, torch.device("cpu"), 5)
    request = DrawRequest(1, [], None, None, noise, DrawSettings(window=5))
    _, parts = draw_cpu_timed(plan_of(prior, interface_of(prior)), request)
    assert 4 * 3 < parts["steps"] < 4 * 12
    assert drawn(prior, inputs, 5)[1] == parts["steps"]


def test_windows_that_do_not_fit_the_card_are_refused(drawn):
    prior = tiny_prior(size=(1, 24), num_blocks=1)
    small = cuda.Card(blocks=4, shared_bytes=20 << 10, threads=64)
    drawn(prior, prior_inputs(prior, 1), 24, card=small)
    with pytest.raises(RuntimeError, match="places of 2400 rows of windows, the card has 20480"):
        drawn(prior, prior_inputs(prior, 100), 24, card=small)
