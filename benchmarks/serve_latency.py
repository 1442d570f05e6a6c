"""How long a client of `vqvae2-fast serve` waits, next to the library in the same process.

    python benchmarks/serve_latency.py [--preset emoji32] [--rounds 31] [--browser] [--clock cpu]

Prints, for a batch of images: the library's draw (`draw_batch`: codes, then pixels), the answer of
`POST /v1/images` on loopback, and the first row of a stream. The contenders take turns; figures are
medians with their 20th and 80th percentiles, and the ratio of the first two with that of a round.
With --browser also the time from a click to the first row on the screen of a headless Chromium
(`pip install playwright`, and Debian's chromium), after the others.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from shared.measure import count, machine, needed, ratio

from vqvae2_fast import from_preset
from vqvae2_fast.sampling import draw_batch, level_settings

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.server import served  # noqa: E402

httpx = needed("httpx")
DONE = re.compile(r"images? in [\d.]+ s")  # what the page says when all is drawn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="emoji32")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rounds", type=count, default=31)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of the server and its client together, for a busy machine",
    )
    options = parser.parse_args()
    pipeline = from_preset(options.preset)
    print(f"{machine()}\n{options.preset}, {options.count} images, {options.clock} clock")
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    with served(pipeline) as address:
        with httpx.Client(base_url=address, timeout=60) as client:
            measure(pipeline, client, options.count, options.rounds, clock)
        if options.browser:
            in_browser(address, options.count, options.rounds)


def measure(
    pipeline: Any, client: httpx.Client, count: int, rounds: int, clock: Callable[[], float]
) -> None:
    settings = level_settings(len(pipeline.priors), seed=1, **pipeline.recommended)
    classes = pipeline.num_classes
    labels = torch.arange(count) % classes if classes else None
    label = list(range(classes)) or None
    body = {"count": count, "label": label, "seed": 1}

    def library() -> None:
        draw_batch(pipeline, range(count), settings, labels=labels)

    def answer() -> None:
        client.post("/v1/images", json=body).raise_for_status()

    def first_row() -> None:
        with client.stream("POST", "/v1/images", json={**body, "stream": True}) as events:
            for line in events.iter_lines():
                if line == "event: row":
                    return

    seconds = interleaved(
        {"library": library, "POST /v1/images": answer, "first row of a stream": first_row},
        rounds,
        clock,
    )
    for name, times in seconds.items():
        print(f"  {name:24}{described(times)}")
    middle, low, high = ratio(seconds["POST /v1/images"], seconds["library"])
    print(f"  POST / library          {middle:8.2f}  ({low:.2f}-{high:.2f})")


def interleaved(
    contenders: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for warm_up in (True, True, *[False] * rounds):
        for name, contender in contenders.items():
            begun = clock()
            contender()
            if not warm_up:
                seconds[name].append(clock() - begun)
    return seconds


def in_browser(address: str, count: int, rounds: int) -> None:
    from playwright.sync_api import expect, sync_playwright

    first_row, drawn = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#status")).to_have_text(DONE)
        page.get_by_role("spinbutton", name="Images").fill(str(count))
        page.get_by_text("While it draws").click()
        page.get_by_label("Show rows").select_option("0")
        for _ in range(rounds):
            before = page.inner_text("#title")
            page.get_by_role("button", name="Draw", exact=True).click()
            expect(page.locator("#title")).not_to_have_text(before)
            expect(page.locator("#status")).to_have_text(DONE)
            marks = json.loads(
                page.locator("body").evaluate(
                    "() => JSON.stringify(Object.fromEntries(performance.getEntriesByType('mark')"
                    ".map(mark => [mark.name, mark.startTime])))"
                )
            )
            first_row.append((marks["first-row"] - marks["click"]) / 1000)
            drawn.append((marks["drawn"] - marks["click"]) / 1000)
        browser.close()
    print(f"  {'click to first row':24}{described(first_row)}")
    print(f"  {'click to last image':24}{described(drawn)}")


def described(seconds: list[float]) -> str:
    low, high = np.quantile(seconds, (0.2, 0.8))
    return f"{1000 * median(seconds):8.1f} ms  ({1000 * low:.1f} to {1000 * high:.1f})"


if __name__ == "__main__":
    main()
