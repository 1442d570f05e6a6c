"""Every operator × SIMD level × case against its reference. An operator enters by registration:
its folder's `cases.py` gives the inputs and the calls that must fail.

Under `TRITON_INTERPRET=1` the operators that have Triton kernels run them, on the CPU, in Triton's
interpreter, and the others are left out."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.ops._triton import INTERPRETED
from vqvae2_fast.testing.compare import (
    assert_close_to_float64,
    scattered,
    simd_level,
    simd_levels,
    to_float64,
)
from vqvae2_fast.testing.interpreter import interpret_on_cpu

if INTERPRETED:
    interpret_on_cpu()
OPERATORS = {
    name: operator
    for name, operator in ops.OPERATORS.items()
    if not INTERPRETED or operator.owners.get("cpu") == "triton"
}
# Kernels on a GPU cannot say where an index is outside without waiting for it.
TOLD_WITHOUT_POSITION = {"code_statistics-index_too_large", "code_statistics-negative_index"}


def cases_of(name):
    return importlib.import_module(f"vqvae2_fast.ops.{name.rstrip('_')}.cases")


def levels_of(operator):
    """Operators that rest on their reference do not change with the SIMD level."""
    return simd_levels() if operator.owners.get("cpu") == "cpu" else simd_levels()[-1:]


def make(case, change=lambda value: value):
    return tuple(change(value) for value in case.make(torch.Generator().manual_seed(0)))


def few_cases_of(name):
    """Interpreted kernels are slow: all cases for results and gradients, four that reach a kernel
    for what else must hold."""
    cases = cases_of(name).CASES
    if not INTERPRETED:
        return cases
    return [case for case in cases if OPERATORS[name].owner(*make(case)) == "triton"][:4]


CASES = [
    pytest.param(operator, case, id=f"{name}-{case.name}")
    for name, operator in OPERATORS.items()
    for case in few_cases_of(name)
]
ALL_BY_LEVEL = [
    pytest.param(operator, case, level, id=f"{name}-{case.name}-{level}")
    for name, operator in OPERATORS.items()
    for case in cases_of(name).CASES
    for level in levels_of(operator)
]
CASES_BY_LEVEL = [
    pytest.param(operator, case, level, id=f"{name}-{case.name}-{level}")
    for name, operator in OPERATORS.items()
    for case in few_cases_of(name)
    for level in levels_of(operator)
]
ERRORS = [
    pytest.param(error, id=f"{name}-{error.name}")
    for name in OPERATORS
    for error in cases_of(name).ERRORS
    if not INTERPRETED or f"{name}-{error.name}" not in TOLD_WITHOUT_POSITION
]


def clone(value):
    return value.clone() if isinstance(value, Tensor) else value


def run(function, case, arguments):
    """The results as a tuple; for an in-place operator the tensors that it wrote."""
    results = function(*arguments)
    if case.in_place:
        return tuple(arguments[position] for position in case.in_place)
    return results if isinstance(results, tuple) else (results,)


def run_with_gradients(function, case, arguments):
    """Results, and the gradients of a fixed weighting of every differentiable result."""
    leaves = [arguments[position].detach().requires_grad_() for position in case.gradients]
    arguments = list(arguments)
    for position, leaf in zip(case.gradients, leaves, strict=True):
        arguments[position] = leaf
    results = run(function, case, arguments)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for result in results:
        if result.requires_grad:
            loss = loss + (result.double() * torch.randn(result.shape, generator=generator)).sum()
    return results, torch.autograd.grad(loss, leaves)


def assert_same(actual, expected, what):
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            a, e, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=i: f"{what}, result {i}: {m}"
        )


def assert_conforms(case, actual, eager, exact):
    if case.exact:
        assert_same(actual, eager, "against the reference")
        return
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        assert a.dtype == e.dtype
        if a.is_floating_point():
            assert_close_to_float64(a, e, x, factor=2 * case.loosening, what=f"result {i}")
        else:
            assert_same([a], [e], f"result {i}")


@pytest.mark.parametrize(("operator", "case", "level"), ALL_BY_LEVEL)
def test_forward_matches_reference(operator, case, level):
    with simd_level(level):
        actual = run(operator, case, make(case, clone))
    eager = run(operator.reference, case, make(case, clone))
    exact = run(operator.reference, case, make(case, to_float64))
    assert_conforms(case, actual, eager, exact)


@pytest.mark.parametrize(
    ("operator", "case", "level"), [p for p in ALL_BY_LEVEL if p.values[1].gradients]
)
def test_gradients_match_float64(operator, case, level):
    with simd_level(level):
        _, actual = run_with_gradients(operator, case, make(case))
    _, eager = run_with_gradients(operator.reference, case, make(case))
    _, exact = run_with_gradients(operator.reference, case, make(case, to_float64))
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        factor, what = 3 * case.loosening, f"gradient {case.gradients[i]}"
        assert_close_to_float64(a, e, x, factor=factor, what=what)


def reaches_its_kernel(operator, case):
    return not case.has_nan and not operator.owner(*make(case)).startswith("reference: ")


@pytest.mark.parametrize(("operator", "case"), [p for p in CASES if reaches_its_kernel(*p.values)])
def test_opcheck(operator, case):
    arguments = list(make(case))
    for position in case.gradients:
        arguments[position] = arguments[position].requires_grad_()
    torch.library.opcheck(operator.overload, tuple(arguments))


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_compiled_equals_eager(operator, case):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *arguments: operator(*arguments), fullgraph=True, backend="aot_eager"
    )
    actual = run(compiled, case, make(case, clone))
    assert_same(actual, run(operator, case, make(case, clone)), "compiled")


@pytest.mark.parametrize(("operator", "case", "level"), CASES_BY_LEVEL)
def test_strided_inputs_give_the_same(operator, case, level):
    with simd_level(level):
        actual = run(operator, case, make(case, scattered))
        expected = run(operator, case, make(case, clone))
    if case.exact:
        assert_same(actual, expected, "strided")
    else:
        exact = run(operator.reference, case, make(case, to_float64))
        assert_conforms(case, actual, expected, exact)


@pytest.mark.parametrize(("operator", "case", "level"), CASES_BY_LEVEL)
def test_repeats_are_bit_equal(operator, case, level):
    with simd_level(level):
        first = run(operator, case, make(case, clone))
        second = run(operator, case, make(case, clone))
    assert_same(first, second, "second run")


@pytest.mark.parametrize(
    ("operator", "case", "level"), [p for p in CASES_BY_LEVEL if p.values[1].batched]
)
def test_row_alone_equals_row_in_batch(operator, case, level):
    arguments = make(case)
    rows = len(arguments[case.batched[0]])
    with simd_level(level):
        whole = run(operator, case, arguments)
        for row in sorted({0, rows // 2, rows - 1}) if rows else ():
            alone = list(arguments)
            for position in case.batched:
                alone[position] = arguments[position][row : row + 1]
            actual = run(operator, case, alone)
            expected = [result[row : row + 1] for result in whole]
            if case.exact:
                assert_same(actual, expected, f"row {row}")
            else:
                wide = [to_float64(value) for value in alone]
                exact = run(operator.reference, case, wide)
                assert_conforms(case, actual, expected, exact)


@pytest.mark.parametrize(("operator", "case", "level"), CASES_BY_LEVEL)
def test_outputs_are_fully_written(operator, case, level):
    """Uninitialised memory is filled with NaN (or the largest integer) under this mode."""
    torch.use_deterministic_algorithms(True)
    try:
        with simd_level(level):
            poisoned = run(operator, case, make(case, clone))
    finally:
        torch.use_deterministic_algorithms(False)
    with simd_level(level):
        expected = run(operator, case, make(case, clone))
    assert_same(poisoned, expected, "poisoned")


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_inputs_are_unchanged(operator, case):
    arguments = make(case, clone)
    run(operator, case, arguments)
    for i, (after, before) in enumerate(zip(arguments, make(case), strict=True)):
        if isinstance(after, Tensor) and i not in case.in_place:
            assert_same([after], [before], f"argument {i}")


@pytest.mark.parametrize("error", ERRORS)
def test_documented_error(error):
    with pytest.raises(error.error) as raised:
        error.call()
    assert error.text in str(raised.value)
