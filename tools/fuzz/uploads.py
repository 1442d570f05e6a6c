"""Uploads and bodies of requests to the service, and how they are sent to it.

The service runs in this process. Every answer has to be a success, or an error of the 4xx that
names the field, what was expected and the remedy.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vqvae2_fast.codec import encode_images
from vqvae2_fast.files.printable import printable
from vqvae2_fast.files.untrusted import read_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.models import tiny_pipeline  # noqa: E402

__all__ = ["MAKE", "send_all"]

_IMAGE = Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 50)
_KINDS = ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm")
_ROUTES = ("images", "complete", "fill", "variations", "cross", "decode")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _png(width: int, height: int, pixels: bytes, extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + _chunk(b"IEND", b"")


def _bombs(folder: Path) -> None:
    (folder / "large.png").write_bytes(_png(4000, 4000, bytes(4001 * 4000)))
    (folder / "huge.png").write_bytes(_png(60_000, 60_000, bytes(2**20)))
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))
    (folder / "text.png").write_bytes(_png(20, 20, bytes(21 * 20), text))
    profile = _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26), 9))
    (folder / "profile.png").write_bytes(_png(20, 20, bytes(21 * 20), profile))


def _image(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _IMAGE.convert("RGB").save(folder / f"a.{kind}")

    return make


def _body(route: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = io.BytesIO()
        _IMAGE.save(file, "PNG")
        source = {"image": base64.b64encode(file.getvalue()).decode()}
        maps = [[[n] * 4] * 4 for n in (-1, 3)]
        body: dict[str, Any] = {"count": 2, "label": 1, "seed": 5, "temperature": [1.0, 0.9]}
        more: dict[str, dict[str, Any]] = {
            "images": {"known": [maps[0], None], "top_k": 3, "top_p": 0.5, "guidance_scale": 2.0},
            "complete": {"source": source, "keep": 0.5},
            "fill": {"source": source, "mask": [[True] * 16] * 16, "candidates": 3},
            "variations": {"source": source, "levels": 1},
            "cross": {"sources": [{"codes": [maps[1], [[2] * 8] * 8]}, None]},
        }
        if route == "decode":
            data = encode_images(tiny_pipeline(), torch.zeros(1, 3, 16, 16))
            body = {"vq2": base64.b64encode(data).decode()}
        (folder / f"{route}.json").write_text(json.dumps({**body, **more.get(route, {})}))

    return make


MAKE = (*map(_image, _KINDS), *map(_body, _ROUTES), _bombs)


@lru_cache(maxsize=1)
def _client() -> Any:
    """A client of a service that starts with its first request, in the child process."""
    from fastapi.testclient import TestClient

    from vqvae2_fast.serve.app import create_app

    return TestClient(create_app(tiny_pipeline()), base_url="http://127.0.0.1").__enter__()


def send_all(folder: Path, out: Path) -> None:
    """Sends each file of a folder: JSON to the route of its name, all else to be encoded."""
    refused = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        content = read_untrusted(path, 2**26, inside=folder)
        route = path.stem if path.stem in _ROUTES else "encode"
        kind = "octet-stream" if route == "encode" else "json"
        answer = _client().post(
            f"/v1/{route}", content=content, headers={"Content-Type": f"application/{kind}"}
        )
        if answer.status_code != 200:
            _check_error(answer)
            refused.append(f"{printable(path)}: {answer.json()['error']['expected']}")
    if refused:
        raise ValueError("; ".join(refused))


def _check_error(answer: Any) -> None:
    if not 400 <= answer.status_code < 500:
        raise RuntimeError(f"status {answer.status_code}: {answer.text[:500]}")
    error = answer.json()["error"]
    if (
        set(error) != {"field", "expected", "remedy"}
        or not error["expected"]
        or not error["remedy"]
    ):
        raise RuntimeError(f"status {answer.status_code} without a reason: {answer.text[:500]}")
    if "Traceback" in answer.text:
        raise RuntimeError(f"a traceback: {answer.text[:500]}")
