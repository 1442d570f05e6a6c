"""Who may ask, and how much: origin, host, token, sizes; and the headers of every answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from fastapi.testclient import TestClient

import vqvae2_fast.serve
from vqvae2_fast.serve.app import create_app
from vqvae2_fast.serve.limits import Limits

STATIC = Path(vqvae2_fast.serve.__file__).parent / "static"
ADDRESS = "http://127.0.0.1"


def client_of(pipeline, address: str = ADDRESS, **options) -> TestClient:
    return TestClient(create_app(pipeline, **options), base_url=address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "[::1]:7860", "127.0.0.2"])
def test_names_of_this_machine_are_served(pipeline, host):
    assert client_of(pipeline, f"http://{host}").get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example"])
def test_a_page_under_another_name_does_not_reach_a_local_server(pipeline, host):
    answer = client_of(pipeline, f"http://{host}").get("/v1/info")
    assert answer.status_code == 403
    assert answer.json()["error"]["field"] == "Host"
    assert client_of(pipeline, f"http://{host}", loopback=False).get("/v1/info").is_success


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/v1/info", 401), ("/nowhere", 404)])
def test_every_answer_names_the_pipeline(pipeline, path, status):
    client = client_of(pipeline, token="secret")
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["Vqvae2-Pipeline"] == client.get("/healthz").json()["pipeline"]


def test_a_page_of_another_origin_is_refused(client):
    answer = client.post("/v1/images", json={}, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert client.post("/v1/images", json={}, headers={"Origin": ADDRESS}).is_success


@pytest.mark.parametrize("path", ["/v1/info", "/metrics"])
def test_a_token_is_asked_for(pipeline, path):
    client = client_of(pipeline, token="secret")
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"Authorization": "Bearer secres"}).status_code == 401
    assert client.get(path, headers={"Authorization": "Bearer secret"}).is_success
    assert client.get("/healthz").is_success


@pytest.mark.parametrize("path", ["encode", "images"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(pipeline, chunked, path):
    limits = replace(Limits(), body=1000)
    with client_of(pipeline, limits=limits) as client:
        body = (b"x" * 600 for _ in range(2)) if chunked else b"x" * 1200
        answer = client.post(
            f"/v1/{path}", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]["expected"]


def scope_of(method: str, path: str) -> dict:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "method": method, "http_version": "1.1"}
    scope |= {"scheme": "http", "path": unquote(path), "raw_path": path.encode(), "root_path": ""}
    return scope | {"query_string": b"", "headers": headers}


def answer_to(app, method: str, path: str) -> list[dict]:
    """What the server sends for a path that no client has tidied, if no body comes."""
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope_of(method, path), receive, send), 20))
    return sent


def test_a_body_that_does_not_come_is_not_waited_for(pipeline):
    app = create_app(pipeline, limits=replace(Limits(), seconds=0.1))
    sent = answer_to(app, "POST", "/v1/images")
    assert sent[0]["status"] == 408
    assert b"within 0.1 s" in sent[1]["body"]


@pytest.mark.parametrize("header", [{"Host": "["}, {"Origin": "http://["}])
def test_names_that_are_none_are_refused(client, header):
    assert client.get("/v1/info", headers=header).status_code == 403


@pytest.mark.parametrize("path", ["/v1/codebooks", "/v1/info", "/metrics"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_page_of_another_site_embeds_is_refused(client, path, site):
    answer = client.get(path, headers={"Sec-Fetch-Site": site})
    assert (answer.status_code, answer.json()["error"]["field"]) == (403, "Sec-Fetch-Site")


@pytest.mark.parametrize(
    ("path", "site"), [("/v1/info", "same-origin"), ("/v1/info", "none"), ("/", "cross-site")]
)
def test_the_own_page_typed_addresses_and_links_to_the_page_are_served(client, path, site):
    assert client.get(path, headers={"Sec-Fetch-Site": site}).is_success


def test_bodies_that_are_held_leave_room_only_for_small_ones(pipeline):
    app = create_app(pipeline, replace(Limits(), body=1000))

    async def send_bodies() -> list[int]:
        arrived, statuses = asyncio.Semaphore(0), []

        async def ask(*parts: bytes) -> None:
            messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

            async def receive():
                if messages:
                    return messages.pop(0)
                arrived.release()
                await asyncio.Event().wait()

            async def send(message):
                if "status" in message:
                    statuses.append(message["status"])

            await app(scope_of("POST", "/v1/images"), receive, send)

        held = [asyncio.create_task(ask(b"x" * 900)) for _ in range(7)]
        for _ in held:
            await arrived.acquire()
        await ask(b"x" * 900)
        small = asyncio.create_task(ask(b"x" * 90))
        await arrived.acquire()
        found = list(statuses)
        for task in (*held, small):
            task.cancel()
        await asyncio.gather(*held, small)
        await ask(b"x" * 900, b"x" * 900)
        return [*found, statuses[-1]]

    # What is too large by itself is told so once the others have gone.
    assert asyncio.run(asyncio.wait_for(send_bodies(), 20)) == [429, 413]


@pytest.mark.parametrize("path", ["/", "/main.js", "/v1/info", "/nowhere", "/openapi.json"])
def test_every_answer_forbids_foreign_and_inline_scripts(client, path):
    policy = client.get(path).headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_the_page_keeps_to_its_policy_and_needs_nothing_from_elsewhere():
    texts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    page = texts["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|\bstyle=|<style", page)
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert set(named) - set(texts) == {"openapi.json", "metrics"}
    for name, text in texts.items():
        found = re.findall(r"https?://[\w./]+", text)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, name


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%5capp.py", "/./", "//etc/passwd"]
)
def test_only_the_page_itself_is_served(pipeline, path):
    start, *parts = answer_to(create_app(pipeline), "GET", path)
    body = b"".join(part["body"] for part in parts)
    assert start["status"] == 404 or b"<!doctype html>" in body
