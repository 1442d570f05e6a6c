"""`benchmarks/gpu.py` without a GPU: what fails must not cost the other figures."""

from __future__ import annotations

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
    gpu, gpu_works = measuring("gpu"), measuring("gpu_works")
    for name, value in {"is_available": True, "get_device_name": "a card"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    ceilings = {"ceiling:matmul": lambda: None, "ceiling:copy": lambda: None}
    monkeypatch.setattr(gpu, "ceilings", lambda: ceilings)
    monkeypatch.setattr(gpu, "clock", time.perf_counter)
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(gpu.measure, "SHORTEST", 0)
    monkeypatch.setattr(gpu.measure, "SETTLE", 0)

    def piece(n: int, contenders) -> gpu_works.Work:
        makers = {name: lambda run=run: run for name, run in contenders.items()}
        return gpu_works.Work(f"search {n}x2", "triton", 1, 1, makers)

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
    rows, output = table({1: {"ours": int, "eager": int, "cuvs": breaks}})
    assert rows == [("1x2", "ours"), ("1x2", "eager")]
    assert "cuvs: left out, it fails: RuntimeError: no such instruction on this card" in output


def test_ours_can_be_measured_alone(table):
    rows, _ = table({1: {"ours": int, "eager": int}}, "--contenders", "ours")
    assert rows == [("1x2", "ours")]


def test_pieces_are_chosen_by_their_names(table):
    rows, _ = table(
        {1: {"ours": int}, 2: {"ours": int}, 3: {"ours": int}}, "--only", "piece 1", "3"
    )
    assert [shape for shape, _ in rows] == ["1x2", "3x2"]
