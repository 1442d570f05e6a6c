"""Clients that go before their answer: what they ordered is given up."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial

import pytest
from fastapi.testclient import TestClient

from vqvae2_fast.serve import engine as engine_file
from vqvae2_fast.serve.app import create_app


async def ask_and_leave(app, body: dict, leave: threading.Event, *, reads: bool = True) -> None:
    """A POST to /v1/images by a client that goes when it is told to.

    Unless it reads, no part of the answer can be sent to it.
    """
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.to_thread(leave.wait, 20)
        return {"type": "http.disconnect"}

    async def send(_):
        if not reads:
            await asyncio.Event().wait()

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST"}
    scope |= {"http_version": "1.1", "scheme": "http", "path": "/v1/images", "query_string": b""}
    scope |= {"raw_path": b"/v1/images", "root_path": "", "headers": headers}
    await asyncio.wait_for(app(scope, receive, send), 20)


@pytest.mark.parametrize(("stream", "reads"), [(False, True), (True, True), (True, False)])
def test_a_client_that_goes_takes_its_order_along(pipeline, monkeypatch, stream, reads):
    drawing, go_on, inner = threading.Event(), threading.Event(), engine_file.draw_together

    def draw_together(*arguments):
        drawing.set()
        assert go_on.wait(20)
        return inner(*arguments)

    monkeypatch.setattr(engine_file, "draw_together", draw_together)
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
