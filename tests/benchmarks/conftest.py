"""The scripts of benchmarks/, which import each other by their bare names."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from vqvae2_fast.ops import _native

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def measuring(script):
    """`script` for those that measure, which refuse an install without compiled kernels."""
    if _native.module is None:
        pytest.skip(_native.MISSING_REASON)
    return script
