"""Whether an operator may be timed: its conformance tests, run once for each state of its code."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import vqvae2_fast

TESTS = Path(__file__).parent.parent / "tests" / "ops" / "test_conformance.py"


def fingerprint(op: str) -> str:
    """A hash of the compiled module, the operator's folder and the tests."""
    digest = hashlib.sha256()
    package = Path(vqvae2_fast.__file__).parent
    sources = [*package.glob("_C*"), *(package / "ops" / op.rstrip("_")).glob("*.py"), TESTS]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def is_green(op: str) -> bool:
    """Whether they pass; work of modules, which are no operators, has none ("")."""
    if not op:
        return True
    marks = Path(tempfile.gettempdir()) / f"vqvae2_fast-conformance-{fingerprint(op)}"
    if marks.exists():
        return True
    # Select by the first word of the id, since vector_quantize is not vector_quantize_backward.
    command = [sys.executable, "-m", "pytest", str(TESTS), "-k", f"[{op}-"]
    command += ["-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parents[2])
    if result.returncode != 0:
        print(result.stdout[-2000:], file=sys.stderr)
        return False
    marks.touch()
    return True
