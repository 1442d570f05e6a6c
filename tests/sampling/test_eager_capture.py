"""Engine `eager` as captured on CUDA; without a GPU, run before the draw as it is there."""

import pytest
import torch

from vqvae2_fast.sampling import sample_codes, teacher_forced_logits
from vqvae2_fast.sampling.engines import eager
from vqvae2_fast.testing.near_tie import assert_near_tie
from vqvae2_fast.testing.priors import prior_inputs, tiny_prior


@pytest.mark.parametrize("mask", ["exclude", "include", "down", "downright"])
@pytest.mark.parametrize("attention", [True, False])
def test_a_row_that_ran_before_the_draw_leaves_nothing(mask, attention, monkeypatch):
    prior = tiny_prior(mask=mask, attention=attention, num_classes=3, num_output_layers=1)
    inputs = prior_inputs(prior, 2)
    arguments = {"labels": inputs["labels"], "engine": "eager"}
    expected = teacher_forced_logits(prior, inputs["codes"], **arguments)
    runs = []

    def captured(function):
        function()
        runs.append(function)
        return function

    monkeypatch.setattr(eager, "captured", captured)
    monkeypatch.setattr(eager, "CAPTURING_DEVICES", ("cpu",))
    assert torch.equal(teacher_forced_logits(prior, inputs["codes"], **arguments), expected)
    assert len(runs) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", [True, False])
def test_captured_rows_draw_what_the_reference_does(attention):
    prior = tiny_prior(attention=attention, condition_sizes=((2, 3),)).cuda()
    condition = [codes.cuda() for codes in prior_inputs(prior, 3)["condition"]]
    codes = sample_codes(prior, 3, engine="eager", condition=condition)
    assert_near_tie(prior, codes, engine="eager", condition=condition)
