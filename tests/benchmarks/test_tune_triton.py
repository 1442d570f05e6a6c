"""`benchmarks/tune_triton.py` without a GPU: which configuration it puts into the table."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.ops import _triton

START = {"BLOCK_N": 32, "num_warps": 4}
OTHER = {"BLOCK_N": 64, "num_warps": 8}  # the last candidate


class Card:
    """Runs the kernel `k`, in a second; `cost` may say otherwise, given configuration and call."""

    def __init__(self, tune_triton, monkeypatch):
        self.now, self.calls = 0.0, 0
        self.cost = lambda config, calls: 1.0
        self.result = lambda config: None
        self.table = {"k": {"sm_80": START}}
        monkeypatch.setattr(_triton, "_CONFIGURATIONS", self.table)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(tune_triton, "clock", lambda: self.now)
        monkeypatch.setattr(tune_triton.measure, "SHORTEST", 0)
        monkeypatch.setattr(tune_triton.measure, "SETTLE", 0)
        self.tune_triton = tune_triton

    def call(self):
        self.calls += 1
        config = _triton._configuration("k", "sm_90")
        self.now += self.cost(config, self.calls)
        return self.result(config)

    def tune(self, arch="sm_90"):
        return self.tune_triton.tune("k", self.call, arch, 7)


@pytest.fixture
def card(measuring, monkeypatch):
    _triton._configuration.cache_clear()
    yield Card(measuring("tune_triton"), monkeypatch)
    _triton._configuration.cache_clear()


def test_a_faster_configuration_becomes_the_row(card):
    card.cost = lambda config, calls: 0.9 if config == OTHER else 1.0
    assert card.tune() == OTHER
    assert card.table == {"k": {"sm_80": START, "sm_90": OTHER}}


FLOATS, CODES = torch.tensor([1.0, 1e-9]), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("result", "row"),
    [
        ((FLOATS + 1e-3, CODES), OTHER),
        ((FLOATS * torch.tensor([1.1, 1.0]), CODES), START),
        ((FLOATS * torch.nan, CODES), START),
        ((FLOATS, CODES + torch.tensor([0, 1])), START),
    ],
    ids=["another_order_of_sums", "another_sum", "no_number", "another_code"],
)
def test_one_with_another_result_does_not_become_the_row(card, capsys, result, row):
    card.cost = lambda config, calls: 0.9 if config == OTHER else 1.0
    card.result = lambda config: result if config == OTHER else (FLOATS, CODES)
    assert card.tune() == row
    assert ("another result than the row in use" in capsys.readouterr().out) == (row == START)


def test_one_that_is_faster_in_few_rounds_does_not_replace_the_row(card):
    runs = iter([1.0, 1.0, 1.0, *[0.9, 1.2] * 3, 0.9])  # before the rounds it runs three times

    def cost(config, calls):
        return next(runs) if config == OTHER else 1.0

    card.cost = cost
    assert card.tune() == START
    assert card.table == {"k": {"sm_80": START}}
    assert next(runs, None) is None


def test_a_row_that_does_not_run_is_replaced(card, capsys):
    def cost(config, calls):
        if config == START:
            raise RuntimeError("out of resource: shared memory")
        return 0.9 if config == OTHER else 1.0

    card.cost = cost
    assert card.tune() == OTHER
    assert "out of resource: shared memory" in capsys.readouterr().out
