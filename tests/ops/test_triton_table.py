"""The READMEs say of the compiled kernels what was found when they were last compiled."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    path = ROOT / "build_tools" / "triton_tables.py"
    spec = importlib.util.spec_from_file_location("triton_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readmes_hold_the_table_of_their_kernels(tables):
    for readme, text in tables.readmes().items():
        assert readme.read_text() == text, f"{readme.parent.name}: run build_tools/triton_tables.py"


def test_every_kernel_is_compiled_for_every_target_without_spills(tables):
    with tables.SUMMARY.open() as file:
        rows = list(csv.DictReader(file))
    kernels = set()
    for source in (ROOT / "vqvae2_fast" / "ops").glob("*/triton*.py"):
        kernels |= set(re.findall(r"def (_\w+_kernel)\(", source.read_text()))
    targets = {"sm_80", "sm_90", "sm_100", "sm_120", "gfx942"}
    assert {(row["kernel"], row["target"]) for row in rows} == {
        (kernel, target) for kernel in kernels for target in targets
    }
    assert {row["most_spill_bytes"] for row in rows} == {"0"}


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_no_kernel_comes_near_the_255_registers_of_a_thread(tables, target):
    """On sm_80 attention takes all of them."""
    with tables.SUMMARY.open() as file:
        most = {
            row["kernel"]: int(row["most_registers"])
            for row in csv.DictReader(file)
            if row["target"] == target
        }
    assert {kernel for kernel, registers in most.items() if registers > 224} == set()
