"""The scripts of benchmarks/ that measure."""

from __future__ import annotations

import pytest

from vqvae2_fast.ops import _native


@pytest.fixture
def measuring(script):
    """`script` for those that measure, which refuse an install without compiled kernels."""
    if _native.module is None:
        pytest.skip(_native.MISSING_REASON)
    return script
