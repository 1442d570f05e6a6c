"""No operator is timed that fails its tests: `shared/conformance.py`, and who asks it."""

from __future__ import annotations

import sys
import tempfile

import pytest

HEAD = "import pytest\n\n\n@pytest.mark.parametrize('case', ['an_op-case'])\ndef test_op(case):\n"


@pytest.fixture
def conformance(script, monkeypatch, tmp_path):
    """The module, with a folder of its own for marks, sources and tests."""
    module = script("shared.conformance")
    for folder in ("marks", "package/ops/an_op", "tree/tests/ops"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "marks"))
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(module, "TESTS", tmp_path / "tree/tests/ops/test_conformance.py")
    write(module, "pass")
    module.is_green.cache_clear()
    yield module
    module.is_green.cache_clear()


def write(conformance, statement):
    conformance.TESTS.write_text(f"{HEAD}    {statement}\n")


def test_an_operator_whose_tests_pass_is_green(conformance):
    assert conformance.red(["an_op"]) == []


def test_an_operator_whose_tests_fail_is_red(conformance, capsys):
    write(conformance, "assert not 'a wrong result'")
    assert conformance.red(["an_op"]) == ["an_op"]
    assert "a wrong result" in capsys.readouterr().err


def test_an_operator_without_tests_is_an_error(conformance):
    with pytest.raises(RuntimeError, match="the tests of another_op did not run"):
        conformance.is_green("another_op")


@pytest.mark.parametrize(
    "path", ["ops/_checks.py", "ops/another_op/op.py", "ops/an_op/triton/tiles.py", "_C.so"]
)
def test_the_fingerprint_is_of_every_source_of_the_operators(conformance, path):
    before = conformance.fingerprint()
    source = conformance.PACKAGE / path
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("changed = True\n")
    assert conformance.fingerprint() != before


@pytest.fixture
def one_red(measuring, monkeypatch):
    """Two small workloads, `good` and `bad`; an operator of `bad` other than its first is red."""
    Workload = measuring("shared.workload").Workload
    ran = []
    workloads = {
        name: lambda name=name, operators=operators: Workload(
            operators, name, (1, 1, 1), 1, 1, {"ours": lambda: lambda: ran.append(name)}
        )
        for name, operators in {"good": ("an_op",), "bad": ("an_op", "a_red_op")}.items()
    }
    conformance = measuring("shared.conformance")
    monkeypatch.setattr(conformance, "is_green", lambda operator: operator != "a_red_op")
    return workloads, ran


def test_compare_leaves_out_a_workload_with_a_red_operator(one_red, measuring, monkeypatch, capsys):
    workloads, ran = one_red
    compare, saved, threads = measuring("compare"), [], []
    monkeypatch.setattr(compare, "WORKLOADS", workloads)
    monkeypatch.setattr(compare, "owner_of", lambda workload: "cpu")
    monkeypatch.setattr(compare.measure, "save", saved.extend)
    monkeypatch.setattr(compare.measure, "set_conditions", threads.append)
    monkeypatch.setattr(compare.measure, "SHORTEST", 0)
    for name in ("device_name", "openblas_cores"):
        monkeypatch.setattr(compare.measure, name, lambda: "a machine")
    ceilings = {"ceiling:matmul": lambda: None, "ceiling:copy": lambda: None}
    monkeypatch.setattr(compare.measure, "ceilings", lambda: ceilings)
    options = ["--rounds", "1", "--threads", "1", "--save"]
    monkeypatch.setattr(sys, "argv", ["compare.py", "bad", "good", *options])
    with pytest.raises(SystemExit) as raised:
        compare.main()
    assert raised.value.code == "benchmarks/compare.py: bad left out: operators fail their tests."
    assert "bad_1x1x1: left out, the tests of a_red_op fail" in capsys.readouterr().out
    assert [row.mode for row in saved] == ["good"]
    assert set(ran) == {"good"}
    assert threads == [1]
