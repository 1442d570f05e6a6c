"""`benchmarks/gpu.py` without a GPU: what fails must not cost the other figures, and the table."""

from __future__ import annotations

import csv
import json
import sys
import time
from functools import partial

import pytest
import torch


def breaks():
    raise RuntimeError("no such instruction on this card")


@pytest.fixture
def table(measuring, monkeypatch, tmp_path, capsys):
    """Runs the script on these pieces of work; returns its table and what it printed."""
    gpu, gpu_workloads = measuring("gpu"), measuring("shared.gpu_workloads")
    for name, value in {"is_available": True, "get_device_name": "a card"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    ceilings = {"ceiling:matmul": lambda: None, "ceiling:copy": lambda: None}
    monkeypatch.setattr(gpu, "ceilings", lambda: ceilings)
    monkeypatch.setattr(gpu, "clock", time.perf_counter)
    monkeypatch.setattr(gpu.measure, "SHORTEST", 0)
    monkeypatch.setattr(gpu.measure, "SETTLE", 0)

    def piece(n: int, contenders) -> gpu_workloads.Work:
        makers = {name: lambda run=run: run for name, run in contenders.items()}
        return gpu_workloads.Work(f"search {n}x2", "triton", 1, 1, makers)

    def run(pieces, *options):
        makers = [partial(piece, n, contenders) for n, contenders in pieces.items()]
        monkeypatch.setattr(gpu, "works", lambda: makers)
        path = tmp_path / "table.json"
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--rounds", "2", "--json", str(path), *options])
        try:
            gpu.main()
        except SystemExit as error:
            print(error)
        rows = json.loads(path.read_text())
        return [(row["shape"], row["contender"]) for row in rows], capsys.readouterr().out

    return run


def test_a_piece_that_fails_does_not_end_it(table):
    rows, output = table({1: {"ours": breaks}, 2: {"ours": int}})
    assert rows == [("2x2", "ours")]
    assert "benchmarks/gpu.py: failed: piece 1" in output


def test_a_contender_that_fails_is_left_out(table):
    rows, output = table({1: {"ours": int, "lean": int, "cuvs": breaks}})
    assert rows == [("1x2", "ours"), ("1x2", "lean")]
    assert "cuvs: left out, it fails: RuntimeError: no such instruction on this card" in output


@pytest.fixture
def saved(measuring, monkeypatch, tmp_path):
    """Saves rows, and returns what the table then holds."""
    gpu = measuring("gpu")
    monkeypatch.setattr(gpu.measure, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")

    def save(*rows, **options):
        with gpu.save(list(rows), **options).open(newline="") as file:
            return list(csv.DictReader(file))

    return save


def row(mode, contender, time):
    return {"mode": mode, "shape": "1x2", "contender": contender, "median_ms": time}


def test_saved_rows_replace_only_those_of_the_same_work_and_contender(saved):
    saved(row("search", "ours", 1.0), row("search", "cuvs", 2.0), row("draw", "ours", 3.0))
    found = saved(row("search", "ours", 4.0), row("gate", "ours", 5.0))
    assert [(r["mode"], r["contender"], r["median_ms"]) for r in found] == [
        ("search", "ours", "4.0"),
        ("search", "cuvs", "2.0"),
        ("draw", "ours", "3.0"),
        ("gate", "ours", "5.0"),
    ]
