"""`vqvae2-fast check`: it passes here, and finds what is planted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from vqvae2_fast import ops
from vqvae2_fast.commands import check
from vqvae2_fast.commands.check import operator_inputs
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.choice import ENGINES

needs_kernels = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)


def faults_of(run) -> dict[str, list[str]]:
    """The faults of each part, of a check that has to find some."""
    code, text, _ = run("check --quiet --json")
    assert code == 1
    return {name: part["faults"] for name, part in json.loads(text).items() if part["faults"]}


def test_what_is_installed_here_is_as_it_should_be(run):
    code, text, _ = run("check --quiet")
    assert code == 0
    assert text.rstrip().endswith("Everything is as it should be.")
    assert "fault" not in text
    for part in ("installation", "operators", "engines", "codec"):
        assert f"{part}: " in text


def test_every_public_operator_has_inputs():
    for path in Path(ops.__file__).parent.glob("*/op.py"):
        importlib.import_module(f"vqvae2_fast.ops.{path.parent.name}.op")
    public = {name for name, operator in ops.OPERATORS.items() if not operator.private}
    assert operator_inputs().keys() == public


@needs_kernels
def test_a_kernel_that_gives_another_number_is_found(run, monkeypatch):
    operator = ops.OPERATORS["code_statistics"]
    kernel = operator.kernel

    def wrong(*arguments):
        counts, sums = kernel(*arguments)
        sums[3, 4] += 0.001
        return counts, sums

    monkeypatch.setattr(operator, "kernel", wrong)
    faults = faults_of(run)
    assert list(faults) == ["operators"]
    lowest, highest = faults["operators"]
    assert lowest.startswith("code_statistics at SIMD level scalar: expected result 1")
    assert "got a difference of 0.001" in highest


@needs_kernels
def test_an_engine_that_draws_another_code_is_found(run, monkeypatch):
    draw = ENGINES["cpu"]

    def wrong(prior, interface, request):
        drawn = draw(prior, interface, request)
        drawn.codes[0, -1, -1] = (drawn.codes[0, -1, -1] + 1) % interface.num_embeddings
        return drawn

    monkeypatch.setitem(ENGINES, "cpu", wrong)
    faults = faults_of(run)
    assert list(faults) == ["engines"]
    assert all(fault.startswith("engine cpu at ") for fault in faults["engines"])
    assert "got 1 other code of 64" in faults["engines"][0]


def test_an_installed_package_that_a_source_tree_hides_is_found(run, monkeypatch, tmp_path):
    class Installed:
        def locate_file(self, name):
            return tmp_path / name

    (tmp_path / "vqvae2_fast").mkdir()
    (tmp_path / "vqvae2_fast" / "_C.abi3.so").touch()
    monkeypatch.setattr(check, "distributions", lambda **_: [Installed()])
    monkeypatch.setattr(_native, "module", None)
    faults = faults_of(run)["installation"]
    assert len(faults) == 1
    assert f"expected the package installed in {tmp_path / 'vqvae2_fast'}" in faults[0]


def test_an_error_in_one_part_does_not_stop_the_others(run, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(check, "gumbel_noise_reference", broken)
    faults = faults_of(run)
    assert list(faults) == ["engines"]
    assert "expected no error, got RuntimeError: no such instruction" in faults["engines"][0]
