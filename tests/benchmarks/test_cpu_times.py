"""What the scripts for the CPU measure: engines `cpu` and `eager`, and the memory of a training
step."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def sampler(measuring):
    return measuring("sampler")


def test_a_draw_is_timed_by_the_clock_of_what_it_is_compared_with(sampler, monkeypatch):
    """Another process had the core for three quarters of the draw."""
    cpu, wall = iter([10.0, 12.0]), iter([100.0, 108.0])
    parts = {"condition": 1.0, "rows": 3.0, "pixels": 4.0, "steps": 9}
    monkeypatch.setattr(sampler, "clock", cpu.__next__)
    monkeypatch.setattr(sampler, "time", SimpleNamespace(perf_counter=wall.__next__))
    monkeypatch.setattr(sampler, "draw_cpu_timed", lambda *arguments: (None, parts))
    assert sampler.timed_draw(None, None) == (
        2.0,
        {"condition": 0.25, "rows": 0.75, "pixels": 1.0, "steps": 9},
    )


def test_rows_of_the_naive_sampler_are_summed(sampler, monkeypatch):
    """Each of the 8 codes of row i, from 0 to 3, takes i + 1 seconds."""
    config = SimpleNamespace(size=(4, 8), condition_sizes=(), num_classes=0)
    now = [0.0]

    def prior(codes, maps, labels):
        assert labels is None
        now[0] += codes.shape[1]

    monkeypatch.setattr(sampler, "clock", lambda: now[0])
    assert sampler.naive_seconds(config, prior, 1, 2) == 8 * (1 + 2 + 3 + 4)


def test_engine_eager_warms_up_and_draws_three_times(sampler, measuring, monkeypatch, capsys):
    eager, now = measuring("sampler_eager"), [0.0]
    seconds = iter([50.0, 3.0, 1.0, 2.0])  # the first draw sets up the engine

    def draw(plan, request):
        now[0] += next(seconds)

    monkeypatch.setattr(sampler, "clock", lambda: now[0])
    monkeypatch.setattr(eager, "draw_eager", draw)
    monkeypatch.setattr(eager, "prepared", lambda config, batch: (None, None, None))
    monkeypatch.setattr(eager.measure, "machine", lambda: "a machine")
    options = ["--maps", "top", "--naive-rows", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["sampler_eager.py", *options])
    eager.main()
    assert "top: 2.00 s (1.00 to 3.00)" in capsys.readouterr().out
    assert next(seconds, None) is None


def test_memory_that_a_training_step_holds_has_its_weights(measuring, monkeypatch, capsys):
    training_step, memory = measuring("training_step"), {"model": 0.0, "moments": 0.0}

    def make_step(name, contender):
        memory["model"] = 30.0
        run = lambda: memory.update(moments=60.0)  # noqa: E731
        return SimpleNamespace(run=run, optimizer=SimpleNamespace(zero_grad=lambda **_: None))

    monkeypatch.setattr(training_step, "make_step", make_step)
    monkeypatch.setattr(training_step, "resident", lambda field: 500.0 + sum(memory.values()))
    monkeypatch.setattr(training_step, "rise_of", lambda run: 7.0)
    training_step.print_memory("a_step", "ours")
    assert capsys.readouterr().out.split() == ["7.0", "90.0"]
