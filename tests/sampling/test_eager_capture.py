"""Engine `eager` as captured on CUDA, and what it keeps between draws.

Without a GPU rows are recorded: the operators that a row calls, with the same tensors and numbers,
are called again in every later row. Like a CUDA graph, a recording does not depend on what Python
would do the next time.
"""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior
from helpers.near_tie import assert_near_tie
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast.sampling import interface_of, plan_of, sample_codes, teacher_forced_logits
from vqvae2_fast.sampling.engines import eager
from vqvae2_fast.sampling.engines.eager_capture import captured
from vqvae2_fast.sampling.kept import Kept


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def replay(self):
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


@pytest.fixture
def recordings(monkeypatch):
    """The recordings that are made instead of captures; each test has its own kept values."""
    made = []

    def captured(function):
        function()
        with Recording() as recording:
            function()
        made.append(recording)
        return recording.replay

    monkeypatch.setattr(eager, "captured", captured)
    monkeypatch.setattr(eager, "CAPTURING_DEVICES", ("cpu",))
    monkeypatch.setattr(eager, "_captured_rows", Kept(capacity=2))
    return made


def new_prior(**arguments):
    return tiny_prior(
        num_classes=3, num_output_layers=1, condition_sizes=((2, 3),), num_blocks=1, **arguments
    )


def draw(prior, batch_size=2, seed=0, **arguments):
    torch.manual_seed(seed)
    inputs = prior_inputs(prior, batch_size)
    return sample_codes(
        prior,
        batch_size,
        condition=inputs["condition"],
        labels=inputs["labels"],
        seed=seed,
        engine="eager",
        **arguments,
    )


@pytest.mark.parametrize("mask", ["exclude", "include", "down", "downright"])
@pytest.mark.parametrize("attention", [True, False])
def test_rows_that_ran_before_the_draw_leave_nothing(mask, attention, recordings):
    prior = tiny_prior(mask=mask, attention=attention, num_classes=3, num_output_layers=1)
    inputs = prior_inputs(prior, 2)
    arguments = {"labels": inputs["labels"]}
    logits = teacher_forced_logits(prior, inputs["codes"], engine="eager", **arguments)
    assert len(recordings) == 1
    expected = teacher_forced_logits(prior, inputs["codes"], engine="reference", **arguments)
    # Logits of order one, sums in another order.
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("mask", ["exclude", "include"])
@pytest.mark.parametrize("attention", [True, False])
def test_a_kept_row_draws_what_a_new_one_draws(mask, attention, recordings, monkeypatch):
    prior = new_prior(mask=mask, attention=attention)
    known = torch.full((2, *prior.config.size), -1)
    known[:, 1, 2:] = 5
    draws = [
        {"seed": seed, **keeping}
        for keeping in ({}, {"known": known}, {"known": known.flip(1)})
        for seed in (1, 2)
    ]
    kept = [draw(prior, **arguments) for arguments in draws]
    assert len(recordings) == 2  # with known codes and without
    for codes, arguments in zip(kept, draws, strict=True):
        monkeypatch.setattr(eager, "_captured_rows", Kept(capacity=2))
        assert torch.equal(codes, draw(prior, **arguments))
    assert len(recordings) == 2 + len(draws)
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.5},
        {"guidance_scale": 2.0},
        {"known": torch.full((2, 4, 6), 1)},
    ],
    ids=str,
)
def test_a_draw_of_another_kind_is_captured_by_itself(change, recordings):
    prior = new_prior()
    draw(prior)
    codes = draw(prior, **change)
    assert len(recordings) == 2
    torch.manual_seed(0)
    inputs = prior_inputs(prior, change.get("batch_size", 2))
    context = {"condition": inputs["condition"], "labels": inputs["labels"]}
    rule = {name: value for name, value in change.items() if name != "batch_size"}
    assert torch.equal(
        codes, sample_codes(prior, len(codes), engine="reference", **context, **rule)
    )
    draw(prior)
    draw(prior, **change)
    assert len(recordings) == 2


def test_other_settings_of_pytorch_are_captured_by_themselves(recordings):
    prior = new_prior()
    draw(prior)
    torch.use_deterministic_algorithms(True)
    try:
        draw(prior)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(recordings) == 2


def test_changed_weights_are_captured_anew_and_free_what_was_kept(recordings):
    prior = new_prior()
    before = draw(prior)
    old = weakref.ref(plan_of(prior, interface_of(prior)))
    assert eager._captured_rows.count(old()) == 1
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(draw(prior), before)
    assert len(recordings) == 2
    assert old() is None


def test_what_is_kept_goes_with_the_prior(recordings):
    prior = new_prior()
    draw(prior)
    (row,) = eager._captured_rows._of_owner[plan_of(prior, interface_of(prior))].values()
    network = weakref.ref(row.network)
    recordings.clear()
    gc.disable()
    try:
        del prior, row
        # With the garbage collector off: a graph's memory must not wait for it.
        assert network() is None
    finally:
        gc.enable()


def test_a_draw_inside_another_has_buffers_of_its_own(recordings):
    prior = new_prior()
    expected, inner = draw(prior, seed=1), []
    progress = lambda *_: inner.append(draw(prior, seed=2))  # noqa: E731
    assert torch.equal(draw(prior, seed=1, progress=progress), expected)
    assert all(torch.equal(codes, draw(prior, seed=2)) for codes in inner)
    assert len(recordings) == 2


def test_a_draw_that_failed_keeps_nothing(recordings):
    prior = new_prior()

    def stop(*_):
        raise KeyboardInterrupt

    expected = draw(prior)
    with pytest.raises(KeyboardInterrupt):
        draw(prior, progress=stop)
    assert eager._captured_rows.count(plan_of(prior, interface_of(prior))) == 0
    assert torch.equal(draw(prior), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", [True, False])
def test_captured_rows_draw_what_the_reference_does(attention):
    prior = tiny_prior(attention=attention, condition_sizes=((2, 3),)).cuda()
    condition = [codes.cuda() for codes in prior_inputs(prior, 3)["condition"]]
    for seed in (0, 1):
        codes = sample_codes(prior, 3, engine="eager", condition=condition, seed=seed)
        assert_near_tie(prior, codes, engine="eager", condition=condition, seed=seed)
    assert eager._captured_rows.count(plan_of(prior, interface_of(prior))) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_thread_may_wait_for_the_device_during_a_capture():
    count = torch.zeros(1, device="cuda")

    def wait():
        return torch.ones(3, device="cuda").sum().item()

    with ThreadPoolExecutor(1) as other:

        def function():
            count.add_(1)
            assert other.submit(wait).result() == 3

        replay = captured(function)
    before = count.item()
    replay()
    assert count.item() == before + 1
