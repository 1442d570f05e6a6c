"""`pip install '.[bench]'` brings what the scripts of benchmarks/ import."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = {"PIL": "pillow"}  # where the name is another one


def imports_of(path):
    """The projects that a file imports when it is loaded."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [statement.module]
        yield from (PROJECTS.get(name, name) for name in (n.partition(".")[0] for n in names))


def named(requirements):
    return {re.match(r"[\w-]+(\[\w+\])?", each)[0].replace("-", "_") for each in requirements}


def test_the_extra_brings_what_is_imported():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = named(project["optional-dependencies"]["bench"])
    brought = extra | named(project["dependencies"])
    scripts = sorted((ROOT / "benchmarks").rglob("*.py"))
    here = (
        {path.stem for path in scripts}
        | {"shared", "helpers", "vqvae2_fast"}
        | set(sys.stdlib_module_names)
    )
    # shared/conformance.py runs tests, which need their conftest.py.
    imported = {
        name for path in (*scripts, ROOT / "tests/conftest.py") for name in imports_of(path)
    }
    assert imported - here - brought == set()
    assert "vqvae2_fast[serve]" in extra  # serve_latency.py and serve_load.py start the service
