"""The figures of README.md: docs/results.md has all of them, and files of results hold them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
UNITS = r"min \d+ s|s|ms|µs|seconds|minutes|hours|dB|bits|times|%|[kMG]B/s|[kMG]B"
FIGURE = re.compile(rf"\d[\d.,]*\d? (?:{UNITS})(?!\w)")


@pytest.fixture
def results_page(script):
    return script("results_page")


def test_the_page_is_what_the_script_writes(results_page):
    assert results_page.page() == PAGE, "run: python benchmarks/results_page.py"


def test_the_pictures_are_what_the_script_writes(results_page):
    drawn = {
        name: (results_page.PICTURES / name).read_text("utf-8") for name in results_page.pictures()
    }
    assert drawn == results_page.pictures(), "run: python benchmarks/results_page.py"


def test_readme_has_the_rows_of_the_files(results_page):
    for figure in results_page.MEASURED:
        assert results_page.readme_row(figure) in README


@pytest.fixture
def headline(results_page, monkeypatch, tmp_path):
    """The row of the README's table for rows of run, contender and time; it names `onehot`."""
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    figure = results_page.Measured("a step", "a.csv", "step", "64x8x4", "onehot")
    same = {"mode": "step", "shape": "64x8x4", "threads": "2", "clock": "wall", "commit": "aaaaaaa"}

    def row_of(*rows):
        with (tmp_path / "a.csv").open("w", newline="") as file:
            columns = ("matmul_gflop_per_s", "contender", "median_ms")
            writer = csv.DictWriter(file, (*same, *columns, "copy_gb_per_s"))
            writer.writeheader()
            for row in rows:
                times = dict(zip(columns, row, strict=True))
                writer.writerow({**same, **times, "copy_gb_per_s": 20})
        return results_page.readme_row(figure)

    return row_of


FIRST_RUN = ((300, "ours", 2), (300, "onehot", 40), (300, "lean", 10), (300, "cdist", 12))


def test_a_headline_has_the_fastest_contender_next_to_the_one_it_names(headline):
    shown = "plain PyTorch: 5 times, one-hot products: 20 times"
    assert headline(*FIRST_RUN) == f"| a step | 2 ms | {shown} |"


def test_a_headline_is_of_one_run(headline):
    """A slower run, and a later one of ours alone, have the same commit."""
    slower = [(310, name, 3 * time) for _, name, time in FIRST_RUN]
    shown = "plain PyTorch: 5 times, one-hot products: 20 times"
    assert headline(*FIRST_RUN, (310, "ours", 1)) == f"| a step | 2 ms | {shown} |"
    assert headline(*FIRST_RUN, *slower, (320, "ours", 1)) == f"| a step | 6 ms | {shown} |"


def test_readme_has_the_quoted_figures(results_page):
    text = README.replace("\n", " ")
    for quoted in (*results_page.of_commands(), *results_page.QUOTED):
        for figure in quoted.figures.split("; "):
            assert figure in text, figure


def test_every_figure_of_readme_is_on_the_page():
    found = set(FIGURE.findall(README.replace("\n", " ")))
    assert "29.64 dB" in found
    assert found - set(FIGURE.findall(PAGE)) == set()


def test_readme_has_at_most_100_lines():
    assert len(README.splitlines()) <= 100
