"""A server of small models in this process, and what it answers."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs pip install 'vqvae2_fast[serve]'")

from fastapi.testclient import TestClient
from helpers.models import tiny_pipeline

from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.serve.app import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.sampling import Pipeline

ADDRESS = "http://127.0.0.1"


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def uncounted(pipeline) -> Pipeline:
    """One whose quantiser of the top level keeps no counts of its codes."""
    config = replace(pipeline.vqvae.config, quantizer=("gradient", "ema"))
    return replace(pipeline, vqvae=VQVAE2(config).eval())


@pytest.fixture(scope="session")
def client(pipeline) -> Iterator[TestClient]:
    with TestClient(create_app(pipeline), base_url=ADDRESS) as client:
        yield client


@pytest.fixture(scope="session")
def photograph() -> bytes:
    """A PNG file of 40×20 pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(20, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def events():
    """Names and contents of server-sent events."""

    def read(text: str) -> list[tuple[str, Any]]:
        found = []
        for block in text.strip().split("\n\n"):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found

    return read


@pytest.fixture(scope="session")
def pixels():
    """Reads a PNG file in base64 as `[H, W, C]`."""
    return lambda png: np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
