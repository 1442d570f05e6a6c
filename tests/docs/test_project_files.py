"""The files that hosts and tools read: citation, templates of issues, hooks before a commit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML reads these files")

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(path: str | Path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def read_text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


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


def test_the_release_workflow_builds_every_platform_and_tests_what_exists():
    jobs = read(".github/workflows/wheels.yml")["jobs"]
    runners = [one["runner"] for one in jobs["wheels"]["strategy"]["matrix"]["include"]]
    assert runners == ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-14"]
    command = re.search(r'^test-command = "(.*)"', read_text("pyproject.toml"), re.MULTILINE)[1]
    smoke = re.search(r'tests="(.*?)"', read_text(".ci/wheel_smoke"), re.DOTALL)[1]
    named = re.findall(r"tests/(\S+\.py)", command) + smoke.split()
    assert len(named) > 10
    for name in named:
        assert (ROOT / "tests" / name).exists(), name


def test_a_source_distribution_has_what_a_build_reads():
    manifest = read_text("MANIFEST.in")
    for folder in ("csrc", "build_tools", "tests"):
        assert f"graft {folder}\n" in manifest
    assert "CMakeLists.txt" in manifest
