"""Clients that go before their answer, and a server that goes before it has answered."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from fastapi.testclient import TestClient

from vqvae2_fast.serve import engine as engine_file
from vqvae2_fast.serve.app import create_app
from vqvae2_fast.serve.limits import Limits


def request(body: dict, leave: threading.Event):
    """Scope and `receive` of a POST to /v1/images by a client that goes when it is told to."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.to_thread(leave.wait, 20)
        return {"type": "http.disconnect"}

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST"}
    scope |= {"http_version": "1.1", "scheme": "http", "path": "/v1/images", "query_string": b""}
    scope |= {"raw_path": b"/v1/images", "root_path": "", "headers": headers}
    return scope, receive


async def ask_and_leave(app, body: dict, leave: threading.Event, *, reads: bool = True) -> None:
    """Unless the client reads, no part of the answer can be sent to it."""

    async def send(_):
        if not reads:
            await asyncio.Event().wait()

    await asyncio.wait_for(app(*request(body, leave), send), 20)


@pytest.fixture
def held(monkeypatch) -> tuple[threading.Event, threading.Event]:
    """Set when a batch is about to be drawn, and to be set to let it go on."""
    drawing, go_on, inner = threading.Event(), threading.Event(), engine_file.draw_together

    def draw_together(*arguments):
        drawing.set()
        assert go_on.wait(20)
        return inner(*arguments)

    monkeypatch.setattr(engine_file, "draw_together", draw_together)
    return drawing, go_on


@pytest.mark.parametrize(("stream", "reads"), [(False, True), (True, True), (True, False)])
def test_a_client_that_goes_takes_its_order_along(pipeline, held, stream, reads):
    drawing, go_on = held
    app = create_app(pipeline)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        ask = partial(ask_and_leave, app, {"count": 5, "stream": stream}, drawing, reads=reads)
        client.portal.call(ask)
        go_on.set()
        assert len(client.post("/v1/images", json={"count": 2}).json()["images"]) == 2
        text = client.get("/metrics").text
    assert "vqvae2_cancelled_images_total 5.0" in text
    assert "vqvae2_images_total 2.0" in text
    assert "vqvae2_waiting_images 0.0" in text


def test_a_client_that_goes_before_its_upload_is_whole_is_no_failure(pipeline):
    app, leave, sent = create_app(pipeline), threading.Event(), []
    scope, _ = request({}, leave)
    scope |= {"path": "/v1/encode", "raw_path": b"/v1/encode"}
    messages = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"GIF", "more_body": True},
    ]

    async def ask() -> None:
        async def receive():
            return messages.pop()

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.portal.call(ask)
        text = client.get("/metrics").text
    assert sent[0]["status"] == 499
    assert 'vqvae2_requests_total{route="/v1/encode",status="499"} 1.0' in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_takes_nothing_of_its_answer_is_given_up(pipeline, stream):
    app = create_app(pipeline, replace(Limits(), seconds=0.5))
    stays = threading.Event()

    async def ask() -> bool:
        async def send(_):
            await asyncio.Event().wait()

        asked = asyncio.create_task(app(*request({"stream": stream}, stays), send))
        given_up, _ = await asyncio.wait({asked}, timeout=20)
        asked.cancel()
        return bool(given_up)

    with TestClient(app, base_url="http://127.0.0.1") as client:
        given_up = client.portal.call(ask)
        stays.set()
    assert given_up


def test_a_request_that_is_cancelled_is_told_that_the_server_stops(pipeline, held):
    drawing, go_on = held
    app, sent = create_app(pipeline), []

    async def ask_and_cancel() -> None:
        async def send(message):
            sent.append(message)

        asked = asyncio.create_task(app(*request({"count": 1}, go_on), send))
        await asyncio.to_thread(drawing.wait, 20)
        asked.cancel()
        await asked

    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.portal.call(ask_and_cancel)
        go_on.set()
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["expected"] == "The server is stopping."


def test_a_server_that_is_made_to_end_leaves_no_thread(pipeline):
    """A second ctrl-C leaves out the end of the lifespan, which is no failure to be logged."""
    said = []

    async def run_and_cancel() -> None:
        started, messages = asyncio.Event(), [{"type": "lifespan.startup"}]

        async def receive():
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        async def send(message):
            said.append(message["type"])
            started.set()

        running = asyncio.create_task(create_app(pipeline)({"type": "lifespan"}, receive, send))
        await started.wait()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    before = set(threading.enumerate())
    asyncio.run(run_and_cancel())
    new = set(threading.enumerate()) - before
    assert "vqvae2-engine" not in {thread.name for thread in new}
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
