"""Compiled operators as another package may call them, past the functions that check arguments: a
tensor that does not fit is refused, or the result is that of the reference; nothing else is
touched."""

from __future__ import annotations

import pytest
import torch
from helpers.cases import cases_of
from helpers.compare import every_call_trains, has_kernel, scattered
from torch import Tensor

from vqvae2_fast.ops import OPERATORS

pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values")


def resized(dim, change):
    """The tensor with one row less along a dimension, or with one more; None if it has none."""

    def make(value):
        if value.dim() <= dim or not value.shape[dim]:
            return None
        rows = torch.arange(value.shape[dim] + change) % value.shape[dim]
        return value.index_select(dim, rows)

    return make


# What becomes of one tensor argument, None where it would stay as it is.
CHANGES = {
    **{
        str(dtype).partition(".")[2]: lambda value, dtype=dtype: value.to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    },
    **{
        str(dtype).partition(".")[2]: lambda value, dtype=dtype: value.to(dtype)
        for dtype in (torch.int32, torch.int64, torch.bool, torch.complex64)
    },
    **{f"shorter_{dim}": resized(dim, -1) for dim in range(4)},
    **{f"longer_{dim}": resized(dim, 1) for dim in range(4)},
    "empty": lambda value: value[:0] if value.dim() else None,
    "on_meta": lambda value: value.to("meta"),
    "scattered": scattered,
    "expanded": lambda value: value[:1].expand_as(value) if value.dim() else None,
    "transposed": lambda value: value.mT.contiguous().mT if value.dim() > 1 else None,
    "more_dimensions": lambda value: value[None],
    "last_dimension_of_one": lambda value: value[..., None],
    "fewer_dimensions": lambda value: value[0] if value.dim() else None,
    "flat": lambda value: value.flatten(),
    "large": lambda value: None if value.is_floating_point() else torch.full_like(value, 2**40),
    "negative": lambda value: (
        None if value.is_floating_point() else torch.full_like(value, -(2**40))
    ),
}


def make(case):
    return list(case.make(torch.Generator().manual_seed(0)))


def few_cases_of(operator):
    """The first case that a kernel takes for each set of optional arguments that are given."""
    found = {}
    with every_call_trains(), torch.no_grad():
        for case in cases_of(operator):
            arguments = make(case)
            tensors = [value for value in arguments if isinstance(value, Tensor)]
            if operator.choose(*arguments) is None and all(value.numel() for value in tensors):
                found.setdefault(tuple(value is None for value in arguments), case)
    return list(found.values())


CALLS = [
    pytest.param(operator, case, position, id=f"{name}-{case.name}-{position}")
    for name, operator in OPERATORS.items()
    if has_kernel(name, "cpu")
    for case in few_cases_of(operator)
    for position, value in enumerate(make(case))
    if isinstance(value, Tensor)
]


def guarded(value):
    """The same values and strides amid others, which no result may depend on; and all of them."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value, torch.zeros(0, dtype=torch.uint8)
    reach = sum(
        (size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)
    )
    span = reach + 1 if value.numel() else 0
    other = torch.nan if value.is_floating_point() or value.is_complex() else 111
    memory = torch.full((span + 128,), other, dtype=torch.float64).to(value.dtype)
    view = memory.as_strided(value.shape, value.stride(), 64)
    memory[64 : 64 + span] = value.as_strided((span,), (1,))
    return view, memory.view(torch.uint8)


def results_of(function, case, arguments):
    with torch.no_grad():
        results = function(*arguments)
    if case.in_place:
        return [arguments[position] for position in case.in_place]
    return results if isinstance(results, tuple) else [results]


def assert_equal_within_rounding(actual, expected):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if actual.is_meta:
        return
    if not actual.is_floating_point():
        assert torch.equal(actual, expected)
        return
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    rounding = 1e-4 if actual.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=rounding * (largest + 1e-2), equal_nan=True
    )


def differing(before, after, case):
    """Positions of the arguments whose memory changed, and in the guards of those to be written."""
    found = []
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        item = len(old) if position not in case.in_place else 64
        if not torch.equal(old[:item], new[:item]) or not torch.equal(old[-item:], new[-item:]):
            found.append(position)
    return found


def check_call(operator, case, arguments):
    views, memory = zip(*map(guarded, arguments), strict=True)
    before = [held.clone() for held in memory]
    try:
        actual = results_of(operator.overload, case, views)
    except Exception:
        for old, new in zip(before, memory, strict=True):
            assert torch.equal(old, new), "the memory of an argument changed"
        return
    assert not differing(before, memory, case)
    expected = results_of(
        operator.reference,
        case,
        [value.clone() if isinstance(value, Tensor) else value for value in arguments],
    )
    for a, e in zip(actual, expected, strict=True):
        assert_equal_within_rounding(a, e)


@pytest.mark.parametrize(("operator", "case", "position"), CALLS)
def test_an_unfit_tensor_is_refused_or_computed(operator, case, position):
    for name, change in CHANGES.items():
        arguments = make(case)
        arguments[position] = change(arguments[position])
        if arguments[position] is None:
            continue
        try:
            check_call(operator, case, arguments)
        except AssertionError as error:
            raise AssertionError(f"argument {position} {name}: {error}") from error
