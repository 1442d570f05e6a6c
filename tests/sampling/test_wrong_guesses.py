"""What a window computes behind wrong guesses is no part of the draw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate, sample_codes
from vqvae2_fast.sampling.quantized import InputRanges
from vqvae2_fast.sampling.sampler import draw
from vqvae2_fast.sampling.settings import DrawSettings
from vqvae2_fast.testing.priors import tiny_prior

COMPILED = [] if _native.module is None else ["cpu", "cpu_w8a8"]
SIZE, NUM_EMBEDDINGS = (3, 6), 5


def prior_of_a_loud_code(weight: float):
    """Code 0, which windows guess in the first row, is never drawn. Its weights are large."""
    prior = tiny_prior(
        size=SIZE, num_embeddings=NUM_EMBEDDINGS, mask="include", weight_norm=False, num_blocks=1
    )
    with torch.no_grad():
        for kernel in prior.stem.parameters():
            if kernel.dim() == 4:
                kernel[:, 0] = weight
        prior.stem.left.bias.fill_(1.0)
        prior.head.bias[0] = -50.0
    codes = torch.randint(1, NUM_EMBEDDINGS, (60, *SIZE), generator=torch.manual_seed(0))
    calibrate(prior, [(codes, None, None)], margin=2)
    return prior


def check_that_no_window_refuses(engine: str) -> None:
    prior = prior_of_a_loud_code(2.0**20)
    single, window = (sample_codes(prior, 2, engine=engine, window=w) for w in (1, 3))
    assert torch.equal(single, window)
    assert (single > 0).all()


@pytest.mark.parametrize("engine", COMPILED)
def test_activations_that_are_too_large_there_are_not_refused(engine):
    check_that_no_window_refuses(engine)


@pytest.mark.parametrize("engine", ["on_cpu", "on_cpu_w8a8"])
def test_the_kernels_for_cuda_do_not_refuse_them_either(engine, engines):
    check_that_no_window_refuses(engine)


def check_that_no_window_counts(engine: str, recwarn) -> None:
    prior = prior_of_a_loud_code(200.0)
    counts = {draw(prior, 2, DrawSettings(engine=engine, window=w)).clamped for w in (1, 2, 3, 6)}
    assert len(counts) == 1
    assert not recwarn


@pytest.mark.parametrize("threads_of_draw", [1, 2])
@pytest.mark.skipif(not COMPILED, reason="needs the compiled kernels")
def test_inputs_that_are_clamped_there_are_not_counted(threads_of_draw, threads, recwarn):
    threads(threads_of_draw)
    check_that_no_window_counts("cpu_w8a8", recwarn)


def test_the_kernels_for_cuda_do_not_count_them_either(engines, recwarn):
    check_that_no_window_counts("on_cpu_w8a8", recwarn)


@pytest.mark.filterwarnings("ignore:engine cpu_w8a8")
@pytest.mark.filterwarnings("ignore:engine on_cpu_w8a8")
def test_the_last_step_of_a_row_counts_if_all_guesses_were_wrong(engines):
    prior = tiny_prior(size=(6, 2), mask="include")
    calibrate(prior, [(torch.zeros(1, 6, 2).long(), None, None)])
    ranges = InputRanges(prior.calibration.ranges.largest, 0.3)
    prior.calibration = replace(prior.calibration, ranges=ranges)
    for engine in (*COMPILED[1:], "on_cpu_w8a8"):
        single, window = (
            draw(prior, 2, DrawSettings(engine=engine, window=w)).clamped for w in (1, 2)
        )
        assert 0 < single[0] == window[0]
