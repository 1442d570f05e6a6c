"""`vqvae2-fast serve` starts, answers and ends; what it refuses before that."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="needs pip install 'vqvae2_fast[serve]'")

import uvicorn

from vqvae2_fast.cli import main


def test_it_answers_until_it_is_terminated():
    code = "import sys; from vqvae2_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["serve", "--preset", "emoji32", "--port", "0", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        # Run outside the source tree, which would hide the installed package.
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        said = ""
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", said)):
            line = server.stderr.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(f"{found[1]}/healthz") as answer:
            assert json.load(answer)["status"] == "ok"
        server.terminate()
        output, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    assert json.loads(output) == {"stopped": True}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected one of --preset, --pipeline"),
        (["--preset", "emoji32", "--port", "70000"], "--port: expected 0 to 65535, got 70000"),
        (["--preset", "emoji32", "--batch", "0"], "--batch: expected more than 0, got 0"),
        (["--preset", "emoji32", "--upload-mib", "-1"], "--upload-mib: expected more than 0"),
        (["--preset", "emoji32", "--host", "0.0.0.0"], "--token-file: needed with --host"),
        (["--preset", "emoji32", "--token-file", os.devnull], "--token-file: expected a long"),
        (["--preset", "emoji32", "--token-file", "a", "--token", "b"], "it or --token, got both"),
        (["--preset", "emoji32", "--token", ""], "--token: expected a long random word"),
        (["--preset", "emoji32", "--token", "schlüssel"], "no space, got '\\xfc' in it"),
        (["--preset", "emoji32", "--count", "300"], "--waiting: expected at least --count, 300"),
    ],
)
def test_a_wrong_option_is_named(error_of, arguments, said):
    assert said in error_of(["serve", *arguments])


@pytest.mark.parametrize("source", ["option", "file"])
def test_spaces_around_a_token_are_no_part_of_it(monkeypatch, tmp_path, source):
    tokens, given = [], " secret\n"
    (tmp_path / "token").write_text(given)
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: None)
    monkeypatch.setattr(
        "vqvae2_fast.serve.app.create_app", lambda *_, token, **__: tokens.append(token)
    )
    option = {"option": f"--token={given}", "file": f"--token-file={tmp_path / 'token'}"}[source]
    assert main(["serve", "--preset", "emoji32", "--port", "0", "--quiet", option]) == 0
    assert tokens == ["secret"]


def test_a_port_in_use_is_named_before_the_models_are_read(error_of, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["serve", "--pipeline", str(tmp_path), "--port", port]
        text = error_of(arguments)
    assert f"--port: cannot listen on port {port} of 127.0.0.1: Address already in use." in text


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
def test_a_client_that_takes_nothing_is_cut_off_after_the_timeout(monkeypatch):
    milliseconds = []

    def run(_, sockets):
        milliseconds.append(sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "--preset", "emoji32", "--port", "0", "--timeout", "0.5", "--quiet"]) == 0
    assert milliseconds == [500]


def test_a_signal_that_comes_before_uvicorn_waits_for_any_ends_it(monkeypatch):
    ended = []

    def run(server, _):
        signal.raise_signal(signal.SIGTERM)
        ended.append(asyncio.run(server.on_tick(0)))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "--preset", "emoji32", "--port", "0", "--quiet"]) == 0
    assert ended == [True]
