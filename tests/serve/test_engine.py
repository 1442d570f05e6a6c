"""The threads that draw and finish: common batches, those who leave, limits, and their end."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from helpers.models import tiny_pipeline

from vqvae2_fast.sampling import DrawSettings, sample_levels
from vqvae2_fast.serve import engine as engine_file
from vqvae2_fast.serve.engine import Engine
from vqvae2_fast.serve.jobs import Order
from vqvae2_fast.serve.limits import Limits, Problem
from vqvae2_fast.serve.metrics import Metrics

SETTINGS = (DrawSettings(), DrawSettings())


def order(count: int = 1, seed: int = 0, *, rows: bool = False) -> Order:
    settings = tuple(replace(level, seed=seed) for level in SETTINGS)
    return Order(range(count), settings, (1,), rows=rows)


class Gate:
    """`draw_together`, which waits before each map until it is let through, and notes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[tuple[int, int]] = []  # (level, requests)
        self.waiting, self.open = threading.Event(), threading.Semaphore(0)
        inner = engine_file.draw_together

        def draw_together(prior, requests, stream, on_row):
            self.drawn.append((stream, len(requests)))
            self.waiting.set()
            assert self.open.acquire(timeout=20)
            return inner(prior, requests, stream, on_row)

        monkeypatch.setattr(engine_file, "draw_together", draw_together)

    def let_all_through(self) -> None:
        self.open.release(1000)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def run_with(pipeline, use, **limits):
    """Runs `use(engine, metrics)` in a loop with an engine, which is stopped at the end."""

    async def main():
        metrics = Metrics()
        engine = Engine(pipeline, replace(Limits(), **limits), metrics)
        engine.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(use(engine, metrics), 20)
        finally:
            await asyncio.to_thread(engine.stop)

    return asyncio.run(main())


async def events_of(job):
    return [event async for event in job.told(20)]


async def images_of(job):
    return [content for name, content in await events_of(job) if name == "image"]


def test_orders_of_all_clients_are_drawn_in_common_batches(pipeline, gate):
    async def use(engine, metrics):
        first = engine.submit(order(2))
        await asyncio.to_thread(gate.waiting.wait, 20)
        others = [engine.submit(order(3, seed)) for seed in (1, 2)]
        gate.let_all_through()
        return [await images_of(job) for job in (first, *others)]

    images = run_with(pipeline, use, batch_wait=0.0)
    assert [len(found) for found in images] == [2, 3, 3]
    assert gate.drawn == [(0, 2), (1, 2), (0, 6), (1, 6)]


@pytest.fixture
def decoding(monkeypatch):
    """Events of `decoded`: it has been entered, and it may go on. Its calls are noted."""
    decoded, calls = engine_file.decoded, []
    entered, go_on = threading.Event(), threading.Event()

    def waits(*arguments):
        calls.append(arguments)
        entered.set()
        assert go_on.wait(20)
        return decoded(*arguments)

    monkeypatch.setattr(engine_file, "decoded", waits)
    return entered, go_on, calls


def test_the_next_batch_is_drawn_while_images_are_decoded(pipeline, gate, decoding):
    entered, go_on, _ = decoding
    gate.let_all_through()

    async def use(engine, metrics):
        first = engine.submit(order(1))
        assert await asyncio.to_thread(entered.wait, 20)
        gate.waiting.clear()
        second = engine.submit(order(1, 1))
        drawn = await asyncio.to_thread(gate.waiting.wait, 5)
        go_on.set()
        return drawn, [len(await images_of(job)) for job in (first, second)]

    assert run_with(pipeline, use) == (True, [1, 1])


def test_images_whose_client_has_gone_are_not_decoded(pipeline, gate, decoding):
    entered, go_on, calls = decoding
    gate.let_all_through()

    async def use(engine, metrics):
        engine.submit(order(1))
        assert await asyncio.to_thread(entered.wait, 20)
        leaves = engine.submit(order(1, 1))
        while len(gate.drawn) < 4:
            await asyncio.sleep(0)
        await asyncio.wrap_future(engine.call(lambda: None))  # both levels are drawn
        leaves.cancelled = True
        go_on.set()
        await asyncio.to_thread(engine.stop)
        return metrics.text().decode()

    metrics = run_with(pipeline, use)
    assert len(calls) == 1
    assert "vqvae2_cancelled_images_total 1.0" in metrics
    assert "vqvae2_waiting_images 0.0" in metrics


def test_a_batch_whose_clients_have_gone_is_given_up(pipeline, gate):
    async def use(engine, metrics):
        left, stays = engine.submit(order(2)), engine.submit(order(1, 5))
        await asyncio.to_thread(gate.waiting.wait, 20)
        left.cancelled = True
        gate.let_all_through()
        images = await images_of(stays)
        gone = engine.submit(order(3, 6))
        gone.cancelled = True
        await images_of(engine.submit(order(1, 7)))
        return images, metrics.text().decode()

    images, metrics = run_with(pipeline, use)
    assert len(images) == 1
    assert "vqvae2_cancelled_images_total 5.0" in metrics
    assert "vqvae2_waiting_images 0.0" in metrics
    # Those who left are drawn to the end of the level at most.
    assert gate.drawn[1] == (1, 1)


def test_more_than_may_wait_is_refused_with_a_time(pipeline, gate):
    async def use(engine, metrics):
        job = engine.submit(order(3))
        with pytest.raises(Problem) as refused:
            engine.submit(order(2))
        gate.let_all_through()
        await images_of(job)
        return refused.value

    problem = run_with(pipeline, use, waiting=4)
    assert problem.status == 429
    assert int(problem.headers()["Retry-After"]) >= 1


def test_an_error_while_drawing_is_told_and_the_next_order_is_drawn(pipeline, monkeypatch):
    def fails(*_):
        raise RuntimeError("no memory")

    async def use(engine, metrics):
        with monkeypatch.context() as patched:
            patched.setattr(engine_file, "draw_together", fails)
            told = await events_of(engine.submit(order(2)))
        return told, await images_of(engine.submit(order(2)))

    told, images = run_with(pipeline, use)
    assert [(name, problem.status) for name, problem in told] == [("error", 500)]
    assert len(images) == 2


def test_an_error_after_the_first_image_is_counted_once(pipeline, monkeypatch):
    decoded, calls = engine_file.decoded, []

    def fails_later(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return decoded(*arguments)

    async def use(engine, metrics):
        with monkeypatch.context() as patched:
            patched.setattr(engine_file, "decoded", fails_later)
            await events_of(engine.submit(order(3)))
        await images_of(engine.submit(order(1)))
        return metrics.text().decode()

    assert "vqvae2_waiting_images 0.0" in run_with(pipeline, use)


def test_what_takes_too_long_is_given_up(pipeline, gate):
    async def use(engine, metrics):
        job = engine.submit(order(1))
        told = [event async for event in job.told(0.0)]
        gate.let_all_through()
        return told, job

    told, job = run_with(pipeline, use)
    assert [(name, problem.status) for name, problem in told] == [("error", 504)]
    assert job.cancelled


def test_stopping_tells_those_who_wait(pipeline, gate):
    async def use(engine, metrics):
        drawn = engine.submit(order(1))
        await asyncio.to_thread(gate.waiting.wait, 20)
        waits = engine.submit(order(1, 1))
        call = engine.call(lambda: 1)
        stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
        while not engine._stopping:  # set by the other thread
            await asyncio.sleep(0)
        gate.let_all_through()
        await stopping
        told = [await events_of(job) for job in (drawn, waits)]
        with pytest.raises(Problem):
            engine.submit(order(1))
        with pytest.raises(Problem):
            call.result(0)
        return told

    told = run_with(pipeline, use)
    for events in told:
        assert [(name, problem.status) for name, problem in events] == [("error", 503)]


def test_an_image_is_the_same_in_any_company(pipeline):
    async def alone(engine, metrics):
        return await images_of(engine.submit(order(3, 4)))

    async def together(engine, metrics):
        cold = tuple(replace(level, temperature=0.3, top_k=3) for level in SETTINGS)
        others = [
            engine.submit(Order(range(5), cold, (None,))),
            engine.submit(order(7, 8, rows=True)),
        ]
        images = await images_of(engine.submit(order(3, 4)))
        for job in others:
            await images_of(job)
        return images

    assert run_with(pipeline, alone) == run_with(pipeline, together)


def test_an_image_is_of_the_part_that_a_draw_of_its_own_has():
    pipeline = tiny_pipeline(num_subclasses=4)
    known = sample_levels(pipeline, 1, labels=[0])[0]

    async def use(engine, metrics):
        of_part = await images_of(engine.submit(Order(range(5, 6), SETTINGS, (2,))))
        of_class = Order(range(5, 6), SETTINGS, (2,), (known[0], None))
        return of_part + await images_of(engine.submit(of_class))

    expected = [
        sample_levels(pipeline, 1, labels=[2], first_sample=5, known=[codes, None])
        for codes in (None, known)
    ]
    found = [image["codes"] for image in run_with(pipeline, use)]
    assert found == [[maps[0].tolist() for maps in levels] for levels in expected]
