"""The page in headless Chromium: `pytest -m browser tests/serve`."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="needs pip install playwright")
pytest.importorskip("uvicorn", reason="needs pip install 'vqvae2_fast[serve]'")

from playwright.sync_api import expect, sync_playwright

from vqvae2_fast import from_preset
from vqvae2_fast.testing.pipelines import tiny_pipeline
from vqvae2_fast.testing.server import served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)  # ms; a busy machine is slow
DONE = re.compile(r"images? in [\d.]+ s")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the packaged emoji32, on a free port."""
    with served(from_preset("emoji32")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "no chromium: apt-get install chromium"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    """The page once it has drawn its first images; it must log no error."""
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


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def draw(page: Page, count: int, pace: str = "0") -> None:
    page.get_by_role("spinbutton", name="Images").fill(str(count))
    page.get_by_text("While it draws").click()
    page.get_by_label("Show rows").select_option(pace)
    button(page, "Draw").click()


def download(page: Page, name: str) -> bytes:
    with page.expect_download() as waiting:
        button(page, name).click()
    return waiting.value.path().read_bytes()


def card_of(page: Page) -> dict:
    return json.loads(download(page, "Card (JSON)"))


def drawn_by_api(address: str, card: dict) -> dict:
    answer = httpx.post(address + card["endpoint"], json=card["request"], timeout=60)
    return answer.raise_for_status().json()["images"][0]


def paint(page: Page, map_number: int, *places: tuple[float, float]) -> None:
    """Drags the brush over a map, from place to place in shares of its size."""
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


def test_drawing_shows_as_many_images_as_asked(page):
    draw(page, 4)
    expect(page.locator("#title")).not_to_have_text("Each class, seed 0")
    expect(page.locator("#status")).to_have_text(re.compile(r"^4 images in .*first row after"))
    expect(page.locator("#gallery .tile")).to_have_count(4)
    expect(page.locator("#history li")).to_have_count(2)


def test_rows_come_before_the_image_and_stop_ends_them(page):
    draw(page, 4, pace="120")
    expect(page.locator("#gallery .tile")).to_have_count(4)
    expect(button(page, "PNG")).to_be_disabled()
    button(page, "Stop").click()
    expect(page.locator("#status")).to_have_text(re.compile(r"^Stopped after \d+ rows?\.$"))
    expect(button(page, "PNG")).to_be_disabled()


def test_a_painted_hole_is_redrawn_and_the_rest_kept(page, address):
    before = drawn_by_api(address, card_of(page))["codes"]
    paint(page, 1, (0.4, 0.4), (0.6, 0.6))
    button(page, "Redraw").click()
    expect(page.locator("#title")).to_have_text("Redrawn where painted")
    expect(page.locator("#status")).to_have_text(DONE)
    top, bottom = (np.array(maps) for maps in card_of(page)["request"]["known"])
    assert np.array_equal(top, before[0])
    hole = bottom < 0
    assert np.array_equal(bottom[~hole], np.array(before[1])[~hole])
    assert hole[6:9, 6:9].diagonal().all()
    assert not hole[:5].any()
    assert not hole[:, 11:].any()


def test_an_upload_is_reconstructed_and_completed(page, address, tmp_path):
    file = tmp_path / "gradient.png"
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[:1]), -1)).save(file)
    page.locator("#file").set_input_files(file)
    expect(page.locator("#facts")).to_have_text(
        re.compile(r"dB · \d+ bits \(top \d+, bottom \d+\)")
    )
    encoded = httpx.post(f"{address}/v1/encode", content=file.read_bytes(), timeout=60).json()
    page.get_by_text("Keep the upper").locator("..").get_by_role("slider").fill("25")
    button(page, "Complete").click()
    expect(page.locator("#title")).to_have_text("Upper 25 % kept")
    expect(page.locator("#status")).to_have_text(DONE)
    for known, codes in zip(card_of(page)["request"]["known"], encoded["codes"], strict=True):
        rows = len(codes) // 4
        assert known[:rows] == codes[:rows]
        assert {code for row in known[rows:] for code in row} == {-1}


def test_a_saved_card_draws_the_saved_bytes(page, address, tmp_path):
    page.locator("#gallery .tile").nth(4).click()
    picture, card = download(page, "PNG"), download(page, "Card (JSON)")
    file = tmp_path / "card.json"
    file.write_bytes(card)
    page.locator("#file").set_input_files(file)
    expect(page.locator("#title")).to_have_text("From a card, seed 0")
    expect(page.locator("#status")).to_have_text(DONE)
    assert download(page, "PNG") == picture
    button(page, "Draw it again from its card").click()
    expect(page.locator("#status")).to_have_text("Drawn again: the same image, byte for byte.")


def test_guidance_redraws_the_same_seed(page):
    before = card_of(page)["request"]
    page.locator("#guidance").fill("0.5")
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("#history li")).to_have_count(1)
    after = card_of(page)["request"]
    assert after["guidance_scale"] == [0.5, 0.5]
    assert after["seed"] == before["seed"]


@pytest.mark.parametrize(("classes", "labels"), [(96, [0, 24, 48, 72]), (6, [0, 1, 2, 3, 4, 5])])
def test_classes_that_no_picture_holds_are_spread_over_its_images(page, classes, labels):
    found = page.evaluate(
        """async classes => {
            const { Controls } = await import(document.querySelector("script[src]").src
                .replace("main.js", "controls.js"));
            const info = { classes: Array(classes).fill(""), limits: { count: 16 } };
            return Controls.prototype.labelFor.call({ info }, 4);
        }""",
        classes,
    )
    assert found == labels


def test_an_error_stands_beside_its_control(page, tmp_path):
    file = tmp_path / "no_image.png"
    file.write_bytes(b"no image")
    page.locator("#file").set_input_files(file)
    expect(page.locator('[data-field="image"] .error')).to_contain_text("cannot be read")
    page.locator("#candidates").fill("65")
    paint(page, 1, (0.5, 0.5))
    button(page, "Redraw").click()
    expect(page.locator('[data-field="candidates"] + .error')).to_contain_text("at most 64")


def test_a_code_is_looked_up(page):
    page.locator("#maps canvas").nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#code-text")).to_contain_text("of the bottom level")
    expect(page.locator("#code-patches button")).to_have_count(9)
    page.locator("#code-patches button").nth(1).click()
    expect(page.locator("#code-patches button").nth(0)).to_have_attribute("aria-current", "true")


def test_it_fits_a_telephone(browser, address):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(address)
    expect(page.locator("#status")).to_have_text(DONE)
    assert page.locator("html").evaluate("html => html.scrollWidth") == 400
    page.close()


def test_every_control_has_a_name(page):
    nameless = page.locator("button, input:not([hidden]), select, canvas[tabindex]").evaluate_all(
        """all => all.filter(one => !(one.labels?.length || one.textContent.trim()
            || one.ariaLabel)).map(one => one.outerHTML)"""
    )
    assert nameless == []


def test_a_group_of_classes_can_be_drawn(browser):
    pipeline = replace(tiny_pipeline(3), class_names=("Pet - cat", "Cow", "Pet - dog"))
    with served(pipeline) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#status")).to_have_text(DONE)
        assert page.locator("#label optgroup option").all_text_contents() == [
            "Pet: all",
            "Pet - cat",
            "Pet - dog",
        ]
        page.locator("#label").select_option("Pet: all")
        draw(page, 2)
        expect(page.locator("#title")).to_have_text(re.compile("^Pet, seed"))
        expect(page.locator("#gallery .tile")).to_have_count(2)
        page.close()
