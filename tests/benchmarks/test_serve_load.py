"""`benchmarks/serve_load.py`: what it says of a run."""

from __future__ import annotations

from collections import Counter


def test_a_run_of_a_moment_is_shown_too(measuring, capsys):
    serve_load = measuring("serve_load")
    record = serve_load.Record({"run": [1.0]}, Counter({"left early": 1}), memory=[300.0])
    serve_load.show(record)
    assert "left early: 1" in capsys.readouterr().out
