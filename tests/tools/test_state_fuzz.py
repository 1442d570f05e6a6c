"""The tool that tests states finds nothing in the package, and every fault that it once had."""

import subprocess
import sys
from pathlib import Path

import pytest

from vqvae2_fast.ops import _native

TOOL = Path(__file__).parents[2] / "tools" / "state_fuzz"


def state_fuzz(*arguments):
    run = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_random_states_give_no_failure():
    assert "none failed" in state_fuzz("--operations", "400", "--seed", "7")


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
def test_every_planted_fault_is_found():
    assert state_fuzz("--plant", "all", "--operations", "10000").count(": found in ") == 5
