"""Takes the pictures of docs/playground.md again: `python tools/playground_pictures.py`.

Needs `pip install 'vqvae2_fast[serve]' playwright` and Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from vqvae2_fast import from_preset
from vqvae2_fast.data import load_emoji
from vqvae2_fast.data.images import to_float
from vqvae2_fast.data.pixels import pictures

if TYPE_CHECKING:
    from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.server import served  # noqa: E402

DONE = re.compile(r"images? in [\d.]+ s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    with served(from_preset("emoji32")) as address, sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, scheme, act in (("wide", "light", choose_code), ("dark", "dark", paint_upload)):
            page = browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme=scheme)
            page.goto(address)
            expect(page.locator("#status")).to_have_text(DONE)
            act(page)
            page.mouse.move(0, 0)
            content = page.screenshot(full_page=True)
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            picture.quantize(256, dither=Image.Dither.NONE).save(
                out / f"playground-{name}.png", optimize=True
            )
        browser.close()


def choose_code(page: Page) -> None:
    page.locator("#gallery .tile").nth(6).click()
    canvas = page.locator("#maps canvas").nth(1)
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": 0.5 * box["width"], "y": 0.3 * box["height"]})


def paint_upload(page: Page) -> None:
    emoji = load_emoji("held_out")
    chosen = emoji.images[emoji.names.index("1f60b")]
    image = pictures(to_float(chosen[None]))[0]
    file = io.BytesIO()
    image.save(file, format="PNG")
    page.locator("#file").set_input_files(
        {"name": "held out.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )
    expect(page.locator("#facts")).to_contain_text("dB")
    page.get_by_role("radio", name="Paint").check()
    canvas = page.locator("#maps canvas").nth(0)
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.45 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.65 * box["width"], box["y"] + 0.6 * box["height"], steps=8)
    page.mouse.up()


if __name__ == "__main__":
    main()
