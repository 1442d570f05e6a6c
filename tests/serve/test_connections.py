"""Connections that only wait: how long, and how many."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs pip install 'vqvae2_fast[serve]'")

from helpers.server import served

from vqvae2_fast.serve.connections import server_config
from vqvae2_fast.serve.limits import Limits

ASK = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALF_BODY = b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"


def connected(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    try:
        while part := connection.recv(2**16):
            found += part
    except ConnectionError:  # also a way to close it
        pass
    return found


def answer(connection: socket.socket) -> bytes:
    connection.sendall(ASK)
    found = b""
    while not found.endswith(b"}") and (part := connection.recv(2**16)):
        found += part
    return found


@pytest.mark.parametrize("begun", [b"", b"GET / HT", ASK[:-2], ASK + b"GET / HT"])
def test_a_connection_without_a_whole_head_is_closed(pipeline, begun):
    with served(pipeline, replace(Limits(), head=0.2)) as address, connected(address) as one:
        one.sendall(begun)
        assert received(one).count(b"200 OK") == begun.count(ASK)


def test_a_connection_whose_body_does_not_come_is_closed(pipeline):
    limits = replace(Limits(), head=0.2, seconds=0.1)
    with served(pipeline, limits) as address, connected(address) as one:
        one.sendall(HALF_BODY)
        assert b" 408 " in received(one)


@pytest.mark.parametrize("begun", [b"", b"GET / HT", ASK[:-2], HALF_BODY])
def test_waiting_connections_make_room_for_another(pipeline, begun):
    with (
        served(pipeline, replace(Limits(), connections=4)) as address,
        ExitStack() as opened,
    ):
        for _ in range(12):
            opened.enter_context(connected(address)).sendall(begun)
        with connected(address) as last:
            assert b"200 OK" in answer(last)


def test_of_waiting_connections_that_of_the_longest_is_closed(pipeline):
    with (
        served(pipeline, replace(Limits(), connections=1)) as address,
        connected(address) as first,
    ):
        assert b"200 OK" in answer(first)
        with connected(address) as second:
            assert b"200 OK" in answer(second)
            assert received(first) == b""


def test_a_header_without_end_is_not_taken(pipeline):
    with served(pipeline) as address, connected(address) as one, pytest.raises(ConnectionError):
        one.sendall(ASK[:-2] + b"X: ")
        for _ in range(2**10):
            one.sendall(b"x" * 2**16)


@pytest.mark.parametrize(("descriptors", "connections"), [(100, 50), (2**20, 2048)])
def test_connections_leave_half_of_the_file_descriptors_free(monkeypatch, descriptors, connections):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    config = server_config(None, Limits())
    assert config.http.args[1] == connections
