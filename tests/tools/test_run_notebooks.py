"""`tools/run_notebooks.py`: which notebooks it runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setitem(sys.modules, "nbformat", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nbclient", SimpleNamespace(NotebookClient=None))
    yield importlib.import_module("run_notebooks")
    del sys.modules["run_notebooks"]


def test_a_notebook_that_does_not_exist_is_refused(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "your_own_image"])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    told = capsys.readouterr().err
    assert "your_own_images" in told
    assert told.endswith("got your_own_image\n")
