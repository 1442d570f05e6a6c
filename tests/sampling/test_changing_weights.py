"""Weights that change while they are read: a draw is of one state of them, or refused, and nothing
wrong is kept."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from helpers.models import prior_inputs, tiny_pipeline, tiny_prior
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from vqvae2_fast import codec
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate, interface_of, kept, plan_of, sample_codes, score_codes

needs_kernels = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)
ENGINES = [pytest.param("cpu", marks=needs_kernels), "eager"]


def scores(prior, engine):
    return score_codes(prior, **prior_inputs(prior, 2), engine=engine)


def other_weights(prior, factor=0.5):
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(factor)


def changed_while_read(monkeypatch, prior, *, times):
    """Lets another thread, as it were, change the weights at the end of the next folds."""
    left = [times]
    check = kept.fingerprint

    def fingerprint(tensors):
        tensors = list(tensors)
        found = check(tensors)
        if left[0] and fingerprint.odd:
            left[0] -= 1
            other_weights(prior)
        fingerprint.odd = not fingerprint.odd
        return found

    fingerprint.odd = True  # before something is made; even, after it
    monkeypatch.setattr(kept, "fingerprint", fingerprint)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_change_once_are_read_again(monkeypatch, engine):
    prior = tiny_prior(num_classes=3)
    changed_while_read(monkeypatch, prior, times=1)
    found = scores(prior, engine)
    monkeypatch.undo()
    torch.testing.assert_close(found, scores(copy.deepcopy(prior), "reference"))
    assert torch.equal(scores(prior, engine), found)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_do_not_come_to_rest_are_refused_and_nothing_is_kept(monkeypatch, engine):
    prior = tiny_prior(num_classes=3)
    changed_while_read(monkeypatch, prior, times=100)
    with pytest.raises(RuntimeError, match="weights changed while they were read"):
        scores(prior, engine)
    monkeypatch.undo()
    torch.testing.assert_close(scores(prior, engine), scores(prior, "reference"))


def test_the_reference_is_refused_weights_that_change_between_its_rows():
    prior = tiny_prior(num_classes=3)
    with pytest.raises(RuntimeError, match="weights changed while they were read"):
        sample_codes(
            prior, 1, labels=[0], engine="reference", progress=lambda *_: other_weights(prior)
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draw_is_of_the_weights_at_its_beginning(engine):
    prior = tiny_prior(num_classes=3)
    expected = sample_codes(prior, 2, labels=[0, 1], engine=engine)
    found = sample_codes(
        prior, 2, labels=[0, 1], engine=engine, progress=lambda *_: other_weights(prior, -2.0)
    )
    assert torch.equal(found, expected)


def test_a_plan_shares_no_memory_with_its_prior():
    prior = tiny_prior(num_classes=3, weight_norm=False, condition_sizes=((2, 3),))
    plan = plan_of(prior, interface_of(prior))
    before = copy.deepcopy(plan)
    other_weights(prior)
    own, others = [], []
    for value, into in ((plan, own), (before, others)):
        collect(value, into)
    assert own and all(map(torch.equal, own, others))


def collect(value, into):
    if isinstance(value, torch.Tensor):
        into.append(value)
    elif isinstance(value, tuple):
        for part in value:
            collect(part, into)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            collect(getattr(value, name), into)


@needs_kernels
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_change_while_a_plan_is_made_and_change_back_are_not_in_it(
    monkeypatch, engine
):
    prior = tiny_prior(num_classes=3)
    expected = scores(copy.deepcopy(prior), engine)
    module = importlib.import_module("vqvae2_fast.sampling.prior")
    check = module.check_weights

    def changed_for_a_while(tensors):
        check(tensors)
        monkeypatch.undo()
        other_weights(prior, 2.0)
        monkeypatch.setattr(module, "check_plan", lambda plan: other_weights(prior, 0.5))

    monkeypatch.setattr(module, "check_weights", changed_for_a_while)
    assert torch.equal(scores(prior, engine), expected)
    assert torch.equal(scores(prior, engine), expected)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_what_was_made_of_a_parametrized_weight_is_not_taken_for_the_plain_one():
    module = torch.nn.Linear(2, 2)
    register_parametrization(module, "weight", Doubled())
    kept.made_of(module, "weight", lambda copy: copy.weight.clone())
    remove_parametrizations(module, "weight", leave_parametrized=False)
    found = kept.made_of(module, "weight", lambda copy: copy.weight)
    assert torch.equal(found, module.weight)


def test_a_calibration_is_of_the_weights_after_the_last_batch():
    prior = tiny_prior(num_classes=3)
    inputs = prior_inputs(prior, 2)
    batch = (inputs["codes"], inputs["condition"], inputs["labels"])

    def batches():
        yield batch
        other_weights(prior, 2.0)

    calibrate(prior, batches())
    ranges = prior.calibration.ranges.largest
    calibrate(prior, [batch])
    assert all(torch.equal(ranges[name], own) for name, own in ranges.items())
    assert torch.isfinite(scores(prior, "cpu_w8a8")).all()


@needs_kernels
def test_a_stream_is_encoded_by_the_weights_at_its_beginning():
    pipeline = tiny_pipeline()
    own = [copy.deepcopy(prior.state_dict()) for prior in pipeline.priors]
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = pipeline.vqvae.encode(images)

    def batches():
        for prior in pipeline.priors:  # as a preview with averaged weights would
            other_weights(prior)
        yield codes, None

    data = b"".join(codec.encode_stream(pipeline, batches()))
    for prior, state in zip(pipeline.priors, own, strict=True):
        prior.load_state_dict(state)
    assert all(map(torch.equal, codec.decode_codes(pipeline, data), codes))
    for prior in pipeline.priors:
        torch.testing.assert_close(scores(prior, "cpu"), scores(prior, "reference"))


@needs_kernels
def test_levels_of_different_states_are_refused_and_not_encoded(monkeypatch):
    pipeline = tiny_pipeline()
    top, bottom = pipeline.priors
    codes = pipeline.vqvae.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    hash_of, calls = codec.codes.weights_hash, []

    def changes_all_after_the_top(model):
        calls.append(model)
        if len(calls) == 2:
            monkeypatch.undo()
            other_weights(top)
            other_weights(bottom)
        return hash_of(model)

    monkeypatch.setattr(codec.codes, "weights_hash", changes_all_after_the_top)
    with pytest.raises(RuntimeError, match="weights changed while they were read"):
        codec.encode_codes(pipeline, codes)
    assert all(
        map(torch.equal, codec.decode_codes(pipeline, codec.encode_codes(pipeline, codes)), codes)
    )
