"""Streams that are stopped, and streams that break off."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="needs pip install playwright")

from playwright.sync_api import expect

pytestmark = pytest.mark.browser
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


def test_a_draw_is_kept_when_an_image_is_opened(page, gradient, draw):
    draw(page, 4, pace="120")
    expect(page.locator("#gallery .tile")).to_have_count(4)
    page.wait_for_function(ROW_SHOWN)
    title = page.locator("#title").inner_text()
    page.locator("#file").set_input_files(gradient)
    expect(page.locator("#title")).to_have_text("gradient.png")
    expect(page.locator("#history li")).to_have_count(3)
    page.locator("#history button", has_text=title).click()
    expect(page.locator("#gallery .tile")).to_have_count(4)


def test_stop_ends_a_live_redraw_and_takes_it_back(page, button):
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


def test_images_that_come_without_rows_are_kept_when_they_are_stopped(page, button, paint):
    page.evaluate(CUT, ["image", "stays"])
    page.locator("#candidates").fill("2")
    paint(page, 1, (0.5, 0.5))
    button(page, "Redraw").click()
    expect(page.locator("#title")).to_have_text("Redrawn where painted")
    page.wait_for_function(IMAGE_SHOWN)
    button(page, "Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped after 1 image.")
    expect(page.locator("#history li")).to_have_count(2)


@pytest.mark.parametrize("how", ["ends", "breaks"])
def test_a_stream_that_breaks_off_is_told(page, how, draw):
    page.evaluate(CUT, ["row", how])
    draw(page, 2)
    expect(page.locator(".error")).to_have_text(re.compile("^The server stopped answering"))
    expect(page.locator("#status")).to_be_empty()
    expect(page.locator("#history li")).to_have_count(2)
