"""Codes that are looked up, and the page for those who use keys."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="needs pip install playwright")

from helpers.server import served
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


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


def test_codes_that_are_not_counted_stand_by_their_numbers(browser, uncounted, done):
    with served(uncounted) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#status")).to_have_text(done)
        page.get_by_role("radio", name="top").check()
        expect(page.locator("#histogram-text")).to_contain_text("keeps no counts of its codes")
        page.locator("#histogram").press("Home")
        page.locator("#histogram").press("ArrowRight")
        expect(page.locator("#histogram")).to_have_attribute("aria-valuetext", "Code 1")
        page.close()


def test_the_history_keeps_the_focus_and_the_counts_follow(page, draw):
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


def test_every_control_has_a_name(page):
    nameless = page.locator("button, input:not([hidden]), select, canvas[tabindex]").evaluate_all(
        """all => all.filter(one => !(one.labels?.length || one.textContent.trim()
            || one.ariaLabel)).map(one => one.outerHTML)"""
    )
    assert nameless == []
