"""The files that the package reads at run time are in the built package."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT = {".py", ".pyc", ".so", ".pyd", ".typed"}


def test_every_data_file_is_named_in_pyproject():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["vqvae2_fast"]
    package = ROOT / "vqvae2_fast"
    named = {path for pattern in patterns for path in package.glob(pattern)}
    found = {path for path in package.rglob("*") if path.is_file() and path.suffix not in BUILT}
    assert not found - named


def test_licence_files_are_named_by_setuptools_current_keys():
    """The older table `license = { text = ... }` stops builds from February 2027 on."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(project["license"], str)
    assert all((ROOT / name).is_file() for name in project["license-files"])
