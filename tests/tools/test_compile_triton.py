"""The checks of compiled kernels for contracted multiply-adds and approximate instructions."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from vqvae2_fast.ops import _triton

triton = pytest.importorskip("triton")
tl = triton.language
ASTSource = importlib.import_module("triton.compiler").ASTSource

ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "gfx942")
pytestmark = [
    pytest.mark.skipif(_triton.INTERPRETED, reason="there Triton compiles nothing"),
    pytest.mark.skipif(
        f"triton=={triton.__version__}\n" not in (ROOT / ".ci/constraints.txt").read_text(),
        reason="the check is for the version of Triton in .ci/constraints.txt",
    ),
]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    return importlib.import_module("compile_triton")


@pytest.fixture
def compiled(tool):
    """A kernel (pointer to x, pointer to y) for a target."""

    def compile_kernel(kernel, target, *, fusion=False, dtype="fp32"):
        source = ASTSource(kernel, {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}, {}, {})
        options = {"enable_fp_fusion": fusion}
        return triton.compile(source, target=tool.TARGETS[target].gpu, options=options)

    return compile_kernel


@pytest.fixture
def contracted(tool, compiled):
    """How many multiply-adds of a kernel are contracted."""
    return lambda *args, **kwargs: tool.contracted(compiled(*args, **kwargs))


@triton.jit
def product_and_sum(x_ptr, y_ptr):
    at = tl.arange(0, 128)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * x + tl.load(y_ptr + at))


@triton.jit
def fused_by_name(x_ptr, y_ptr):
    at = tl.arange(0, 128)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, tl.fma(x, x, tl.load(y_ptr + at)))


@triton.jit
def quotient(x_ptr, y_ptr):
    at = tl.arange(0, 128)
    tl.store(y_ptr + at, tl.div_rn(tl.load(x_ptr + at), tl.load(y_ptr + at)))


@triton.jit
def quotient_and_root(x_ptr, y_ptr):
    at = tl.arange(0, 128)
    tl.store(y_ptr + at, tl.load(x_ptr + at) / tl.sqrt(tl.load(y_ptr + at)))


@triton.jit
def logarithm(x_ptr, y_ptr):
    at = tl.arange(0, 128)
    tl.store(y_ptr + at, tl.exp(tl.log(tl.load(x_ptr + at))))


@triton.jit
def quotient_of_integers(x_ptr, y_ptr):
    at = tl.arange(0, 128)
    tl.store(y_ptr + at, tl.load(x_ptr + at) // tl.load(y_ptr + at))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_only_contractions_count(contracted, target, dtype):
    assert contracted(product_and_sum, target, dtype=dtype, fusion=True) > 0
    assert contracted(product_and_sum, target, dtype=dtype) == 0
    assert contracted(fused_by_name, target, dtype=dtype) == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (quotient, "fp32"),
        (quotient_and_root, "fp64"),
        (logarithm, "fp32"),
        (quotient_of_integers, "i64"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_takes_several_instructions_does_not_count(contracted, target, kernel, dtype):
    assert contracted(kernel, target, dtype=dtype) == 0


@pytest.mark.parametrize(
    ("kernel", "dtype", "expected"),
    [
        (quotient, "fp32", set()),
        (quotient_and_root, "fp32", {"div.full", "sqrt.approx"}),
        (quotient_and_root, "fp64", set()),
        (logarithm, "fp32", {"ex2.approx"}),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_approximate_instructions_are_found(tool, compiled, kernel, dtype, expected):
    assert tool.approximate(compiled(kernel, "sm_80", dtype=dtype)) == expected
