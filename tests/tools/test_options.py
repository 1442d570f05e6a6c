"""Options of the tools with which they would check nothing, and say that all is well."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def forget_modules():
    """Of the tools: benchmarks have some of the same names."""
    yield
    for name, module in list(sys.modules.items()):
        if str(TOOLS) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("fuzz", "--files"),
        ("kill_tests", "--kills"),
        ("quantizer_exactness.py", "--rows"),
        ("state_fuzz", "--operations"),
        ("torchrun_kill_test.py", "--kills"),
    ],
)
def test_a_tool_that_would_check_nothing_refuses(monkeypatch, capsys, name, option):
    monkeypatch.setattr(sys, "argv", [name, option, "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(TOOLS / name), run_name="__main__")
    assert f"{option}: expected 1 or more, got 0" in capsys.readouterr().err
