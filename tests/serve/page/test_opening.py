"""The page as it is opened: its token, its links, its width."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="needs pip install playwright")

from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("fragment", "links"), [("", 2), ("#token=secret", 1)])
def test_metrics_are_linked_where_a_link_opens_them(browser, address, fragment, links, done):
    page = browser.new_page()
    page.goto(f"{address}/{fragment}")
    expect(page.locator("#status")).to_have_text(done)
    expect(page.locator("footer a:visible")).to_have_count(links)
    page.close()


def test_a_token_of_base64_is_sent_as_it_is(browser, address):
    page = browser.new_page()
    with page.expect_request("**/v1/info") as asked:
        page.goto(f"{address}/#token=a+b/c%3D%3D")
    assert asked.value.headers["authorization"] == "Bearer a+b/c=="
    page.close()


def test_a_long_file_name_fits_a_telephone(browser, address, tmp_path, gradient, done):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(address)
    expect(page.locator("#status")).to_have_text(done)
    page.locator("#file").set_input_files(gradient.rename(tmp_path / f"{'a' * 99}.png"))
    expect(page.locator("#title")).to_have_text(f"{'a' * 99}.png")
    assert page.locator("html").evaluate("html => html.scrollWidth") == 400
    page.close()


def test_it_fits_a_telephone(browser, address, done):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(address)
    expect(page.locator("#status")).to_have_text(done)
    assert page.locator("html").evaluate("html => html.scrollWidth") == 400
    page.close()
