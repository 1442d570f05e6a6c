"""Who owns an operator, and what happens when the owner does not take a call."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.compare import needs_kernels, simd_level, simd_levels

from vqvae2_fast import ops
from vqvae2_fast.ops import OPERATORS, _native
from vqvae2_fast.ops import _registry as registry
from vqvae2_fast.ops.code_cross_entropy.op import code_cross_entropy
from vqvae2_fast.ops.normed_conv2d.op import normed_conv2d
from vqvae2_fast.ops.stride2_conv2d.op import stride2_conv2d


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        # Run outside the source tree, whose package would shadow the installed one.
        cwd=tempfile.gettempdir(),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_kernels
def test_installed_package_owns_nearest_code_natively():
    z, codebook = torch.zeros(2, 3), torch.zeros(4, 3)
    assert ops.owner("nearest_code", z, codebook).startswith("cpu:")


@needs_kernels
def test_owner_names_the_level_in_use():
    z, codebook = torch.zeros(2, 3), torch.zeros(4, 3)
    for level in simd_levels():
        with simd_level(level):
            assert ops.owner("nearest_code", z, codebook) == f"cpu:{level}"


@needs_kernels
def test_owner_gives_the_reason_for_the_reference():
    z, codebook = torch.zeros(2, 3).double(), torch.zeros(4, 3)
    assert ops.owner("nearest_code", z, codebook) == "reference: float64 input"


def test_owner_of_an_operator_without_kernels_is_the_reference():
    assert ops.owner("causal_conv2d", torch.zeros(1, 2, 1, 1)) == "reference"


def test_unknown_operator_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"expected one of .*nearest_code.*, got 'nearest'"):
        ops.owner("nearest", torch.zeros(1))


@needs_kernels
def test_owner_does_not_ask_for_an_argument_that_does_not_decide():
    assert ops.owner("sign_quantize", torch.zeros(2, 3)).startswith("cpu:")


def test_owner_needs_a_tensor():
    with pytest.raises(ValueError, match="expected the arguments of nearest_code, a tensor first"):
        ops.owner("nearest_code")


def test_owner_names_a_missing_argument():
    with pytest.raises(ValueError, match=r"of nearest_code\(Tensor z, .* got 1: .*'codebook'"):
        ops.owner("nearest_code", torch.zeros(2, 3))


def test_operators_that_users_call_are_the_ones_that_are_not_private():
    public = {name for name, operator in OPERATORS.items() if not operator.private}
    assert public == OPERATORS.keys() & set(ops.__all__)


@needs_kernels
def test_owner_tells_of_private_operators_too():
    x, weight = torch.zeros(1, 64, 32, 32), torch.zeros(64, 64, 3, 3)
    assert ops.owner("normed_conv2d", x, weight) == "reference"  # no gradient is wanted
    weight.requires_grad_()
    assert ops.owner("normed_conv2d", x, weight).startswith("cpu:")
    assert ops.owner("normed_conv2d", x[:, :, :2], weight) == "reference"  # too small
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.owner("normed_conv2d", x, weight) == "reference"
    assert ops.owner("normed_conv2d", x.double(), weight) == "reference: float64 x"


@needs_kernels
def test_owner_of_dropped_attention_on_a_cpu_is_the_kernel_that_runs():
    q, seed = torch.zeros(1, 2, 5, 4), torch.tensor(0)
    assert ops.owner("causal_attention", q, q, q, 0.1, "logits", seed).startswith("cpu:")
    assert ops.owner("causal_attention", q, q, q, 0.0) == "reference"
    mixed = (q.bfloat16(), q, q, 0.1, "logits", seed)
    assert ops.owner("causal_attention", *mixed) == "reference: bfloat16 q"


def double_convolution(dtype):
    x, weight = torch.zeros(1, 64, 32, 32, dtype=dtype), torch.zeros(64, 64, 3, 3, dtype=dtype)
    return normed_conv2d(x, weight.requires_grad_(), None, None, "same")


def double_halving(dtype):
    x, weight = torch.zeros(1, 64, 64, 64, dtype=dtype), torch.zeros(64, 64, 4, 4, dtype=dtype)
    return stride2_conv2d(x, weight.requires_grad_(), None)


def double_loss(dtype):
    weight = torch.zeros(5, 3, dtype=dtype).requires_grad_()
    codes = torch.zeros(4, dtype=torch.int64)
    return code_cross_entropy(torch.zeros(4, 3, dtype=dtype), weight, weight[:, 0], codes)


@needs_kernels
@pytest.mark.parametrize("layer", [double_convolution, double_halving, double_loss])
def test_strict_mode_covers_what_the_layers_call(layer, monkeypatch):
    layer(torch.float64)
    monkeypatch.setattr(_native, "STRICT", True)
    layer(torch.float32)
    with pytest.raises(RuntimeError, match="VQVAE2_FAST_STRICT=1 and no .* float64"):
        layer(torch.float64)


@needs_kernels
def test_a_kernel_that_nobody_owns_fails_at_registration():
    registry._check_owners("stride2_conv2d", {"cpu": "cpu"})
    with pytest.raises(RuntimeError, match=r"kernels of stride2_conv2d, got {}, but .* a kernel"):
        registry._check_owners("stride2_conv2d", {})


@needs_kernels
def test_an_owner_without_a_kernel_fails_at_registration():
    with pytest.raises(RuntimeError, match="module registers no kernel for CPU"):
        registry._check_owners("causal_conv2d_fused", {"cpu": "cpu"})


@needs_kernels
def test_strict_mode_raises_instead_of_falling_back():
    code = (
        "import torch; from vqvae2_fast import ops; "
        "ops.nearest_code(torch.zeros(2, 3).double(), torch.zeros(4, 3))"
    )
    result = run_python(code, VQVAE2_FAST_STRICT="1")
    assert "VQVAE2_FAST_STRICT=1 and no compiled kernel takes this call: float64" in result.stderr


@needs_kernels
def test_simd_variable_chooses_the_level():
    result = run_python(
        "from vqvae2_fast import ops; print(ops.simd_level())", VQVAE2_FAST_SIMD="scalar"
    )
    assert result.stdout.strip() == "scalar"


@needs_kernels
def test_unknown_simd_level_is_refused_with_the_list():
    result = run_python("import vqvae2_fast.ops", VQVAE2_FAST_SIMD="avx9000")
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


def test_tests_of_simd_levels_run_once_without_the_compiled_module():
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["vqvae2_fast._C"] = None
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.compare import needs_kernels, simd_level, simd_levels
for level in simd_levels():
    with simd_level(level):
        print(level)
"""
    result = run_python(code)
    assert result.stdout.strip() == "reference", result.stderr


def test_inductor_finds_no_decomposition():
    """Where the variable `CI` is set, it refuses an opaque operator that has one."""
    found = torch._decomp.get_decompositions(op.overload for op in OPERATORS.values())
    assert not found
