"""Uploads that are damaged or made to harm: clean errors, and nothing is left on the disk.

tools/fuzz sends ten thousand of them (`python tools/fuzz upload --files 10000`).
"""

from __future__ import annotations

import base64
import io
import struct
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from vqvae2_fast.serve.engine import Engine
from vqvae2_fast.serve.limits import Limits
from vqvae2_fast.serve.orders import Desk

FORMATS = ("bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp")


@pytest.fixture
def empty_place(tmp_path, monkeypatch):
    """An empty folder, which is the working folder and that of temporary files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def image(kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 50).convert("RGB").save(file, kind)
    return file.getvalue()


def png(width: int, height: int, pixels: bytes, extra: tuple[bytes, bytes] | None = None) -> bytes:
    """A grey PNG file that says it has this size, and has these rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    more = b"" if extra is None else chunk(*extra)
    data = chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + header + more + data + chunk(b"IEND", b"")


def refused(client, content: bytes) -> tuple[int, str]:
    answer = client.post("/v1/encode", content=content)
    error = answer.json()["error"]
    assert error["field"] == "image"
    assert error["remedy"]
    assert "Traceback" not in answer.text
    return answer.status_code, error["expected"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_image_is_refused(client, empty_place, kind):
    whole = image(kind)
    for length in (0, 1, 8, 20, len(whole) // 2):
        status, expected = refused(client, whole[:length])
        assert status == 400
        assert "cannot be" in expected
        assert "object at" not in expected
    assert not list(empty_place.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_encoded_or_refused(client, empty_place, kind):
    whole = image(kind)
    for place in range(0, len(whole), len(whole) // 4):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        answer = client.post("/v1/encode", content=bytes(damaged))
        assert answer.status_code in (200, 400, 413), answer.text
    assert not list(empty_place.iterdir())


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (png(60_000, 60_000, bytes(2**20)), 400, "exceeds limit"),
        (png(4097, 4096, bytes(2**20)), 413, "at most 16777216 pixels, got 4097x4096"),
        (png(40, 20, bytes(820), (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))), 400, "large"),
        (png(40, 20, bytes(820), (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24)))), 400, "large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 20\n(x) run", 400, "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "cannot be read"),
    ],
    ids=["header", "pixels", "text", "profile", "PostScript", "SVG"],
)
def test_what_is_made_to_harm_is_refused(client, empty_place, content, status, message):
    found, expected = refused(client, content)
    assert found == status
    assert message in expected
    assert not list(empty_place.iterdir())


def test_sources_are_read_outside_the_engine(client, monkeypatch):
    def called(*_):
        raise AssertionError("a call of the engine")

    monkeypatch.setattr(Engine, "call", called)
    cut = base64.b64encode(image("PNG")[:40]).decode()
    answer = client.post("/v1/complete", json={"source": {"image": cut}})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "source.image")
    levels = client.get("/v1/info").json()["levels"]
    codes = [[[0] * level["width"]] * level["height"] for level in levels]
    answer = client.post("/v1/complete", json={"source": {"codes": codes}, "keep": 1.0})
    assert answer.json()["images"][0]["codes"] == codes


def test_only_a_few_uploads_are_decoded_at_once(client, photograph, monkeypatch):
    upload, lock, running, most = Desk.upload, threading.Lock(), [0], [0]

    def slow(self, field, data):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return upload(self, field, data)

    monkeypatch.setattr(Desk, "upload", slow)
    source = {"image": base64.b64encode(photograph).decode()}

    def send(number: int) -> int:
        if number % 2:
            return client.post("/v1/encode", content=photograph).status_code
        body = {"source": source, "levels": 1, "count": 1}
        return client.post("/v1/variations", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(8))) == {200}
    assert most == [Limits().decoders]
