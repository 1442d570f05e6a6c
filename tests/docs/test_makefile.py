"""The commands of a contributor, which `make` lists and CONTRIBUTING.md names, and its paths."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("setup", "build", "test", "check", "weight", "lint", "types", "ci")
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

PAGES = TEXT + (ROOT / "docs/extending.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def test_make_alone_lists_the_commands():
    listed = [line.split()[1] for line in make().splitlines()]
    assert listed == ["help", *COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_line_that_contributing_names(command):
    assert len(make("--dry-run", command).splitlines()) == 1
    assert f"make {command}" in TEXT


def test_contributing_names_no_other():
    assert set(re.findall(r"`?\bmake ([a-z]+)", TEXT)) <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./]+/[\w./]*)`", PAGES))))
def test_paths_exist(path):
    """Those in `tests/` and `vqvae2_fast/` may be given from there."""
    assert any((ROOT / base / path).exists() for base in ("", "vqvae2_fast", "csrc/cpu"))
