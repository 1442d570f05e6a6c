"""The figures of README.md: docs/results.md has all of them, and files of results hold them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
UNITS = r"min \d+ s|s|ms|µs|seconds|minutes|hours|dB|bits|times|%|[kMG]B/s|[kMG]B"
FIGURE = re.compile(rf"\d[\d.,]*\d? (?:{UNITS})(?!\w)")


@pytest.fixture
def results_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("results_page")


def test_the_page_is_what_the_script_writes(results_page):
    assert results_page.page() == PAGE, "run: python benchmarks/results_page.py"


def test_readme_has_the_rows_of_the_files(results_page):
    for figure in results_page.MEASURED:
        assert results_page.readme_row(figure) in README


def test_readme_has_the_quoted_figures(results_page):
    text = README.replace("\n", " ")
    for quoted in results_page.QUOTED:
        for figure in quoted.figures.split("; "):
            assert figure in text, figure


def test_every_figure_of_readme_is_on_the_page():
    found = set(FIGURE.findall(README.replace("\n", " ")))
    assert "28.29 dB" in found
    assert found - set(FIGURE.findall(PAGE)) == set()


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150
