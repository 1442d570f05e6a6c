"""The files that hosts and tools read: citation, templates of issues, hooks before a commit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vqvae2_fast

yaml = pytest.importorskip("yaml", reason="PyYAML reads these files")

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(path: str | Path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_citation_is_of_this_version():
    assert read("CITATION.cff")["version"] == vqvae2_fast.__version__


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_is_a_form(path):
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown", "input")
        assert field["attributes"]["label"]
        assert all(isinstance(option, str) for option in field["attributes"].get("options", ()))


def test_hooks_run_what_lint_runs():
    lint = (ROOT / ".ci/lint").read_text(encoding="utf-8")
    (local,) = read(".pre-commit-config.yaml")["repos"]
    for hook in local["hooks"]:
        assert hook["entry"] in re.sub(r" \.$", "", lint, flags=re.MULTILINE), hook["id"]
        assert hook["language"] == "system"
