"""`tools/check_api.py`: how a check ends."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="the tool needs it")
strategies = pytest.importorskip("hypothesis.strategies")

TOOLS = Path(__file__).parents[2] / "tools"


class Operation:
    """An operation whose calls raise."""

    label = "GET /v1/info"

    def __init__(self, error):
        self.error = error

    def as_strategy(self, generation_mode):
        return strategies.just(self)

    def call(self):
        raise self.error


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = importlib.import_module("check_api")
    mode = next(iter(tool.schemathesis.GenerationMode))
    return lambda error: tool.check(Operation(error), mode, 5, 0)


def test_a_person_can_stop_it(check):
    with pytest.raises(KeyboardInterrupt):
        check(KeyboardInterrupt())


def test_failures_in_a_group_are_failures_of_the_operation(check, capsys):
    from schemathesis.core.failures import Failure, FailureGroup

    failure = Failure(operation="GET /v1/info", title="Server error", message="status 500")
    assert not check(FailureGroup([failure]))
    assert "GET /v1/info" in capsys.readouterr().out
