"""The page in headless Chromium, and what tests do on it: `pytest -m browser tests/serve`."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.server import served
from PIL import Image

from vqvae2_fast import from_preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

DONE = re.compile(r"images? in [\d.]+ s")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the packaged emoji32, on a free port."""
    with served(from_preset("emoji32")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # ms; a busy machine is slow
    path = shutil.which("chromium")
    assert path is not None, "no chromium: apt-get install chromium"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    """The page once it has drawn its first images; it must log no error."""
    from playwright.sync_api import expect

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, errors = context.new_page(), []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.locator("#status")).to_have_text(DONE)
    yield page
    context.close()
    # The browser itself logs each answer that is an error, which some tests ask for.
    assert [text for text in errors if "Failed to load resource" not in text] == []


@pytest.fixture(scope="session")
def done() -> re.Pattern[str]:
    """What the status says after a draw."""
    return DONE


@pytest.fixture(scope="session")
def button() -> Callable[[Page, str], Locator]:
    """Finds a button by its name."""
    return lambda page, name: page.get_by_role("button", name=name, exact=True)


@pytest.fixture(scope="session")
def draw(button) -> Callable[..., None]:
    """Asks for images, at a pace."""

    def ask(page: Page, count: int, pace: str = "0") -> None:
        page.get_by_role("spinbutton", name="Images").fill(str(count))
        page.get_by_text("While it draws").click()
        page.get_by_label("Show rows").select_option(pace)
        button(page, "Draw").click()

    return ask


@pytest.fixture(scope="session")
def download(button) -> Callable[[Page, str], bytes]:
    """What a button saves."""

    def save(page: Page, name: str) -> bytes:
        with page.expect_download() as waiting:
            button(page, name).click()
        return waiting.value.path().read_bytes()

    return save


@pytest.fixture(scope="session")
def card_of(download) -> Callable[[Page], dict]:
    """The card of the image that is chosen."""
    return lambda page: json.loads(download(page, "Card (JSON)"))


@pytest.fixture
def gradient(tmp_path) -> Path:
    """An image file."""
    file = tmp_path / "gradient.png"
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[:1]), -1)).save(file)
    return file


@pytest.fixture(scope="session")
def paint() -> Callable[..., None]:
    """Drags the brush over a map, from place to place in shares of its size."""

    def drag(page: Page, map_number: int, *places: tuple[float, float]) -> None:
        page.get_by_role("radio", name="Paint").check()
        canvas = page.locator("#maps canvas").nth(map_number)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        for n, (x, y) in enumerate(places):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
            if n == 0:
                page.mouse.down()
        page.mouse.up()

    return drag
