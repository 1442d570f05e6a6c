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
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)  # ms; a busy machine is slow
DONE = re.compile(r"images? in [\d.]+ s")
ROW_SHOWN = "() => performance.getEntriesByName('first-row').length"
IMAGE_SHOWN = """() => document.querySelectorAll("#maps canvas")[2].getContext("2d")
    .getImageData(0, 0, 1, 1).data[3]"""
# The stream of the page's next request stays, ends or breaks after its first event of a name.
CUT = """([name, how]) => {
    const real = window.fetch;
    window.fetch = async (path, options) => {
        window.fetch = real;
        const text = await (await real(path, options)).text(), { signal } = options;
        const end = text.indexOf("\\n\\n", text.indexOf("event: " + name)) + 2;
        return new Response(new ReadableStream({
            start(stream) {
                stream.enqueue(new TextEncoder().encode(text.slice(0, end)));
                if (how === "ends") stream.close();
                if (how === "breaks") setTimeout(() => stream.error(new TypeError("broken")), 200);
                signal.addEventListener("abort", () => stream.error(signal.reason));
            },
        }));
    };
}"""


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


def gradient(folder: Path) -> Path:
    file = folder / "gradient.png"
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[:1]), -1)).save(file)
    return file


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
    file = gradient(tmp_path)
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
    file = tmp_path / "card.JSON"
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


def test_settings_off_the_grid_are_kept(page, tmp_path):
    card, file = card_of(page), tmp_path / "card.json"
    settings = {"temperature": [0.87, 2.3], "top_p": [0.955, 1], "guidance_scale": [1.25, 1.25]}
    card["request"].update(settings)
    file.write_text(json.dumps(card))
    page.locator("#file").set_input_files(file)
    expect(page.locator("#title")).to_have_text("From a card, seed 0")
    expect(page.locator("#status")).to_have_text(DONE)
    page.locator("#history button").first.click()
    page.locator("#label").select_option("")
    page.locator("#new-seed").uncheck()
    button(page, "Draw").click()
    expect(page.locator("#title")).to_have_text("No class, seed 0")
    expect(page.locator("#status")).to_have_text(DONE)
    request = card_of(page)["request"]
    assert {name: request[name] for name in settings} == settings


def test_a_setting_changed_during_a_draw_counts_after_it(page):
    draw(page, 2, pace="120")
    expect(page.locator("#gallery .tile")).to_have_count(2)
    changed = '"guidance_scale":[0.5,0.5]'
    with page.expect_request(lambda request: changed in (request.post_data or "")):
        page.locator("#guidance").fill("0.5")
    expect(page.locator("#status")).to_have_text(DONE)


def test_a_draw_is_kept_when_an_image_is_opened(page, tmp_path):
    draw(page, 4, pace="120")
    expect(page.locator("#gallery .tile")).to_have_count(4)
    page.wait_for_function(ROW_SHOWN)
    title = page.locator("#title").inner_text()
    page.locator("#file").set_input_files(gradient(tmp_path))
    expect(page.locator("#title")).to_have_text("gradient.png")
    expect(page.locator("#history li")).to_have_count(3)
    page.locator("#history button", has_text=title).click()
    expect(page.locator("#gallery .tile")).to_have_count(4)


def test_stop_ends_a_live_redraw_and_takes_it_back(page):
    same = "old => (document.querySelector('.tile canvas').toDataURL() === old)"
    before = page.locator(".tile canvas").first.evaluate("canvas => canvas.toDataURL()")
    page.evaluate(CUT, ["image", "stays"])
    page.locator("#guidance").fill("0")
    page.wait_for_function(same.replace("===", "!=="), arg=before)
    page.locator("#guidance").fill("0.5")
    button(page, "Stop").click()
    expect(page.locator("#status")).to_have_text(re.compile("^Stopped after"))
    page.wait_for_function(same, arg=before)
    expect(button(page, "Stop")).to_be_disabled()


def test_images_that_come_without_rows_are_kept_when_they_are_stopped(page):
    page.evaluate(CUT, ["image", "stays"])
    page.locator("#candidates").fill("2")
    paint(page, 1, (0.5, 0.5))
    button(page, "Redraw").click()
    expect(page.locator("#title")).to_have_text("Redrawn where painted")
    page.wait_for_function(IMAGE_SHOWN)
    button(page, "Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped after 1 image.")
    expect(page.locator("#history li")).to_have_count(2)


def test_an_image_that_is_whole_when_it_is_stopped_can_be_used(page):
    page.evaluate(CUT, ["image", "stays"])
    draw(page, 1)
    page.wait_for_function(ROW_SHOWN)
    page.wait_for_function(IMAGE_SHOWN)
    button(page, "Stop").click()
    for name in ["PNG", "Complete", "Draw it again from its card"]:
        expect(button(page, name)).to_be_enabled()


@pytest.mark.parametrize("how", ["ends", "breaks"])
def test_a_stream_that_breaks_off_is_told(page, how):
    page.evaluate(CUT, ["row", how])
    draw(page, 2)
    expect(page.locator(".error")).to_have_text(re.compile("^The server stopped answering"))
    expect(page.locator("#status")).to_be_empty()
    expect(page.locator("#history li")).to_have_count(2)


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
    expect(page.locator('[data-field="image"] .error')).to_contain_text("Expected an image")
    page.locator("#candidates").fill("65")
    paint(page, 1, (0.5, 0.5))
    button(page, "Redraw").click()
    expect(page.locator('[data-field="candidates"] + .error')).to_contain_text("at most 64")
    draw(page, 1_000_000_000)
    expect(page.locator('[data-field="count"] + .error')).to_contain_text("at most 16")
    page.locator("#settings").evaluate("details => { details.open = false; }")
    page.locator('[data-field="top_p.1"] input').evaluate("input => { input.value = 2; }")
    button(page, "Draw").click()
    expect(page.locator('[data-field="top_p.1"] + .error')).to_be_visible()


def test_a_seed_that_the_browser_rounds_is_refused(page, tmp_path):
    card, file = card_of(page), tmp_path / "card.json"
    card["request"]["seed"] = 2**53 + 1
    file.write_text(json.dumps(card))
    page.locator("#file").set_input_files(file)
    expect(page.locator('[data-field="seed"] + .error')).to_contain_text("up to 9007199254740991")


@pytest.mark.parametrize("card", [None, {}, {"endpoint": 1, "request": {}}])
def test_what_is_no_card_is_refused(page, tmp_path, card):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card))
    page.locator("#file").set_input_files(file)
    expect(page.locator('[data-field="image"] .error')).to_contain_text("Expected a card with")


def test_a_code_is_looked_up(page):
    page.locator("#maps canvas").nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#code-text")).to_contain_text("of the bottom level")
    expect(page.locator("#code-patches button")).to_have_count(9)
    page.locator("#code-patches button").nth(1).press("Enter")
    expect(page.locator("#code-patches button").nth(0)).to_have_attribute("aria-current", "true")
    expect(page.locator("#code-patches button").nth(0)).to_be_focused()


def test_the_finest_code_of_a_pixel_is_looked_up(page):
    image, cell = page.locator("#maps canvas").nth(2), page.locator("#cell")
    for _ in range(3):
        image.press("ArrowDown")
    image.press("Space")
    found = re.match(r"Row 4, column 1, code (\d+)$", cell.inner_text())
    assert found is not None
    expect(page.locator("#code-text")).to_contain_text(f"Code {found[1]} of the bottom level")
    page.locator("#maps canvas").nth(1).press("ArrowDown")  # to where the pixel's code is
    expect(cell).to_have_text(f"Row 2, column 1, code {found[1]}")


def test_a_live_redraw_keeps_the_focus_on_a_tile(page):
    tile = page.locator("#gallery .tile").nth(1)
    with page.expect_response("**/v1/images"):
        page.locator("#guidance").fill("0.5")
        tile.focus()
    expect(page.locator("#status")).to_have_text(DONE)
    expect(tile).to_be_focused()


def test_the_history_keeps_the_focus_and_the_counts_follow(page):
    images = page.locator("#gallery .tile").count()
    page.locator("#maps canvas").nth(1).press("Enter")
    expect(page.locator("#code-text")).to_contain_text(f"of {images} images")
    draw(page, 2)
    expect(page.locator("#code-text")).to_contain_text("of 2 images")
    expect(page.locator("#status")).to_have_text(re.compile("^2 images in"))
    page.locator("#history button").nth(1).press("Enter")
    expect(page.locator("#history button").nth(1)).to_be_focused()
    expect(page.locator("#code-text")).to_contain_text(f"of {images} images")


def test_what_the_keys_do_to_a_map_is_told(page):
    canvas, cell = page.locator("#maps canvas").nth(1), page.locator("#cell")
    canvas.press("ArrowDown")
    expect(cell).to_have_text(re.compile(r"^Row 2, column 1, code \d+$"))
    canvas.press("Space")
    code = cell.inner_text().split()[-1]
    expect(page.locator("#code-text")).to_contain_text(f"Code {code} of the bottom level")
    histogram = page.locator("#histogram")
    expect(histogram).to_have_attribute("aria-valuetext", f"Code {code}")
    histogram.press("Home")
    expect(histogram).to_have_attribute("aria-valuenow", "1")
    page.get_by_role("radio", name="Paint").check()
    canvas.press("Space")
    expect(cell).to_have_text(re.compile(r"^Row 1, column 1, code \d+, painted$"))
    page.locator("#maps canvas").nth(2).press("ArrowRight")
    expect(cell).to_have_text(re.compile(r"^Row 1, column 2, code \d+, painted$"))


def test_a_page_without_the_token_says_so(browser, address):
    page = browser.new_page()
    refused = {"error": {"field": "", "expected": "Expected the server's token.", "remedy": ""}}
    page.route("**/v1/info", lambda route: route.fulfill(status=401, json=refused))
    page.goto(address)
    expect(page.locator("#about")).to_have_text("The models could not be loaded.")
    expect(page.locator(".error")).to_have_text("Expected the server's token.")
    expect(button(page, "Draw")).to_be_disabled()
    page.close()


@pytest.mark.parametrize(("fragment", "links"), [("", 2), ("#token=secret", 1)])
def test_metrics_are_linked_where_a_link_opens_them(browser, address, fragment, links):
    page = browser.new_page()
    page.goto(f"{address}/{fragment}")
    expect(page.locator("#status")).to_have_text(DONE)
    expect(page.locator("footer a:visible")).to_have_count(links)
    page.close()


def test_the_first_draw_without_classes_keeps_to_the_limit(browser, address):
    info = httpx.get(f"{address}/v1/info").json() | {"classes": []}
    info["limits"]["count"] = 4
    page = browser.new_page()
    page.route("**/v1/info", lambda route: route.fulfill(json=info))
    page.goto(address)
    expect(page.locator("#status")).to_have_text(re.compile("^4 images in"))
    page.close()


def test_a_token_of_base64_is_sent_as_it_is(browser, address):
    page = browser.new_page()
    with page.expect_request("**/v1/info") as asked:
        page.goto(f"{address}/#token=a+b/c%3D%3D")
    assert asked.value.headers["authorization"] == "Bearer a+b/c=="
    page.close()


def test_a_long_file_name_fits_a_telephone(browser, address, tmp_path):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(address)
    expect(page.locator("#status")).to_have_text(DONE)
    page.locator("#file").set_input_files(gradient(tmp_path).rename(tmp_path / f"{'a' * 99}.png"))
    expect(page.locator("#title")).to_have_text(f"{'a' * 99}.png")
    assert page.locator("html").evaluate("html => html.scrollWidth") == 400
    page.close()


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
