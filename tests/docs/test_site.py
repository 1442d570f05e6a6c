"""The site: that it has every page, and that those of the API describe every public name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
API = ROOT / "docs/api"
DESCRIBED = {
    name
    for page in API.glob("*.md")
    for name in re.findall(r"^::: [\w.]+\.(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
# Tables, which pages of the text explain.
ELSEWHERE = {
    "OPERATORS",
    "CODECS",
    "PARTS",
    "AVATAR_STYLES",
    "EMOJI_CLASSES",
    "FASHION_MNIST_CLASSES",
    "Split",
}


@pytest.mark.parametrize(
    "module", ["", ".ops", ".training", ".data", ".codec", ".metrics", ".export"]
)
def test_every_public_name_is_described(module):
    described = import_module(f"vqvae2_fast{module}")
    public = {n for n in described.__all__ if not isinstance(getattr(described, n), ModuleType)}
    assert public - ELSEWHERE - DESCRIBED == set()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    pages += [path.relative_to(ROOT).as_posix() for path in ROOT.glob("vqvae2_fast/**/README.md")]
    assert [page for page in pages if not re.search(rf" {page}$", navigation, re.MULTILINE)] == []
