"""Every operator × case against its reference, each at all SIMD levels of this machine. An operator
enters by registration: its module in `helpers.cases` gives the inputs and the calls that must fail.

Results are compared in the cases that a kernel takes: without one an operator is its reference.

Under `TRITON_INTERPRET=1` the operators that have Triton kernels run them, on the CPU, in Triton's
interpreter, and the others are left out."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch
from helpers.cases import cases_of, errors_of
from helpers.compare import (
    RecordedOperators,
    assert_close_to_float64,
    every_call_trains,
    has_kernel,
    needs_kernels,
    scattered,
    simd_level,
    simd_levels,
    to_float64,
)
from helpers.interpreter import interpret_on_cpu
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.ops import _native, _training
from vqvae2_fast.ops._triton import INTERPRETED

if INTERPRETED:
    interpret_on_cpu()
IS_TRAINING_CALL = _training.is_training_call
OPERATORS = {
    name: operator
    for name, operator in ops.OPERATORS.items()
    if not INTERPRETED or operator.owners.get("cpu") == "triton"
}
# Kernels on a GPU cannot say where an index is out of range without waiting for it.
TOLD_WITHOUT_POSITION = {
    "code_statistics-index_too_large",
    "code_statistics-negative_index",
    "residual_code_statistics-index_too_large",
}
# Their references fail too, by torch's own errors.
OF_KERNELS = TOLD_WITHOUT_POSITION | {
    "code_cross_entropy-code_too_large",
    "code_cross_entropy-code_negative",
}


def at_each_level(operator):
    """Yields the name of each SIMD level, with which the code in the loop then runs."""
    # Operators that run on their reference do not change with it.
    levels = simd_levels() if operator.owners.get("cpu") == "cpu" else simd_levels()[-1:]
    for level in levels:
        with simd_level(level):
            yield level


@pytest.fixture(autouse=True)
def kernels_take_small_calls():
    with every_call_trains():
        yield


@contextmanager
def small_calls_do_not():
    """Undoes the fixture."""
    with mock.patch.object(_training, "is_training_call", IS_TRAINING_CALL):
        yield


def make(case, change=lambda value: value):
    return tuple(change(value) for value in case.make(torch.Generator().manual_seed(0)))


def is_taken(operator, case):
    """Whether a kernel computes the case."""
    with every_call_trains(), torch.no_grad():
        return operator.choose(*make(case)) is None


ALL = [
    pytest.param(operator, case, id=f"{name}-{case.name}")
    for name, operator in OPERATORS.items()
    for case in cases_of(operator)
]
TAKEN = [parameter for parameter in ALL if is_taken(*parameter.values)]


def few_of(parameters):
    """Interpreted kernels are slow: properties other than results get four cases an operator."""
    if not INTERPRETED:
        return parameters
    number = Counter()
    return [p for p in parameters if number.update([p.values[0]]) or number[p.values[0]] <= 4]


CASES = few_of(TAKEN) if INTERPRETED else ALL
FEW = few_of(TAKEN)
# Who owns a call: every change asks for all that no kernel takes, and for the few others.
OWNED = [
    parameter
    if parameter in FEW or parameter not in TAKEN
    else pytest.param(*parameter.values, id=parameter.id, marks=pytest.mark.nightly)
    for parameter in ALL
]
ERRORS = [
    pytest.param(error, id=case, marks=[needs_kernels] if case in OF_KERNELS else [])
    for name, operator in OPERATORS.items()
    for error in errors_of(operator)
    for case in [f"{name}-{error.name}"]
    if not INTERPRETED or case not in TOLD_WITHOUT_POSITION
]


def clone(value):
    return value.clone() if isinstance(value, Tensor) else value


def run(function, case, arguments):
    """The results as a tuple; for an in-place operator the tensors that it wrote.

    Operators without a gradient run as they do in a backward pass.
    """
    with torch.set_grad_enabled(bool(case.gradients)):
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
    """Bit for bit."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            a, e, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=i: f"{what}, result {i}: {m}"
        )


def assert_conforms(case, actual, eager, exact, what):
    if case.exact:
        assert_same(actual, eager, what)
        return
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        assert a.dtype == e.dtype
        if a.is_floating_point():
            assert_close_to_float64(a, e, x, factor=2 * case.loosening, what=f"{what}, {i}")
        else:
            assert_same([a], [e], what)


@pytest.mark.parametrize(("operator", "case"), TAKEN)
def test_forward_matches_reference(operator, case):
    eager = run(operator.reference, case, make(case, clone))
    exact = run(operator.reference, case, make(case, to_float64))
    for level in at_each_level(operator):
        arguments = make(case, clone)
        actual = run(operator, case, arguments)
        assert_conforms(case, actual, eager, exact, level)
        for i, (after, before) in enumerate(zip(arguments, make(case), strict=True)):
            if isinstance(after, Tensor) and i not in case.in_place:
                assert_same([after], [before], f"argument {i} at {level}")


@pytest.mark.parametrize(("operator", "case"), [p for p in ALL if p.values[1].gradients])
def test_gradients_match_float64(operator, case):
    _, eager = run_with_gradients(operator.reference, case, make(case))
    _, exact = run_with_gradients(operator.reference, case, make(case, to_float64))
    for level in at_each_level(operator):
        _, actual = run_with_gradients(operator, case, make(case))
        for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
            factor, what = 3 * case.loosening, f"gradient {case.gradients[i]} at {level}"
            assert_close_to_float64(a, e, x, factor=factor, what=what)


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter has one thread")
@pytest.mark.parametrize(("operator", "case"), FEW)
def test_forward_on_three_threads_matches_reference(operator, case, with_threads):
    actual = with_threads(3, lambda: run(operator, case, make(case, clone)))
    eager = run(operator.reference, case, make(case, clone))
    exact = run(operator.reference, case, make(case, to_float64))
    assert_conforms(case, actual, eager, exact, "three threads")


@pytest.mark.parametrize(("operator", "case"), OWNED)
def test_owner_is_who_ran(operator, case):
    # Triton's kernels do not ask whether a call trains.
    for trains in (True,) if INTERPRETED else (True, False):
        arguments = make(case, clone)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(bool(case.gradients)))
            if not trains:
                stack.enter_context(small_calls_do_not())
            owner = ops.owner(operator.name, *arguments)
            recorded = stack.enter_context(RecordedOperators())
            operator(*arguments)
        assert len(recorded.kernels_of(operator, "cpu")) == (not owner.startswith("reference"))


@pytest.mark.parametrize(
    ("operator", "case"), [p for p in OWNED if p.values[1].gradients and is_taken(*p.values)]
)
def test_gradient_of_a_kernel_is_a_kernel(operator, case):
    arguments = list(make(case))
    leaves = [arguments[position].requires_grad_() for position in case.gradients]
    results = run(operator, case, arguments)
    loss = sum(result.double().sum() for result in results if result.requires_grad)
    with RecordedOperators() as recorded:
        torch.autograd.grad(loss, leaves)
    assert recorded.kernels_of(operator, "cpu"), "the call has a kernel, its gradient has none"
    for name in recorded.names:
        assert ops.OPERATORS[name].is_gradient


@pytest.mark.parametrize(("operator", "case"), OWNED)
def test_strict_mode_raises_wherever_the_owner_declines(operator, case, monkeypatch):
    arguments = make(case, clone)
    with torch.set_grad_enabled(bool(case.gradients)):
        owner = ops.owner(operator.name, *arguments)
        monkeypatch.setattr(_native, "STRICT", True)
        if owner.startswith("reference: "):
            with pytest.raises(RuntimeError, match=f"^{operator.name}: VQVAE2_FAST_STRICT=1 and"):
                operator(*arguments)
        else:
            operator(*arguments)


def can_be_checked(operator, case):
    """The overload runs the kernel that takes the case, unless a public operator has none."""
    has_none = not operator.private and not has_kernel(operator.name, "cpu")
    return not case.has_nan and (has_none or is_taken(operator, case))


def form(value):
    """What a compiler sees of an argument: not the values of a tensor, nor sizes other than 0."""
    if isinstance(value, Tensor):
        strided = value.stride() != value.contiguous().stride()
        return value.dtype, value.dim(), 0 in value.shape, strided
    return value if isinstance(value, (bool, str, int)) else (type(value), value in (0.0, 1.0))


def of_different_forms(parameters):
    """The first case of each form that an operator's arguments have."""
    found = {}
    for parameter in parameters:
        operator, case = parameter.values
        found.setdefault((operator.name, *map(form, make(case))), parameter)
    return list(found.values())


CHECKED = of_different_forms(p for p in CASES if can_be_checked(*p.values))
# Tracing with sizes left open takes a fifth of a second a case: opcheck does so for one of each
# operator. The others are traced at their sizes, with their gradients, by `compiled`.
TRACED = {parameter.values[0].name: parameter.values[1] for parameter in reversed(CHECKED)}


@pytest.mark.parametrize(("operator", "case"), CHECKED)
def test_opcheck(operator, case):
    arguments = list(make(case))
    for position in case.gradients:
        arguments[position] = arguments[position].requires_grad_()
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if TRACED[operator.name] is case:
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator.overload, tuple(arguments), test_utils=checks)


def compiled(operator):
    torch._dynamo.reset()
    return torch.compile(
        lambda *arguments: operator(*arguments), fullgraph=True, backend="aot_eager"
    )


WITH_GRADIENTS = [parameter for parameter in CHECKED if parameter.values[1].gradients]
# A graph takes a fifth of a second to compile, and that of the gradients gives the results too.
# One case of each operator is also compiled as it is where no gradient is wanted.
WITHOUT = [
    parameter
    for parameter in of_different_forms(CASES)
    if parameter not in WITH_GRADIENTS or TRACED[parameter.values[0].name] is parameter.values[1]
]


@pytest.mark.parametrize(("operator", "case"), WITHOUT)
def test_compiled_equals_eager(operator, case):
    actual = run(compiled(operator), case, make(case, clone))
    assert_same(actual, run(operator, case, make(case, clone)), "compiled")


@pytest.mark.parametrize(("operator", "case"), WITH_GRADIENTS)
def test_compiled_results_and_gradients_equal_eager(operator, case):
    results, actual = run_with_gradients(compiled(operator), case, make(case))
    expected, eager = run_with_gradients(operator, case, make(case))
    assert_same(results, expected, "compiled")
    # Not to the bit: a graph may hand a gradient on in another memory format, in which PyTorch's
    # own sums (of a bias, say) round differently.
    for a, e in zip(actual, eager, strict=True):
        bound = 1e-6 * float(e.abs().max()) if e.numel() else 0.0
        torch.testing.assert_close(a, e, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize(("operator", "case"), FEW)
def test_strided_inputs_give_the_same(operator, case):
    exact = None if case.exact else run(operator.reference, case, make(case, to_float64))
    for level in at_each_level(operator):
        actual = run(operator, case, make(case, scattered))
        expected = run(operator, case, make(case, clone))
        assert_conforms(case, actual, expected, exact, level)


@pytest.mark.parametrize(("operator", "case"), [p for p in CASES if p.values[1].batched])
def test_row_alone_equals_row_in_batch(operator, case):
    arguments = make(case)
    rows = len(arguments[case.batched[0]])
    for level in at_each_level(operator):
        whole = run(operator, case, arguments)
        for row in sorted({0, rows // 2, rows - 1}) if rows else ():
            alone = list(arguments)
            for position in case.batched:
                alone[position] = arguments[position][row : row + 1]
            actual = run(operator, case, alone)
            expected = [result[row : row + 1] for result in whole]
            wide = [to_float64(value) for value in alone]
            exact = None if case.exact else run(operator.reference, case, wide)
            assert_conforms(case, actual, expected, exact, f"row {row} at {level}")


@pytest.mark.parametrize(("operator", "case"), FEW)
def test_a_repeat_is_bit_equal_whatever_its_memory_held(operator, case):
    """Uninitialised memory is filled with NaN (or the largest integer) under this mode."""
    for level in at_each_level(operator):
        expected = run(operator, case, make(case, clone))
        torch.use_deterministic_algorithms(True)
        try:
            poisoned = run(operator, case, make(case, clone))
        finally:
            torch.use_deterministic_algorithms(False)
        assert_same(poisoned, expected, level)


@pytest.mark.parametrize("error", ERRORS)
def test_documented_error(error):
    with pytest.raises(error.error) as raised:
        error.call()
    assert error.text in str(raised.value)
