"""What is drawn on the page: new images, edits, uploads, cards."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import httpx
import numpy as np
import pytest

pytest.importorskip("playwright", reason="needs pip install playwright")

from helpers.models import tiny_pipeline
from helpers.server import served
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_drawing_shows_as_many_images_as_asked(page, draw):
    draw(page, 4)
    expect(page.locator("#title")).not_to_have_text("Each class, seed 0")
    expect(page.locator("#status")).to_have_text(re.compile(r"^4 images in .*first row after"))
    expect(page.locator("#gallery .tile")).to_have_count(4)
    expect(page.locator("#history li")).to_have_count(2)


def test_rows_come_before_the_image_and_stop_ends_them(page, button, draw):
    draw(page, 4, pace="120")
    expect(page.locator("#gallery .tile")).to_have_count(4)
    expect(button(page, "PNG")).to_be_disabled()
    button(page, "Stop").click()
    expect(page.locator("#status")).to_have_text(re.compile(r"^Stopped after \d+ rows?\.$"))
    expect(button(page, "PNG")).to_be_disabled()


def test_a_painted_hole_is_redrawn_and_the_rest_kept(page, address, button, card_of, paint, done):
    card = card_of(page)
    answer = httpx.post(address + card["endpoint"], json=card["request"], timeout=60)
    before = answer.raise_for_status().json()["images"][0]["codes"]
    paint(page, 1, (0.4, 0.4), (0.6, 0.6))
    button(page, "Redraw").click()
    expect(page.locator("#title")).to_have_text("Redrawn where painted")
    expect(page.locator("#status")).to_have_text(done)
    top, bottom = (np.array(maps) for maps in card_of(page)["request"]["known"])
    assert np.array_equal(top, before[0])
    hole = bottom < 0
    assert np.array_equal(bottom[~hole], np.array(before[1])[~hole])
    assert hole[6:9, 6:9].diagonal().all()
    assert not hole[:5].any()
    assert not hole[:, 11:].any()


def test_an_upload_is_reconstructed_and_completed(page, address, gradient, button, card_of, done):
    page.locator("#file").set_input_files(gradient)
    expect(page.locator("#facts")).to_have_text(
        re.compile(r"dB · \d+ bits \(top \d+, bottom \d+\)")
    )
    encoded = httpx.post(f"{address}/v1/encode", content=gradient.read_bytes(), timeout=60).json()
    page.get_by_text("Keep the upper").locator("..").get_by_role("slider").fill("25")
    button(page, "Complete").click()
    expect(page.locator("#title")).to_have_text("Upper 25 % kept")
    expect(page.locator("#status")).to_have_text(done)
    for known, codes in zip(card_of(page)["request"]["known"], encoded["codes"], strict=True):
        rows = len(codes) // 4
        assert known[:rows] == codes[:rows]
        assert {code for row in known[rows:] for code in row} == {-1}


def test_a_saved_card_draws_the_saved_bytes(page, address, tmp_path, button, download, done):
    page.locator("#gallery .tile").nth(4).click()
    picture, card = download(page, "PNG"), download(page, "Card (JSON)")
    file = tmp_path / "card.JSON"
    file.write_bytes(card)
    page.locator("#file").set_input_files(file)
    expect(page.locator("#title")).to_have_text("From a card, seed 0")
    expect(page.locator("#status")).to_have_text(done)
    assert download(page, "PNG") == picture
    button(page, "Draw it again from its card").click()
    expect(page.locator("#status")).to_have_text("Drawn again: the same image, byte for byte.")


def test_guidance_redraws_the_same_seed(page, card_of, done):
    before = card_of(page)["request"]
    page.locator("#guidance").fill("0.5")
    expect(page.locator("#status")).to_have_text(done)
    expect(page.locator("#history li")).to_have_count(1)
    after = card_of(page)["request"]
    assert after["guidance_scale"] == [0.5, 0.5]
    assert after["seed"] == before["seed"]


def test_settings_off_the_grid_are_kept(page, tmp_path, button, card_of, done):
    card, file = card_of(page), tmp_path / "card.json"
    settings = {"temperature": [0.87, 2.3], "top_p": [0.955, 1], "guidance_scale": [1.25, 1.25]}
    card["request"].update(settings)
    file.write_text(json.dumps(card))
    page.locator("#file").set_input_files(file)
    expect(page.locator("#title")).to_have_text("From a card, seed 0")
    expect(page.locator("#status")).to_have_text(done)
    page.locator("#history button").first.click()
    page.locator("#label").select_option("")
    page.locator("#new-seed").uncheck()
    button(page, "Draw").click()
    expect(page.locator("#title")).to_have_text("No class, seed 0")
    expect(page.locator("#status")).to_have_text(done)
    request = card_of(page)["request"]
    assert {name: request[name] for name in settings} == settings


@pytest.mark.parametrize("new", [True, False])
def test_an_edit_has_a_new_seed_each_time_if_it_is_to(page, button, done, new):
    page.locator("#new-seed").set_checked(new)
    with page.expect_request("**/v1/complete") as asked:
        button(page, "Complete").click()
    expect(page.locator("#status")).to_have_text(done)
    assert (asked.value.post_data_json["seed"] != 0) == new


def test_a_setting_changed_during_a_draw_counts_after_it(page, draw, done):
    draw(page, 2, pace="120")
    expect(page.locator("#gallery .tile")).to_have_count(2)
    changed = '"guidance_scale":[0.5,0.5]'
    with page.expect_request(lambda request: changed in (request.post_data or "")):
        page.locator("#guidance").fill("0.5")
    expect(page.locator("#status")).to_have_text(done)


def test_a_group_of_classes_can_be_drawn(browser, draw, done):
    pipeline = replace(tiny_pipeline(3), class_names=("Pet - cat", "Cow", "Pet - dog"))
    with served(pipeline) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#status")).to_have_text(done)
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


def test_a_token_of_base64_is_sent_as_it_is(browser, address):
    page = browser.new_page()
    with page.expect_request("**/v1/info") as asked:
        page.goto(f"{address}/#token=a+b/c%3D%3D")
    assert asked.value.headers["authorization"] == "Bearer a+b/c=="
    page.close()


def test_it_fits_a_telephone(browser, address, done):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(address)
    expect(page.locator("#status")).to_have_text(done)
    assert page.locator("html").evaluate("html => html.scrollWidth") == 400
    page.close()
