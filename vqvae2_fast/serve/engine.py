"""The threads that draw and that finish images: orders of all clients, in common batches.

A sample's codes do not depend on its batch, so clients never notice whom they were drawn with.
Orders join each other at every level: what waits at a level is drawn together when it is its turn.
While the next batch is drawn, a second thread decodes what is complete.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vqvae2_fast.models.configs import level_names
from vqvae2_fast.sampling.batches import draw_batch
from vqvae2_fast.sampling.pipeline import decoded
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.subclasses import subclass_labels
from vqvae2_fast.sampling.together import SampleRequest, draw_together
from vqvae2_fast.serve.images import as_png
from vqvae2_fast.serve.jobs import Job, Slot
from vqvae2_fast.serve.limits import Problem, stopping
from vqvae2_fast.serve.previews import Previews

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from vqvae2_fast.sampling import Pipeline
    from vqvae2_fast.sampling.prior import PriorInterface
    from vqvae2_fast.serve.jobs import Event, Order
    from vqvae2_fast.serve.limits import Limits
    from vqvae2_fast.serve.metrics import Metrics

__all__ = ["Engine"]

_SENT_TOGETHER = 0.03  # seconds of decoding whose events wake the loop once
_log = logging.getLogger("vqvae2_fast.serve")
Value = TypeVar("Value")


class _Abandoned(Exception):
    """All clients of a batch have gone."""


class Engine:
    """Draws orders and runs calls on models, one after the other, in a thread of its own; another
    one makes the files of drawn images."""

    def __init__(self, pipeline: Pipeline, limits: Limits, metrics: Metrics) -> None:
        self._pipeline, self._limits, self._metrics = pipeline, limits, metrics
        self._names = level_names(len(pipeline.priors))
        self._changed = threading.Condition()
        self._levels: list[deque[Slot]] = [deque() for _ in pipeline.priors]
        # What runs by itself: calls, and images of several candidates.
        self._alone: dict[str, deque[Callable[[], None]]] = {"call": deque(), "fill": deque()}
        self._last_level = 0  # that was drawn
        self._seconds = dict.fromkeys(("batch", *self._alone), 0.0)  # used by each kind of work
        self._admitted = 0  # images and calls that are not answered yet
        self._oldest = 0.0  # when the first of the waiting orders came
        self._stopping = False
        # Seconds of drawing since the last image, and those that an image of its batch took.
        self._busy, self._image_seconds = 0.0, 0.05
        self._thread = threading.Thread(target=self._work, name="vqvae2-engine", daemon=True)
        self._finishing = ThreadPoolExecutor(1, "vqvae2-finishing")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Give up what is not drawn yet, and wait for the threads to end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._finishing.shutdown()

    def submit(self, order: Order) -> Job:
        """Begin to draw; the job's events follow.

        Raises:
            Problem: 429 if too many images wait already, 503 if the server stops.
        """
        job = Job(order)
        slots = [Slot(job, index) for index in range(len(order.samples))]
        with self._changed:
            self._admit(len(slots))
            if order.candidates > 1:
                # One by one, so that others come between them.
                self._alone["fill"].extend(partial(self._fill, slot) for slot in slots)
            else:
                if not any(self._levels):
                    self._oldest = time.monotonic()
                self._levels[0].extend(slots)
            self._changed.notify()
        return job

    def call(self, function: Callable[[], Value]) -> Future[Value]:
        """Run a function between two batches; raises as `submit`."""
        future: Future[Value] = Future()
        with self._changed:
            self._admit(1)
            self._alone["call"].append(lambda: self._run(future, function))
            self._changed.notify()
        return future

    def _admit(self, count: int) -> None:
        if self._stopping:
            raise stopping()
        if self._admitted + count > self._limits.waiting:
            seconds = max(1, math.ceil(self._admitted * self._image_seconds))
            raise Problem(
                429,
                "",
                f"At most {self._limits.waiting} images may wait, {self._admitted} do.",
                f"Try again in {seconds} s, or ask for fewer images.",
                retry_after=seconds,
            )
        self._count(count)

    def _count(self, change: int) -> None:
        self._admitted += change
        self._metrics.waiting.set(self._admitted)

    def _work(self) -> None:
        while self._do_next():
            pass
        for slots in self._levels:
            self._tell([(slot.job, ("error", stopping())) for slot in slots])
        for waiting in self._alone.values():
            for work in waiting:
                work()

    def _do_next(self) -> bool:
        """Do the next piece of work, waiting for one; False when the engine stops."""
        with self._changed:
            work = self._next()
        if work is None:
            return False
        kind, function = work
        begun = time.monotonic()
        function()
        self._seconds[kind] += time.monotonic() - begun
        return True

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        """What to do next and of which kind, waiting for it; None when the engine stops.

        The kinds that wait get equal shares of the time.
        """
        while True:
            if self._stopping:
                return None
            level = self._ready_level()
            ready = [kind for kind, waiting in self._alone.items() if waiting]
            if level is not None:
                ready.insert(0, "batch")
            if ready:
                kind = min(ready, key=lambda kind: self._seconds[kind])
                # Who had nothing to do saves no time up for later.
                for other in self._seconds.keys() - set(ready):
                    self._seconds[other] = max(self._seconds[other], self._seconds[kind])
                if kind != "batch":
                    return kind, self._alone[kind].popleft()
                assert level is not None
                self._last_level, waiting = level, self._levels[level]
                taken = [waiting.popleft() for _ in range(min(len(waiting), self._limits.batch))]
                return "batch", partial(self._draw, level, taken)
            if not any(self._levels):  # idle: who worked longest has kept nobody waiting
                self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._changed.wait(self._patience() if any(self._levels) else None)

    def _patience(self) -> float:
        return max(0.0, self._oldest + self._limits.batch_wait - time.monotonic())

    def _ready_level(self) -> int | None:
        """The level to draw: they take turns, so that no image waits for others for long."""
        count = len(self._levels)
        turns = ((self._last_level + step) % count for step in range(1, count + 1))
        level = next((n for n in turns if self._levels[n]), None)
        # Only an idle engine waits for company; a busy one has had some while it drew.
        only_top = level == 0 and not any(self._levels[1:])
        return None if only_top and self._patience() > 0 else level

    def _run(self, future: Future[Any], function: Callable[[], Any]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                if self._stopping:
                    raise stopping()
                future.set_result(function())
        except Exception as error:  # The client is told, and the thread lives on.
            future.set_exception(error)
        finally:
            with self._changed:
                self._count(-1)

    def _draw(self, level: int, slots: list[Slot]) -> None:
        """Draw the maps of a level, and pass them on to the next or to be finished."""
        alive = self._staying(slots)
        if not alive:
            return
        begun = time.monotonic()
        with self._answering(alive):
            self._draw_maps(level, alive)
            if level + 1 < len(self._levels):
                with self._changed:
                    self._levels[level + 1].extend(alive)
            else:
                self._finishing.submit(self._finish, alive)
        self._busy += time.monotonic() - begun
        if level + 1 == len(self._levels):
            self._busy, self._image_seconds = 0.0, self._busy / len(alive)

    def _fill(self, slot: Slot) -> None:
        """Draw an image of several candidates by itself."""
        job, order, labels = slot.job, slot.job.order, None
        if self._pipeline.num_classes:
            label = order.label(slot.index)
            labels = torch.tensor(
                [self._pipeline.num_classes if label is None else label],
                dtype=torch.int64,
                device="cpu",
            )
        known = [None if maps is None else maps[None] for maps in order.known] or None

        def check(*_: int) -> None:
            if self._stopping or job.cancelled:
                raise _Abandoned

        with self._answering([slot]):
            check()
            sample = order.samples[slot.index]
            drawn = draw_batch(
                self._pipeline,
                range(sample, sample + 1),
                order.settings,
                labels=labels,
                known=known,
                candidates=order.candidates,
                progress=check,
            )
            slot.maps = [codes[0] for codes in drawn.codes]
            slot.log_prob, slot.effective = drawn.log_prob[0], drawn.effective[0]
            self._finishing.submit(self._finish, [slot])

    def _finish(self, slots: list[Slot]) -> None:
        alive = self._staying(slots)
        with self._answering(alive):
            self._deliver(alive)

    def _staying(self, slots: list[Slot]) -> list[Slot]:
        """Those whose clients are still there; the others are given up."""
        alive = [slot for slot in slots if not slot.job.cancelled]
        self._give_up(len(slots) - len(alive))
        return alive

    @contextmanager
    def _answering(self, slots: Sequence[Slot]) -> Iterator[None]:
        """Accounts for slots that are given up here; after an error, all clients are told."""
        try:
            yield
        except _Abandoned:
            self._give_up(len(slots))
            if self._stopping:
                self._tell([(job, ("error", stopping())) for job in {s.job for s in slots}])
        except Exception:  # The clients are told, and the thread lives on.
            _log.exception("drawing failed")
            problem = Problem(
                500, "", "Drawing failed.", "Look into the server's log, and report the error."
            )
            self._tell([(job, ("error", problem)) for job in {slot.job for slot in slots}])
            with self._changed:
                self._count(-sum(not slot.answered for slot in slots))

    def _give_up(self, images: int) -> None:
        self._metrics.cancelled.inc(images)
        with self._changed:
            self._count(-images)

    def _draw_maps(self, level: int, slots: Sequence[Slot]) -> None:
        prior = self._pipeline.priors[level]
        interface = interface_of(prior)
        requests = [
            SampleRequest(
                slot.job.order.settings[level],
                slot.job.order.samples[slot.index],
                slot.maps,
                _label(interface, slot, level),
                slot.job.order.known[level] if slot.job.order.known else None,
            )
            for slot in slots
        ]
        previews = Previews(self._pipeline, level, slots)
        wants_rows = any(slot.job.order.rows for slot in slots)

        def on_row(indices: Sequence[int], row: int, codes: Tensor) -> None:
            if self._stopping or all(slot.job.cancelled for slot in slots):
                raise _Abandoned
            if wants_rows:
                self._tell(_rows(self._names[level], slots, indices, row, codes.tolist()))
            self._tell(previews.after(indices, row, codes))

        drawn = draw_together(prior, requests, level, on_row)
        for slot, (codes, log_prob) in zip(slots, drawn, strict=True):
            slot.maps.append(codes)
            slot.log_prob.append(math.fsum(log_prob.flatten().tolist()))
        self._metrics.batches.labels(self._names[level]).observe(len(slots))
        self._metrics.codes.labels(self._names[level]).inc(len(slots) * drawn[0][0].numel())

    def _deliver(self, slots: Sequence[Slot]) -> None:
        """Decode each image by itself, since batches round differently, and send it.

        Waking the server's loop costs as much as decoding a small image, so what is decoded within
        a short time is sent together.
        """
        events: list[tuple[Job, Event]] = []
        told = time.monotonic()
        for slot in slots:
            image = decoded(self._pipeline, [codes[None] for codes in slot.maps])
            content = {
                "index": slot.index,
                "sample": slot.job.order.samples[slot.index],
                "codes": [codes.tolist() for codes in slot.maps],
                "log_prob": dict(zip(self._names, slot.log_prob, strict=True)),
                "effective_candidates": slot.effective
                and dict(zip(self._names, slot.effective, strict=True)),
                "png": as_png(image[0]),
            }
            with self._changed:
                self._count(-1)
            slot.answered = True
            slot.job.missing -= 1
            self._metrics.images.inc()
            now = time.monotonic()
            events.append((slot.job, ("image", content)))
            if not slot.job.missing:
                events.append((slot.job, ("done", {"seconds": now - slot.job.begun})))
            if slot is slots[-1] or now - told > _SENT_TOGETHER:
                self._tell(events)
                events, told = [], now

    def _tell(self, events: Sequence[tuple[Job, Event]]) -> None:
        if not events:
            return
        now = time.monotonic()
        for job, (name, _) in events:
            if name == "row" and not job.saw_row:
                job.saw_row = True
                self._metrics.first_row.observe(now - job.begun)

        def put() -> None:
            for job, event in events:
                job.events.put_nowait(event)

        self._loop.call_soon_threadsafe(put)


def _label(interface: PriorInterface, slot: Slot, level: int) -> int | None:
    """What a prior is told of an image's class."""
    order = slot.job.order
    label = order.label(slot.index)
    if label is None or not interface.num_classes:
        return None
    told = subclass_labels(
        interface,
        torch.tensor([label], dtype=torch.int64, device="cpu"),
        torch.tensor([order.samples[slot.index]], dtype=torch.int64, device="cpu"),
        seed=order.settings[level].seed,
        known=[None if maps is None else maps[None] for maps in order.known],
    )
    return int(told)


def _rows(
    level: str, slots: Sequence[Slot], indices: Sequence[int], row: int, codes: list[list[int]]
) -> list[tuple[Job, Event]]:
    """One event for each job that wants to see this row of its images."""
    of_jobs: dict[Job, dict[str, Any]] = {}
    for index, values in zip(indices, codes, strict=True):
        job = slots[index].job
        if job.order.rows and not job.cancelled:
            if job not in of_jobs:
                of_jobs[job] = {"level": level, "row": row, "images": [], "codes": []}
            of_jobs[job]["images"].append(slots[index].index)
            of_jobs[job]["codes"].append(values)
    return [(job, ("row", content)) for job, content in of_jobs.items()]
