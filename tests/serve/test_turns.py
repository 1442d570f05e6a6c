"""Whose turn it is in the engine, driven step by step without its thread."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="needs pip install 'vqvae2_fast[serve]'")

from vqvae2_fast.sampling import level_settings
from vqvae2_fast.serve import engine as engine_module
from vqvae2_fast.serve.engine import Engine
from vqvae2_fast.serve.jobs import Order
from vqvae2_fast.serve.limits import Limits
from vqvae2_fast.serve.metrics import Metrics

ORDER = Order(range(1), level_settings(2))
BATCH_SECONDS, CALL_SECONDS = 3, 1


@pytest.fixture
def done() -> list[str]:
    """The engine's work in the order in which it was done."""
    return []


@pytest.fixture
def clock() -> SimpleNamespace:
    """A clock that only work moves on."""
    return SimpleNamespace(now=0)


@pytest.fixture
def engine(pipeline, monkeypatch, done, clock) -> Engine:
    """An engine that says what it would draw."""
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    engine = Engine(pipeline, Limits(batch_wait=0), Metrics())

    def draw(level, slots):
        clock.now += BATCH_SECONDS
        done.append(f"level {level}, {len(slots)}")

    def called():
        clock.now += CALL_SECONDS
        done.append("call")

    monkeypatch.setattr(engine, "_draw_maps", draw)
    monkeypatch.setattr(engine, "_deliver", lambda slots: None)
    monkeypatch.setattr(engine, "called", called, raising=False)
    return engine


def test_no_image_waits_at_the_bottom_for_others_that_come_at_the_top(engine, done):
    for _ in range(4):
        engine.submit(ORDER)
        engine._do_next()
    assert done == ["level 0, 1", "level 1, 1", "level 0, 2", "level 1, 2"]


def test_calls_have_as_much_time_as_batches(engine, done):
    for _ in range(2):
        engine.submit(ORDER)
    for _ in range(8):
        engine.call(engine.called)
    for _ in range(7):
        engine._do_next()
    assert done == ["level 0, 2", *["call"] * 3, "level 1, 2", *["call"] * 2]


def test_calls_have_as_much_time_as_images_of_many_candidates(engine, done, monkeypatch):
    def fill(slot):
        engine.called()
        engine.called()
        done[-2:] = ["fill"]

    monkeypatch.setattr(engine, "_fill", fill)
    engine.submit(replace(ORDER, samples=range(6), candidates=2))
    for _ in range(4):
        engine.call(engine.called)
    for _ in range(6):
        engine._do_next()
    assert done == ["call", "fill", "call", "call", "fill", "call"]


def test_no_kind_of_work_saves_time_up(engine, done):
    for _ in range(5):
        engine.call(engine.called)
        engine._do_next()
    engine.submit(ORDER)
    for _ in range(4):
        engine.call(engine.called)
    for _ in range(4):
        engine._do_next()
    assert done[5:] == ["level 0, 1", "call", "call", "level 1, 1"]


def test_an_idle_engine_forgets_who_worked_longest(engine, done, monkeypatch, clock):
    def long_call():
        clock.now += 10 * BATCH_SECONDS

    def ask(_):
        for _ in range(3):
            engine.submit(replace(ORDER, samples=range(64)))
        engine.call(engine.called)

    monkeypatch.setattr(engine._changed, "wait", ask)
    engine.call(long_call)
    for _ in range(3):
        engine._do_next()
    assert done == ["level 0, 64", "call"]


def test_images_of_many_candidates_let_others_between_them(engine, done, monkeypatch):
    monkeypatch.setattr(engine, "_fill", lambda slot: engine.called())
    engine.submit(replace(ORDER, samples=range(6), candidates=2))
    engine.submit(ORDER)
    for _ in range(6):
        engine._do_next()
    assert done == ["level 0, 1", *["call"] * 3, "level 1, 1", "call"]
