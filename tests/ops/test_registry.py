"""Who owns an operator, and what happens when the owner does not take a call."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.testing.compare import simd_level, simd_levels


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        # Elsewhere than the source tree, whose package would shadow the installed one.
        cwd=tempfile.gettempdir(),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_installed_package_owns_nearest_code_natively():
    z, codebook = torch.zeros(2, 3), torch.zeros(4, 3)
    assert ops.owner("nearest_code", z, codebook).startswith("cpu:")


def test_owner_names_the_level_in_use():
    z, codebook = torch.zeros(2, 3), torch.zeros(4, 3)
    for level in simd_levels():
        with simd_level(level):
            assert ops.owner("nearest_code", z, codebook) == f"cpu:{level}"


def test_owner_gives_the_reason_for_the_reference():
    z, codebook = torch.zeros(2, 3).double(), torch.zeros(4, 3)
    assert ops.owner("nearest_code", z, codebook) == "reference: float64 input"


def test_owner_of_an_operator_without_kernels_is_the_reference():
    assert ops.owner("causal_conv2d", torch.zeros(1, 2, 1, 1)) == "reference"


def test_unknown_operator_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"expected one of .*nearest_code.*, got 'nearest'"):
        ops.owner("nearest", torch.zeros(1))


def test_strict_mode_raises_instead_of_falling_back():
    code = (
        "import torch; from vqvae2_fast import ops; "
        "ops.nearest_code(torch.zeros(2, 3).double(), torch.zeros(4, 3))"
    )
    result = run_python(code, VQVAE2_FAST_STRICT="1")
    assert "VQVAE2_FAST_STRICT=1 and no compiled kernel takes this call: float64" in result.stderr


def test_simd_variable_chooses_the_level():
    result = run_python(
        "from vqvae2_fast import ops; print(ops.simd_level())", VQVAE2_FAST_SIMD="scalar"
    )
    assert result.stdout.strip() == "scalar"


def test_unknown_simd_level_is_refused_with_the_list():
    result = run_python("import vqvae2_fast", VQVAE2_FAST_SIMD="avx9000")
    assert "expected a SIMD level that this CPU and build have (scalar" in result.stderr
    assert "got 'avx9000'" in result.stderr


def test_package_works_on_references_without_the_compiled_module():
    code = """
import sys, warnings
sys.modules["vqvae2_fast._C"] = None  # importing it now raises ModuleNotFoundError
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from vqvae2_fast import ops
import torch
assert len([w for w in caught if "no compiled module" in str(w.message)]) == 1
z, codebook = torch.tensor([[0.9], [0.1]]), torch.tensor([[0.0], [1.0]])
assert ops.nearest_code(z, codebook)[0].tolist() == [1, 0]
print(ops.owner("nearest_code", z, codebook))
"""
    result = run_python(code)
    assert result.stdout.strip() == "reference: this install has no compiled module", result.stderr
