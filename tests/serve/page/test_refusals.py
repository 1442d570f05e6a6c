"""What the page refuses or cannot do, and where it says so."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("playwright", reason="needs pip install playwright")

from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_an_error_stands_beside_its_control(page, tmp_path, button, draw, paint):
    file = tmp_path / "no_image.png"
    file.write_bytes(b"no image")
    page.locator("#file").set_input_files(file)
    expect(page.locator('[data-field="image"] .error')).to_contain_text("expected an image")
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


def test_an_error_without_a_control_is_seen_wherever_the_page_is_scrolled_to(page, button):
    page.set_viewport_size({"width": 1366, "height": 650})
    page.route("**/v1/complete", lambda route: route.abort())
    button(page, "Complete").click()
    expect(page.locator(".error")).to_have_text(re.compile("^The server does not answer"))
    expect(page.locator(".error")).to_be_in_viewport(ratio=1)


def test_a_seed_that_the_browser_rounds_is_refused(page, tmp_path, card_of):
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


def test_a_page_of_other_models_than_the_server_has_asks_to_be_loaded_again(page, button, done):
    def other(route):
        answer = route.fetch()
        headers = {**answer.headers, "vqvae2-pipeline": "other"}
        route.fulfill(response=answer, headers=headers)

    page.route("**/v1/images", other)
    button(page, "Draw").click()
    expect(page.locator(".error")).to_contain_text("started with other models")
    expect(page.locator("#history li")).to_have_count(1)
    page.unroute("**/v1/images")
    button(page, "Load the page again").click()
    expect(page.locator(".error")).to_have_count(0)
    expect(page.locator("#status")).to_have_text(done)


def test_a_page_without_the_token_says_so(browser, address, button):
    page = browser.new_page()
    refused = {"error": {"field": "", "expected": "Expected the server's token.", "remedy": ""}}
    page.route("**/v1/info", lambda route: route.fulfill(status=401, json=refused))
    page.goto(address)
    expect(page.locator("#about")).to_have_text("The models could not be loaded.")
    expect(page.locator(".error")).to_have_text("Expected the server's token.")
    expect(button(page, "Draw")).to_be_disabled()
    page.close()
