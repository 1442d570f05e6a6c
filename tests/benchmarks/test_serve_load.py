"""`benchmarks/serve_load.py`: what it says of a run."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import pytest


def test_a_run_of_a_moment_is_shown_too(measuring, capsys):
    serve_load = measuring("serve_load")
    record = serve_load.Record({"run": [1.0]}, Counter({"left early": 1}), memory=[300.0])
    serve_load.show(record)
    assert "left early: 1" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["--seconds 0", "--clients 0"])
def test_a_run_without_requests_is_refused(measuring, monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", ["serve_load.py", *line.split()])
    with pytest.raises(SystemExit, match="2"):
        asyncio.run(measuring("serve_load").main())
    assert f"{line.split()[0]}: expected " in capsys.readouterr().err
