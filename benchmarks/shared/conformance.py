"""Whether operators may be timed: their conformance tests, run once for each state of the code."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import vqvae2_fast

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = Path(__file__).parents[2] / "tests" / "ops" / "test_conformance.py"
PACKAGE = Path(vqvae2_fast.__file__).parent
# Without the current folder in the path: the tree's package, which may have no compiled module,
# must not stand in for the one that is timed.
PYTEST = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def fingerprint() -> str:
    """A hash of the compiled module, everything of the operators, the tests and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    sources = [*PACKAGE.glob("_C*"), *(PACKAGE / "ops").rglob("*.py"), TESTS]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


@functools.cache
def is_green(operator: str) -> bool:
    """Whether they pass.

    Raises:
        RuntimeError: They cannot run.
    """
    marks = Path(tempfile.gettempdir()) / f"vqvae2_fast-conformance-{operator}-{fingerprint()}"
    if marks.exists():
        return True
    if importlib.util.find_spec("pytest") is None:
        raise could_not_run(operator, "there is no pytest.")
    # Select by the first word of the id, since vector_quantize is not vector_quantize_backward.
    command = [sys.executable, "-c", PYTEST, str(TESTS), "-k", f"[{operator}-"]
    command += ["-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TESTS.parents[2]
    )
    end = result.stdout[-2000:]
    if result.returncode == 1:
        print(end, file=sys.stderr)
        return False
    if result.returncode != 0:
        raise could_not_run(operator, f"exit code {result.returncode}, and at the end:\n{end}")
    marks.touch()
    return True


def could_not_run(operator: str, why: str) -> RuntimeError:
    return RuntimeError(
        f"conformance: the tests of {operator} did not run, so it cannot be timed. "
        f"Install what they need with pip install '.[bench]'. What happened: {why}"
    )


def red(operators: Sequence[str]) -> list[str]:
    """Those whose tests fail."""
    return [operator for operator in operators if not is_green(operator)]
