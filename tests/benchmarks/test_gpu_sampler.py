"""`benchmarks/gpu_sampler.py`: what it leaves when it is stopped."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch


@pytest.fixture
def gpu_sampler(measuring):
    return measuring("gpu_sampler")


class FakeCard:
    """Draws in no time: the codes that `differ` names, engine and batch, are others."""

    def __init__(self, gpu_sampler, monkeypatch, folder):
        self.differ, self.broken, self.draws_left = None, None, 1000
        self.json = folder / "table.json"
        monkeypatch.setattr(gpu_sampler, "draw", self.draw)
        monkeypatch.setattr(gpu_sampler, "clock", iter(range(10_000)).__next__)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        self.measure_all = gpu_sampler.measure_all

    def draw(self, priors, batch, engine):
        self.draws_left -= 1
        if self.draws_left < 0:
            raise KeyboardInterrupt
        if engine == self.broken:
            raise RuntimeError("the driver is too old")
        return torch.full((batch, 2, 2), int(self.differ == (engine, batch)))

    def run(self):
        options = {"batches": [1, 4, 8], "engines": ["cuda", "cuda_tf32"], "rounds": 3}
        return self.measure_all({}, Namespace(**options, json=self.json, save=False))

    def rows(self):
        rows = json.loads(self.json.read_text())
        return {(row["engine"], row["batch"]): row for row in rows}


@pytest.fixture
def card(gpu_sampler, monkeypatch, tmp_path):
    return FakeCard(gpu_sampler, monkeypatch, tmp_path)


def test_every_engine_and_batch_is_in_the_table(card):
    assert card.run() == []
    engines = ("cuda", "cuda_tf32")
    assert list(card.rows()) == [(engine, batch) for batch in (1, 4, 8) for engine in engines]


def test_a_run_that_is_stopped_leaves_its_rounds(card):
    card.draws_left = 2 + 3 * 2 + 2 + 1 * 2  # batch 1, and one round of batch 4
    with pytest.raises(KeyboardInterrupt):
        card.run()
    rounds = {key: row["rounds"] for key, row in card.rows().items()}
    assert rounds == {("cuda", 1): 3, ("cuda_tf32", 1): 3, ("cuda", 4): 1, ("cuda_tf32", 4): 1}


def test_a_sample_that_differs_is_told_after_its_figures(card):
    card.differ = ("cuda_tf32", 4)
    assert card.run() == ["engine cuda_tf32: sample 0 differs at batch 4"]
    rows = card.rows()
    assert rows["cuda_tf32", 4]["sample_0"] == "differs"
    assert rows["cuda", 4]["sample_0"] == "same"


def test_stage_times_before_a_failure_are_kept(gpu_sampler, monkeypatch, tmp_path):
    recorded = []

    def record(*given, **named):
        if len(recorded) == 3:
            raise RuntimeError("out of memory")
        recorded.append(given)
        return [], None

    out = tmp_path / "stage_times.json"
    monkeypatch.setattr(gpu_sampler.stage_times, "record", record)
    monkeypatch.setattr(gpu_sampler, "Library", str)
    monkeypatch.setattr(gpu_sampler, "random_priors", lambda: {"top": None})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr("sys.argv", ["gpu_sampler.py", "--stage-times", "lib", "--out", str(out)])
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu_sampler.main()
    cases = json.loads(out.read_text())["cases"]
    assert [case["name"] for case in cases] == [
        f"top, {engine}, batch 1" for engine in list(gpu_sampler.PRECISIONS)[:3]
    ]
